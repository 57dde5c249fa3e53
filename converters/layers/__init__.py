"""A file against its program, layer by layer."""
