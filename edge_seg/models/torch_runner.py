"""Runs a PyTorch network like a converted file, and describes it by the same contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edge_seg import __version__
from edge_seg.contract import (
    ClassInfo,
    Contract,
    DecoderConstant,
    DecoderInfo,
    InputTensor,
    ModelInfo,
    OutputTensor,
    Preprocess,
)
from edge_seg.models.base import ExportGraph, Network


class TorchRunner:
    """Runs a PyTorch network like a converted file.

    Args:
        network: The network; its body is copied.
        classes: Its classes.
        decoder: Decoder settings of the recipe.
        fold: Whether the exact rewrites of the export are applied.
    """

    def __init__(
        self,
        network: Network,
        classes: Sequence[ClassInfo],
        decoder: Mapping[str, Any],
        *,
        fold: bool = False,
    ) -> None:
        graph = network.export_graph(fold=fold, split_7x7=fold)
        self.contract = make_contract(network, graph, classes, decoder)
        self.constants = graph.constants
        self._body = graph.body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def __call__(self, input_hwc_u8: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Returns the outputs [1, h, w, c] by name for one letterboxed picture [H, W, 3]."""
        image = torch.from_numpy(input_hwc_u8.copy())[None].permute(0, 3, 1, 2).float()
        raw = self._body(image)
        return {k: np.ascontiguousarray(v.permute(0, 2, 3, 1).numpy()) for k, v in raw.items()}


def make_contract(
    network: Network, graph: ExportGraph, classes: Sequence[ClassInfo], decoder: Mapping[str, Any]
) -> Contract:
    """Describes an export graph.

    Args:
        network: The network it came from.
        graph: What is exported.
        classes: Class list.
        decoder: Decoder settings of the recipe.
    """
    side = network.input_px
    with torch.inference_mode():
        shapes = {k: v.shape for k, v in graph.body(torch.zeros(1, 3, side, side)).items()}
    outputs = tuple(
        OutputTensor(
            name=o.name,
            role=o.role,
            shape=(1, shapes[o.name][2], shapes[o.name][3], shapes[o.name][1]),
            stride_px=o.stride_px,
            activation=o.activation,
            level=o.level,
        )
        for o in graph.outputs
    )
    macs = network.macs()
    constants = tuple(DecoderConstant(k, tuple(v.shape)) for k, v in sorted(graph.constants.items()))
    return Contract(
        model=ModelInfo(
            name=network.name,
            family=network.family,
            task=network.task,
            input_px=side,
            params=sum(p.numel() for p in network.parameters()),
            macs=macs["macs"],
            macs_graph=macs["macs_graph"],
            macs_decoder=macs["macs_decoder"],
            licence=network.licence,
            producer={"name": "edge_seg", "version": __version__},
        ),
        input=InputTensor(name="image", shape=(1, side, side, 3)),
        preprocess=Preprocess(fill_rgb=network.fill_rgb, mean=network.mean_rgb, std=network.std_rgb),
        outputs=outputs,
        classes=tuple(classes),
        decoder=DecoderInfo(network.decoder_name, network.decoder_params(decoder), constants),
    )
