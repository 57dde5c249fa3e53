"""Which part of a graph runs on which delegate, as the runtime's own log says it; nothing is inferred."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import get_args

from edge_seg.benchmarks.parser import Delegation, Extent, Residency

_MAX_REFUSED = 200
_REPLACING = re.compile(
    r"Replacing (\d{1,9})(?: out of (\d{1,9}))? node\(s\) with delegate \(([^()]{1,120})\) node, "
    r"yielding (\d{1,9}) partitions"
)
_APPLIED = re.compile(
    r"(?:Explicitly applied (\S{1,40}) delegate, and the model graph will be (completely|partially) executed"
    r"|Though (\S{1,40}) delegate is explicitly applied, the model graph will (not) be executed)"
)
_SPLIT = re.compile(
    r"^(?:First )?(\d{1,9}) operations will run on the GPU, "
    r"and the remaining (\d{1,9})(?: operations will run)? on the CPU"
)
_REFUSES = re.compile(r"^(?:Following|Next) operations are not supported by (\S{1,40}) delegate:")
_REFUSED = re.compile(r"^([A-Z][A-Z0-9_]{1,60}): ?(.{0,200})$")
_FAMILIES = (
    ("xnnpack", "xnnpack"),
    ("nnapi", "nnapi"),
    ("qnn", "qnn"),
    ("gpu", "gpu"),
    ("litert_cl", "gpu"),
    ("opencl", "gpu"),
)


def family(name: str) -> str:
    """Returns "xnnpack", "gpu", "nnapi" or "qnn" for a delegate's printed name, else the name in lower case."""
    lower = name.lower()
    return next((found for part, found in _FAMILIES if part in lower), lower)


def read_residency(messages: Iterable[str]) -> Residency:
    """Collects what a log says about delegates.

    Args:
        messages: Lines without prefixes; the log may be cut short.
    """
    delegations: list[Delegation] = []
    refused: list[str] = []
    applied, extent, listing = None, None, False
    for line in messages:
        if took := _REPLACING.search(line):
            total = int(took[2]) if took[2] else None
            delegations.append(Delegation(took[3], family(took[3]), int(took[1]), total, int(took[4])))
        elif split := _SPLIT.match(line):
            on_gpu, on_cpu = int(split[1]), int(split[2])
            delegations.append(Delegation("GPU", "gpu", on_gpu, on_gpu + on_cpu, None))
            listing = False
        elif told := _APPLIED.search(line):
            applied, extent = family(told[1] or told[3]), _extent(told[2] or told[4])
        elif _REFUSES.match(line):
            listing = True
        elif listing and (operator := _REFUSED.match(line)) and len(refused) < _MAX_REFUSED:
            refused.append(f"{operator[1]}: {operator[2].strip() or 'no reason printed'}")
        elif line.strip():
            listing = False
    return Residency(_main(delegations), applied, extent, tuple(refused))


def _main(delegations: list[Delegation]) -> tuple[Delegation, ...]:
    """Drops the GPU delegate's own count where the runtime's line with partitions says the same."""
    exact = {(d.family, d.nodes_delegated) for d in delegations if d.partitions is not None}
    return tuple(d for d in delegations if d.partitions is not None or (d.family, d.nodes_delegated) not in exact)


def _extent(word: str) -> Extent:
    return next(extent for extent in get_args(Extent) if extent == word)
