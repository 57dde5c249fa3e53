"""Networks whose tensors lie on integer grids: prepared from a float network, retrained, exported as integers."""
