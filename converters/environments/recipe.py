"""What a side environment consists of, as data: one TOML file per environment in this folder."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_seg.errors import ArtifactError, InputError, nearest

RECIPES_FOLDER = Path(__file__).resolve().parent
_PINNED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.+!-]*")
_KEYS = {"purpose": str, "needs": list, "beside_ours": bool, "imports": list, "size_mb": int, "requirements": list}


@dataclass(frozen=True)
class Recipe:
    """One side environment.

    Attributes:
        name: Name of its file and of its folder.
        purpose: What it is for, one sentence.
        needs: Other environments that are set up with it.
        beside_ours: Whether its packages are put on the path of our own interpreter, and so lean on our packages;
            otherwise it is complete and runs with its own interpreter.
        imports: Modules that must import before it counts as made.
        size_mb: Disk space it takes, measured.
        requirements: Every package with its exact version, dependencies included: pip resolves nothing.
    """

    name: str
    purpose: str
    needs: tuple[str, ...]
    beside_ours: bool
    imports: tuple[str, ...]
    size_mb: int
    requirements: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that change with any version; an environment of another digest is not used."""
        content = json.dumps([self.beside_ours, self.imports, self.requirements])
        return hashlib.sha256(content.encode()).hexdigest()[:12]


def environment_names() -> list[str]:
    """Returns the names of all side environments, sorted."""
    return sorted(path.stem for path in RECIPES_FOLDER.glob("*.toml"))


def load_recipe(name: str) -> Recipe:
    """Reads what a side environment consists of.

    Args:
        name: One of `environment_names()`.

    Raises:
        InputError: There is no such environment.
        ArtifactError: Its file is broken.
    """
    names = environment_names()
    if name not in names:
        raise InputError(f"There is no side environment {name!r}.", got=name, todo=nearest(name, names))
    path = RECIPES_FOLDER / f"{name}.toml"
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read.", expected="a TOML document", got=str(error)) from error
    _check(path, document)
    lists = {key: tuple(document[key]) for key, kind in _KEYS.items() if kind is list}
    return Recipe(name, document["purpose"], beside_ours=document["beside_ours"], size_mb=document["size_mb"], **lists)


def _check(path: Path, document: dict[str, Any]) -> None:
    found = {key: type(value) for key, value in document.items()}
    if found != _KEYS:
        raise ArtifactError(f"{path} has other keys than a side environment.", expected=str(_KEYS), got=str(found))
    loose = [r for r in document["requirements"] if not _PINNED.fullmatch(str(r))]
    if loose:
        raise ArtifactError(
            f"{path} does not pin everything.", expected="name==version", got=", ".join(map(str, loose))
        )
