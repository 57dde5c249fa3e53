"""Which layers compute in which precision: a file that a person reads and edits, applied strictly.

    format = "edge_seg.recipe"
    default = "int8"

    [[rules]]
    layers = "heat_head.predict"      # a module with all below it; * and ? as in file names
    precision = "float"
    reason = "loses 0.4 PQ in int8"

The last rule that names a layer decides. A rule that names none is an error.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from edge_seg.artifact import read_json
from edge_seg.config import from_mapping, load_toml
from edge_seg.converters.graph import Graph
from edge_seg.errors import ConfigError, nearest

FORMAT = "edge_seg.recipe"
Precision = Literal["float", "int8", "int16", "dynamic"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
_EXAMPLE = 'it holds format = "edge_seg.recipe" and [[rules]] with layers and precision; convert --budget writes one'


@dataclass(frozen=True)
class Rule:
    """A precision for some layers.

    Attributes:
        layers: Pattern of module paths; a path stands for all modules below it.
        precision: "float", "int8", "int16" (activations; weights int8) or "dynamic" (int8 weights, float activations).
        reason: Why, for readers.
    """

    layers: str
    precision: str
    reason: str = ""


@dataclass(frozen=True)
class Recipe:
    """Precisions of all layers.

    Attributes:
        default: Precision of layers that no rule names.
        rules: Later ones win.
    """

    default: str = "int8"
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        """Raises ConfigError for a precision that there is not."""
        for name in (self.default, *(r.precision for r in self.rules)):
            if name not in PRECISIONS:
                raise ConfigError(f"There is no precision {name!r}.", got=name, todo=nearest(name, PRECISIONS))

    @property
    def is_uniform(self) -> bool:
        """Whether all layers have the default's precision."""
        return all(r.precision == self.default for r in self.rules)

    def precisions(self, graph: Graph) -> tuple[str, ...]:
        """Returns the precision of every operator, in execution order.

        Raises:
            ConfigError: A rule names no layer of the network.
        """
        paths = [graph.source(op) for op in graph.ops]
        found = [self.default] * len(paths)
        for rule in self.rules:
            hits = [i for i, path in enumerate(paths) if _names(rule.layers, path)]
            if not hits:
                raise _no_layer(rule.layers, paths)
            for i in hits:
                found[i] = rule.precision
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Returns the recipe as plain JSON types; `read` takes it back."""
        return {"format": FORMAT, "default": self.default, "rules": [asdict(r) for r in self.rules]}

    def to_toml(self) -> str:
        """Returns the recipe as the TOML text that `read_recipe` takes back."""
        lines = [f'format = "{FORMAT}"', f"default = {json.dumps(self.default)}"]
        for rule in self.rules:
            lines += ["", "[[rules]]"]
            lines += [f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in asdict(rule).items() if v]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class _Document:
    format: str
    default: str = "int8"
    rules: tuple[Rule, ...] = ()


def read_recipe(path: Path) -> Recipe:
    """Reads a recipe, TOML or (ending in .json) JSON.

    Raises:
        ConfigError: It is missing or broken, has an unknown key, or names a precision that there is not.
        InputError: The JSON cannot be read.
    """
    document = read_json(path, "recipe") if path.suffix == ".json" else load_toml(path, "recipe", _EXAMPLE)
    if not isinstance(document, Mapping):
        raise ConfigError(f"{path} is not a recipe.", expected="a table with format, default and rules")
    return recipe_of(document, source=str(path))


def recipe_of(document: Mapping[str, Any], *, source: str = "the recipe") -> Recipe:
    """Builds a recipe from plain JSON types; raises ConfigError as `read_recipe`."""
    read = from_mapping(_Document, document)
    if read.format != FORMAT:
        raise ConfigError(f"{source} is not a recipe.", expected=f'format = "{FORMAT}"', got=str(read.format))
    return Recipe(read.default, read.rules)


def _names(pattern: str, path: str) -> bool:
    """Whether a pattern fits a module path or one of the modules it lies in."""
    parts = path.split(".") if path else []
    return any(fnmatch.fnmatchcase(".".join(parts[: n + 1]), pattern) for n in range(len(parts)))


def _no_layer(pattern: str, paths: list[str]) -> ConfigError:
    known = sorted({".".join(p.split(".")[: n + 1]) for p in paths if p for n in range(p.count(".") + 1)})
    todo = nearest(pattern, known) if known else "this route writes no module paths; convert with --route litert"
    return ConfigError(
        f"The recipe's pattern {pattern!r} names no layer.",
        expected="a module path of the network, * and ? as in file names",
        got=pattern,
        todo=todo if len(todo) < 1000 else f"{todo[:1000]} ...",
    )
