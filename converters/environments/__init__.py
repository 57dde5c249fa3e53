"""Side environments: tools whose pinned versions cannot live beside ours, each in a virtual environment of its own.

One TOML file here is one environment. `edge-seg doctor --setup NAME` creates it, in `$EDGE_SEG_ENVS/NAME` or
`~/.cache/edge_seg/envs/NAME`; nothing else does. What runs inside is a subprocess that exchanges files with us.
"""

from edge_seg.converters.environments.create import setup_environment
from edge_seg.converters.environments.recipe import Recipe, environment_names, load_recipe
from edge_seg.converters.environments.run import run_in_environment
from edge_seg.converters.environments.store import environments_folder, find_environment, site_packages

__all__ = [
    "Recipe",
    "environment_names",
    "environments_folder",
    "find_environment",
    "load_recipe",
    "run_in_environment",
    "setup_environment",
    "site_packages",
]
