"""Creates side environments: package by package into a part folder, which gets its name when it is proven whole."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.metadata
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from edge_seg.artifact import write_json
from edge_seg.converters.environments.recipe import Recipe, load_recipe
from edge_seg.converters.environments.store import (
    STAMP,
    environments_folder,
    is_set_up,
    python_of,
    site_packages,
)
from edge_seg.errors import EdgeSegError, InputError, MissingHere

_LOG = logging.getLogger(__name__)
_PIP_OPTIONS = ("--disable-pip-version-check", "--no-input", "--quiet", "--retries", "2", "--timeout", "30")
_NO_NETWORK = (
    "newconnectionerror",
    "connecttimeout",
    "readtimeout",
    "name resolution",
    "connection broken",
    "max retries exceeded",
    "proxyerror",
    "no matching distribution",  # what pip says at last when it could not ask anybody
)
_NO_SPACE = ("no space left on device", "disk quota exceeded")


def setup_environment(name: str) -> Path:
    """Creates a side environment and those it needs; one that is there already is left alone.

    The packages are installed one after the other into a part folder beside the final one, with progress on
    standard error. When everything is in and imports, the folder is renamed; until then nothing uses it. After an
    interruption the next call goes on behind the last whole package.

    Args:
        name: One of `environment_names()`.

    Returns:
        The folder of the environment.

    Raises:
        InputError: There is no such environment, its folder cannot be written, the disk is full, or another process
            is setting it up.
        MissingHere: No package index can be reached, a package is not offered for this machine, the module venv is
            missing, or what was installed does not import.
    """
    recipe = load_recipe(name)
    for needed in recipe.needs:
        setup_environment(needed)
    final = environments_folder() / name
    with _only_one(final):
        if not is_set_up(recipe):
            part = final.with_name(f".{name}.{recipe.digest}.part")
            with _plain_errors(part):
                _fill(part, recipe)
                _prove(part, recipe)
                _publish(part, final, recipe)
    return final


@contextlib.contextmanager
def _only_one(final: Path) -> Iterator[None]:
    """Holds a lock that the system drops with the process, however that ends."""
    with _plain_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        lock = final.with_name(f".{final.name}.lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"Another process is setting up {final.name!r}.", got=str(final), todo="wait until it is done"
            ) from error
        yield


@contextlib.contextmanager
def _plain_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _cannot_write(folder, f"{type(error).__name__}: {error.strerror or error}") from error


def _cannot_write(folder: Path, got: str) -> InputError:
    return InputError(
        f"Cannot write the side environment {folder}.",
        expected="a writable folder with free space",
        got=got,
        todo="free space, or set EDGE_SEG_ENVS to another folder; the next --setup goes on where this one stopped",
    )


def _fill(part: Path, recipe: Recipe) -> None:
    from tqdm import tqdm

    if not python_of(part).exists():
        _check_space(part.parent, recipe)
        _create(part)
    there = _installed(part)
    open_ones = [r for r in recipe.requirements if _normal(r) not in there]
    done = len(recipe.requirements) - len(open_ones)
    with tqdm(total=len(recipe.requirements), initial=done, desc=recipe.name, unit="package", file=sys.stderr) as bar:
        for requirement in open_ones:
            bar.set_postfix_str(requirement)
            _install(part, requirement)
            bar.update()


def _check_space(folder: Path, recipe: Recipe) -> None:
    free_mb = shutil.disk_usage(folder).free // 1_000_000
    if free_mb < recipe.size_mb:
        raise _cannot_write(folder / recipe.name, f"{free_mb} MB free, and it takes about {recipe.size_mb} MB")


def _create(part: Path) -> None:
    shutil.rmtree(part, ignore_errors=True)  # a folder without an interpreter: the creation itself was interrupted
    done = _run([sys.executable, "-I", "-m", "venv", str(part)])
    if done.returncode:
        raise _failed(
            "A virtual environment cannot be created.", done, "install Python's module venv (python3.11-venv)"
        )


def _installed(part: Path) -> set[str]:
    """Returns the requirements that are whole; pip writes INSTALLER when all files of a package are in place."""
    found = importlib.metadata.distributions(path=[str(site_packages(part))])
    return {_normal(f"{d.name}=={d.version}") for d in found if d.read_text("INSTALLER") is not None}


def _normal(requirement: str) -> str:
    name, _, version = requirement.partition("==")
    return f"{name.lower().replace('_', '-').replace('.', '-')}=={version.partition('+')[0]}"


def _install(part: Path, requirement: str) -> None:
    # --ignore-installed: of a package whose installation was cut off pip would say that it is there
    options = (*_PIP_OPTIONS, "--no-deps", "--ignore-installed")
    done = _run([str(python_of(part)), "-I", "-m", "pip", "install", *options, requirement])
    if not done.returncode:
        return
    said = done.stderr.lower()
    if any(sign in said for sign in _NO_SPACE):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    offline = any(sign in said for sign in _NO_NETWORK)
    todo = "check the network, pip's settings and that there is a wheel for this machine" if offline else "see above"
    raise _failed(f"pip cannot install {requirement}.", done, f"{todo}; the next --setup goes on where this stopped")


def _prove(part: Path, recipe: Recipe) -> None:
    """Imports what the environment is for, the way it will be used."""
    path = [str(site_packages(part))] if recipe.beside_ours else []
    python = sys.executable if recipe.beside_ours else str(python_of(part))
    code = f"import importlib, sys\nsys.path[:0] = {path}\nfor name in sys.argv[1:]: importlib.import_module(name)"
    done = _run([python, "-I", "-c", code, *recipe.imports])
    if done.returncode:
        todo = f"remove {part} and try again; this machine may lack something the packages need"
        raise _failed(f"The packages of {recipe.name!r} are installed but do not import.", done, todo)


def _publish(part: Path, final: Path, recipe: Recipe) -> None:
    stamp = {
        "name": recipe.name,
        "digest": recipe.digest,
        "python": sys.version.split()[0],
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "requirements": list(recipe.requirements),
    }
    write_json(part / STAMP, stamp)
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    part.rename(final)
    for left in (old, *final.parent.glob(f".{final.name}.*.part")):  # parts of other versions that were given up
        shutil.rmtree(left, ignore_errors=True)


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    _LOG.debug("%s said: %s", command, (done.stdout + done.stderr)[-4000:])
    return done


def _failed(what: str, done: subprocess.CompletedProcess[str], todo: str) -> EdgeSegError:
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if not line.startswith(("WARNING", "[notice]"))]
    return MissingHere(what, got=" | ".join(errors[-3:])[-400:], todo=todo)
