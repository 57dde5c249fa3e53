"""Names found by folder: one file adds one thing, a clash or a miss is an error that names its neighbours."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from edge_seg.errors import InputError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """A table from name to object, filled by the modules of one package.

    Args:
        kind: What an entry is, for messages ("model", "decoder", "route").
        package: The package whose modules register entries; they are imported at the first look-up.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._entries: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Returns a decorator that stores its argument under `name`; raises ValueError on a clash."""

        def store(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"two {self.kind}s are called {name!r}")
            self._entries[name] = entry
            return entry

        return store

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        try:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self.package}.{module.name}")
        except BaseException:
            self._loaded = False  # a broken file must not leave half a table behind that looks whole
            raise

    def names(self) -> list[str]:
        """Returns all registered names, sorted."""
        self._load()
        return sorted(self._entries)

    def __getitem__(self, name: str) -> T:
        self._load()
        if name not in self._entries:
            raise InputError(f"There is no {self.kind} called {name!r}.", got=name, todo=nearest(name, self.names()))
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())
