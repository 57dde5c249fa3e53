"""Size and cost of registered networks, for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge_seg.models.base import MODELS


def describe(name: str, num_classes: int | None, input_px: int) -> dict[str, Any]:
    """Returns a network's figures.

    Args:
        name: Registered name.
        num_classes: Number of classes; None takes that of the network's published data set.
        input_px: Side of the input; 0 takes the network's own.
    """
    given = {} if num_classes is None else {"num_classes": num_classes}
    network = MODELS[name](input_px=input_px, **given)
    return {
        "name": name,
        "family": network.family,
        "task": network.task,
        "input_px": network.input_px,
        "num_classes": network.num_classes,
        "params": sum(p.numel() for p in network.parameters()),
        **network.macs(),
        "decoder": network.decoder_name,
        "outputs": [o.name for o in network.export_graph().outputs],
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the figures as aligned text."""
    lines = [f"{'name':26} {'input':>6} {'params':>10} {'GMAC':>7} {'graph':>7} {'decoder':>8}"]
    lines += [
        f"{r['name']:26} {r['input_px']:>4}px {r['params']:>10,} {r['macs'] / 1e9:>7.3f} "
        f"{r['macs_graph'] / 1e9:>7.3f} {r['macs_decoder'] / 1e9:>8.3f}"
        for r in rows
    ]
    return "\n".join(lines)
