"""Decoders: raw network outputs to masks, pure NumPy; one file for each mask representation."""
