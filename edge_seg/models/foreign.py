"""Other projects' checkpoints: for each project and family, whose licence the weights carry and how names map."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from edge_seg.registry import Registry


@dataclass(frozen=True)
class Foreign:
    """How one project's checkpoints of one family are read.

    Attributes:
        licence: Terms of the project's weights, as far as its licence file tells; kept with what is made from them.
        names: Their name of each tensor of a network, by ours; raises InputError for a network without counterpart.
        state: From a network and the project's tensors by name to a whole state of the network, strictly; raises
            ArtifactError for tensors that do not fit.
    """

    licence: str
    names: Callable[[Any], Mapping[str, str]]
    state: Callable[[Any, Mapping[str, Tensor]], dict[str, Tensor]]


FOREIGN: Registry[Foreign] = Registry("kind of checkpoint", "edge_seg.models")
"""By "PROJECT/FAMILY", for example "adelaidet/blendmask"."""
