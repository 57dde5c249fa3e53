"""BlendMask in a converted file: no TRANSPOSE, one XNNPACK partition in float and int8. On a backbone of few layers."""

import numpy as np
import pytest
import torch
from conftest import warm_up_batchnorm
from torch import nn

from edge_seg.backbones.base import PYRAMIDS, PyramidBackbone
from edge_seg.contract import ClassInfo
from edge_seg.converters.convert import convert_many
from edge_seg.converters.flatbuffer import read_graph
from edge_seg.converters.interpreter import TfliteRunner
from edge_seg.converters.verify import verify
from edge_seg.export import export_network
from edge_seg.layers.conv import SameConv2d
from edge_seg.models.blendmask import BlendMask, BlendMaskOptions

SIDE = 64
CLASSES = [ClassInfo(i + 1, f"class {i}", True, (i, i, i)) for i in range(3)]


def strided(inputs, outputs):
    return nn.Sequential(SameConv2d(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU6())


class FewLayers(PyramidBackbone):
    """Five strided convolutions, in place of MobileNetV2's fifty: conversion takes its time per operation."""

    channels = (8, 8, 16, 16)

    def __init__(self):
        super().__init__()
        self.stem = strided(3, 8)
        self.blocks = nn.ModuleList([strided(8, 8), strided(8, 8), strided(8, 16), strided(16, 16)])
        self.stages = ()

    def forward(self, x):
        maps, x = [], self.stem(x)
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return tuple(maps)


def pictures(count=4):
    rng = np.random.default_rng(1)
    coarse = np.kron(rng.integers(0, 256, (count, 8, 8, 3)), np.ones((1, 8, 8, 1)))
    return np.clip(coarse + rng.normal(0, 12, coarse.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The mobile form with few channels, as float and as int8 file."""
    folder = tmp_path_factory.mktemp("blendmask")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PYRAMIDS._entries, "few_layers", FewLayers)
        torch.manual_seed(2)
        network = BlendMask("tiny", "few_layers", SIDE, len(CLASSES), BlendMaskOptions(width=16, basis_width=8))
    warm_up_batchnorm(network, SIDE)
    export_network(network, CLASSES, {}, folder / "exported")
    made = convert_many(folder / "exported", ["fp32", "w8a8"], out=folder / "out", calibration=pictures())
    return folder / "exported", {m.scheme: m for m in made}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["fp32", "w8a8"])
def test_there_is_no_transpose_and_one_partition(converted, scheme):
    made = converted[1][scheme]
    assert set(made.ops) == {"CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "RESIZE_BILINEAR"}
    assert made.transposes == 0
    told = TfliteRunner(made.file).xnnpack_partitions()
    assert (told.partitions, told.outside) == (1, ())


@pytest.mark.slow
def test_the_float_file_computes_what_the_network_computes(converted):
    folder, made = converted
    assert verify(made["fp32"].file, folder).passed


@pytest.mark.slow
def test_each_level_has_an_int8_box_output_with_a_step_of_its_own(converted):
    graph = read_graph(converted[1]["w8a8"].file)
    scaled = [op for op in graph.ops if "limits" in graph.source(op)]
    assert len(scaled) == 3
    steps = [float(graph.tensors[op.outputs[0]].scale[0]) for op in scaled]
    assert len(set(steps)) == 3
    assert all(step < 12 / 255 for step in steps)
