"""Where side environments lie, and whether one is whole and of the versions that are wanted."""

from __future__ import annotations

import json
import os
import sysconfig
from pathlib import Path
from typing import Any

from edge_seg.converters.environments.recipe import Recipe, load_recipe
from edge_seg.errors import InputError, MissingHere

STAMP = "environment.json"  # written last: a folder without it is not an environment


def environments_folder() -> Path:
    """Returns the folder of all side environments: `$EDGE_SEG_ENVS`, else `~/.cache/edge_seg/envs`."""
    named = os.environ.get("EDGE_SEG_ENVS")
    if named:
        return Path(named).expanduser().absolute()
    try:
        return Path.home() / ".cache" / "edge_seg" / "envs"
    except RuntimeError as error:
        raise InputError(
            "There is no home folder for side environments.", got=str(error), todo="set EDGE_SEG_ENVS to a folder"
        ) from error


def find_environment(name: str) -> Path:
    """Returns the folder of a side environment that is set up.

    Args:
        name: One of `environment_names()`.

    Raises:
        InputError: There is no environment of that name.
        MissingHere: It is not set up, or was set up for other versions or another Python.
    """
    recipe = load_recipe(name)
    for one in (*map(load_recipe, recipe.needs), recipe):
        if not is_set_up(one):
            raise _missing(one, todo=f"edge-seg doctor --setup {name}")
    return environments_folder() / name


def _missing(recipe: Recipe, *, todo: str) -> MissingHere:
    folder = environments_folder() / recipe.name
    other = read_stamp(folder).get("digest", recipe.digest) != recipe.digest
    return MissingHere(
        f"The side environment {recipe.name!r} is {'of other versions' if other else 'not set up'} here.",
        expected=f"{folder} with {len(recipe.requirements)} packages, about {recipe.size_mb} MB",
        todo=todo,
    )


def is_set_up(recipe: Recipe) -> bool:
    """Whether an environment is there, whole and of the wanted versions; what it needs is not looked at."""
    folder = environments_folder() / recipe.name
    return read_stamp(folder).get("digest") == recipe.digest and python_of(folder).exists()


def read_stamp(folder: Path) -> dict[str, Any]:
    """Returns what `environment.json` of a folder says, or {} where there is none that can be read."""
    try:
        document = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # set up again: the caller then says so
    return document if isinstance(document, dict) else {}


def python_of(folder: Path) -> Path:
    """Returns the interpreter of an environment."""
    return folder / "bin" / "python"


def site_packages(folder: Path) -> Path:
    """Returns the folder of an environment that holds its packages."""
    return Path(sysconfig.get_path("purelib", scheme="venv", vars={"base": str(folder), "platbase": str(folder)}))
