"""Integer arithmetic of the int8 kernels, and the proof that a file is the network that was trained."""
