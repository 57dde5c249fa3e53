"""GroupNorm in the form for export: the same numbers, whole on every delegate, and compared layer by layer."""

from __future__ import annotations

import contextlib
import copy
import math

import numpy as np
import pytest
import torch
from layer_faults import channel_flipped, op_of, planted_in
from mirror_networks import SIDE, export_folder
from test_converters_tinynet import smooth_pictures
from torch import nn

from edge_seg.converters.check import check
from edge_seg.converters.convert import convert_many
from edge_seg.converters.exported import open_exported
from edge_seg.converters.flatbuffer import read_graph
from edge_seg.converters.layers.figures import decibel
from edge_seg.converters.layers.values import FileValues, _changed, _has_mean_of_squares
from edge_seg.converters.layers.verify import verify_layers
from edge_seg.errors import ArtifactError
from edge_seg.layers.norm import PooledGroupNorm, pooled_group_norms
from edge_seg.models.base import MODELS


def group_norm(groups, channels, eps=1e-5):
    norm = nn.GroupNorm(groups, channels, eps=eps)
    nn.init.normal_(norm.weight, 1.0, 0.5)
    nn.init.normal_(norm.bias, 0.0, 0.5)
    return norm


@pytest.mark.parametrize(("groups", "channels"), [(1, 6), (3, 6), (6, 6), (32, 64)])
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_the_form_for_export_is_group_norm(groups, channels, offset):
    torch.manual_seed(groups)
    norm = group_norm(groups, channels, eps=0.3).double()
    x = torch.randn(1, channels, 5, 7, dtype=torch.float64) * 3 + offset
    torch.testing.assert_close(PooledGroupNorm(norm).double()(x), norm(x), rtol=0, atol=1e-5)


def test_an_even_map_has_no_variance_and_becomes_the_offset():
    norm = group_norm(2, 4)
    out = PooledGroupNorm(norm)(torch.full((1, 4, 3, 3), 7.0))
    torch.testing.assert_close(out, norm.bias.detach().reshape(1, 4, 1, 1).expand_as(out))


@pytest.mark.parametrize("name", ["blendmask_rt_mnv2_gn_m7", "blendmask_base_mnv2", "solov2_light_mnv2"])
@pytest.mark.parametrize("fold", [True, False])
def test_published_networks_are_exported_without_group_norm_and_compute_the_same(name, fold):
    torch.manual_seed(1)
    network = MODELS[name](num_classes=3, input_px=64).eval()
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.normal_(module.bias, 0.0, 0.1)
    exported = network.export_graph(fold=fold).body
    assert not [m for m in exported.modules() if isinstance(m, nn.GroupNorm)]
    assert [m for m in network.body.modules() if isinstance(m, nn.GroupNorm)], "the network itself stays as it is"
    if not fold:
        image = torch.rand(1, 3, 64, 64) * 255
        with torch.inference_mode():
            wanted, found = network.body(image), exported(image)
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-4 * float(value.abs().max()))


class Grouped(nn.Module):
    """A convolution, GroupNorm, ReLU, and one more."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.relu = nn.Conv2d(3, 32, 4, 2, 1), group_norm(8, 32), nn.ReLU()
        self.head = nn.Conv2d(32, 4, 1)

    def forward(self, image):
        return self.head(self.relu(self.norm(self.stem(image))))


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    """The exported folder of a network with a GroupNorm, and its float files by scheme."""
    folder = tmp_path_factory.mktemp("grouped")
    torch.manual_seed(4)
    net = Grouped()
    exported = export_folder(pooled_group_norms(copy.deepcopy(net)), folder / "exported")
    made = convert_many(exported, ("fp32", "fp16"), out=folder / "out", calibration=smooth_pictures(4, side=SIDE))
    return exported, {one.scheme: one.file for one in made}


@pytest.mark.slow
@pytest.mark.parametrize("delegate", ["gpu", "xnnpack"])
def test_a_network_with_group_norm_runs_whole_on_delegates(delegate, grouped):
    verdict = check(grouped[1]["fp32"], delegate)
    assert verdict.fully_delegable, verdict.findings
    assert verdict.partitions == 1


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["fp32", "fp16"])
def test_every_layer_of_group_norm_has_its_counterpart(scheme, grouped):
    folder, files = grouped
    report = verify_layers(files[scheme], folder)
    assert (report.passed, report.complete) == (True, True), report.text()
    modules = {row.module for row in report.layers}
    assert modules >= {f"norm.{part}" for part in ("group_mean", "mean", "group_variance", "scale")}
    assert not [note for note in report.notes if "no counterpart" in note]
    assert scheme != "fp32" or [note for note in report.notes if "means of squares" in note]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["mean", "scale"])
def test_a_fault_inside_group_norm_is_found(part, grouped, tmp_path):
    folder, files = grouped
    file = planted_in(files["fp32"], open_exported(folder), channel_flipped(f"norm.{part}", 3), tmp_path)
    assert op_of(read_graph(file), f"norm.{part}").name == "CONV_2D"
    first = verify_layers(file, folder).first_divergence
    assert first is not None
    assert (first.module, first.kind) == (f"norm.{part}", "weight"), first.text


def test_half_precision_that_overflows_is_the_worst_ratio():
    """Squares of what is centred pass 65504 in the emulated fp16 column of the network above."""
    assert decibel(1.0, math.inf) == decibel(0.0, 1.0) == decibel(1.0, math.nan) == -math.inf
    assert decibel(1.0, 0.0) == math.inf
    assert decibel(100.0, 1.0) == 20.0


@pytest.mark.slow
@pytest.mark.parametrize("squares", [True, False])
def test_only_behind_a_mean_of_squares_may_keeping_tensors_change_the_rounding(squares, grouped, monkeypatch):
    values = FileValues(grouped[1]["fp32"], "xnnpack")
    assert _has_mean_of_squares(values.graph)
    monkeypatch.setattr("edge_seg.converters.layers.values._changed", lambda plain, kept: 1e-6)  # whatever is here
    if not squares:
        monkeypatch.setattr("edge_seg.converters.layers.values._has_mean_of_squares", lambda graph: False)
    with contextlib.nullcontext() if squares else pytest.raises(ArtifactError, match="keeps every tensor"):
        values.run(smooth_pictures(1, side=SIDE)[0])


def test_what_keeping_tensors_may_change_is_the_rounding_of_floats():
    plain = np.array([0.0, 1.0, 4.0], np.float32)
    assert _changed(plain, plain.copy()) == 0.0
    assert _changed(plain, plain + np.float32(2e-6)) == pytest.approx(5e-7, rel=0.2)
    assert _changed(plain, np.array([0.0, np.nan, 4.0], np.float32)) == np.inf
    assert _changed(np.array([1, 2], np.int8), np.array([1, 3], np.int8)) == np.inf
