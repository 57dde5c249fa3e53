"""Self-contained scripts that run in side environments, by path and never by import; files in, files out.

Each takes the path of a JSON document that says what to do. Besides the standard library and NumPy it imports, inside
functions, only what its environment holds (pinned there, so by name: our own environment and its type checker have
no such package): nothing of edge_seg, except where the environment leans on ours.
"""
