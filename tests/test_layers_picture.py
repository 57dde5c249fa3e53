"""The deviation of the picture's colours is folded into the first norm, exactly; every byte keeps its integer."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from layer_faults import _write, op_of, planted_in, stored
from torch import nn

from edge_seg.backbones.base import BACKBONES, PYRAMIDS
from edge_seg.contract import ClassInfo
from edge_seg.converters.convert import convert_many
from edge_seg.converters.exported import open_exported
from edge_seg.converters.flatbuffer import read_graph
from edge_seg.converters.layers.verify import verify_layers
from edge_seg.export import export_network
from edge_seg.layers.ops import Normalize
from edge_seg.layers.picture import CenteredPicture, fold_deviation
from edge_seg.models.base import MODELS

NAMES = MODELS.names()


class Body(nn.Module):
    """A body with a backbone that is only its stem."""

    def __init__(self, mean=(128.0,) * 3, std=(128.0,) * 3, *, bias=False, norm=True):
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=bias))
        if norm:
            self.backbone.append(nn.BatchNorm2d(4))
            self.backbone[1].running_mean.uniform_(-1, 1)
            self.backbone[1].running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self.backbone(self.normalize(x))


def pictures() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("name", NAMES)
def test_the_fold_changes_no_number_of_a_body(name):
    torch.manual_seed(2)
    body = MODELS[name](num_classes=3, input_px=64).eval().body.double()
    folded = fold_deviation(copy.deepcopy(body))
    same_colours = len(set(body.normalize.mean)) == 1
    assert isinstance(folded.normalize, CenteredPicture) is same_colours
    with torch.inference_mode():
        wanted, found = body(pictures()), folded(pictures())
    for key, values in wanted.items():
        assert torch.equal(found[key], values), key  # the deviation is a power of two


def test_an_odd_deviation_changes_rounding_only_and_trained_parameters_stay():
    body = Body(mean=(127.5,) * 3, std=(58.0,) * 3).double().eval()
    folded = fold_deviation(copy.deepcopy(body))
    torch.testing.assert_close(folded(pictures()), body(pictures()), rtol=1e-12, atol=1e-6)  # 1 / 58 is a float32
    for (path, one), (_, other) in zip(body.named_parameters(), folded.backbone.named_parameters(), strict=True):
        assert torch.equal(one, other), path


def test_padding_is_the_mean_colour_before_and_after():
    """By hand: a picture of the mean colour everywhere gives the same number at the border as inside."""
    body = fold_deviation(Body().eval())
    y = body(torch.full((1, 3, 5, 5), 128.0))
    assert torch.equal(y, y[:, :, 2:3, 2:3].expand_as(y))


@pytest.mark.parametrize(
    "body",
    [
        Body(mean=(100.0, 110.0, 120.0)),
        Body(std=(50.0, 60.0, 70.0)),
        Body(bias=True),
        Body(norm=False),
        nn.Sequential(nn.ReLU()),
    ],
)
def test_what_cannot_be_folded_stays_as_it_is(body):
    before = copy.deepcopy(body.state_dict())
    assert fold_deviation(body) is body
    assert not isinstance(getattr(body, "normalize", None), CenteredPicture)
    assert all(torch.equal(v, before[k]) for k, v in body.state_dict().items())


def test_every_backbone_begins_with_the_convolution_and_the_norm_that_the_fold_looks_for():
    seen: list[nn.Module] = []
    for registry, name in [(r, name) for r in (BACKBONES, PYRAMIDS) for name in r.names()]:
        seen.clear()
        backbone = registry[name]().eval()
        for module in backbone.modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                module.register_forward_hook(lambda m, *_: seen.append(m))
        with torch.inference_mode():
            backbone(torch.zeros(1, 3, 64, 64))
        first = [next(m for m in backbone.modules() if isinstance(m, kind)) for kind in (nn.Conv2d, nn.BatchNorm2d)]
        assert seen[:2] == first, name


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Exported folder and files by scheme of a small network; every picture of its calibration is grey."""
    folder = tmp_path_factory.mktemp("picture")
    torch.manual_seed(0)
    network = MODELS["maskconver_lite_256"](num_classes=2, input_px=64).eval()
    classes = [ClassInfo(i + 1, f"class {i}", True, (0, 0, 0)) for i in range(2)]
    grey = [np.full((64, 64, 3), level, np.uint8) for level in (90, 140)]
    exported = export_network(network, classes, {}, folder / "exported")
    done = convert_many(exported, ("fp32", "w8a8"), out=folder, calibration=grey)
    return exported, {one.scheme: one.file for one in done}


@pytest.mark.slow
def test_in_an_int8_file_every_byte_less_the_mean_is_itself(converted):
    """Also bytes that no picture of the calibration has."""
    graph = read_graph(converted[1]["w8a8"])
    first = graph.ops[0]
    assert (first.name, graph.tensors[first.outputs[0]].shape) == ("ADD", (1, 64, 64, 3))
    source, result = graph.tensors[first.inputs[0]], graph.tensors[first.outputs[0]]
    assert (source.scale[0], source.zero_point[0]) == (1.0, -128)
    assert (result.scale[0], result.zero_point[0]) == (1.0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["fp32", "w8a8"])
def test_a_wrong_mean_is_found_and_named(scheme, converted, tmp_path):
    exported, files = converted

    def fault(model, graph):
        index = stored(graph, op_of(graph, "normalize.add").inputs[1])
        values = graph.constant(index)
        _write(model, graph, index, (values + 2).astype(values.dtype))

    assert verify_layers(files[scheme], exported).first_divergence is None
    wrong = planted_in(files[scheme], open_exported(exported), fault, tmp_path)
    assert verify_layers(wrong, exported).first_divergence.module == "normalize.add"
