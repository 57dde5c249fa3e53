"""A small network of our own, exported as the export step does it; what the converter tests share."""

from __future__ import annotations

import functools
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save as save_safetensors
from torch import nn

from edge_seg.artifact import write_bytes, write_manifest
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
from edge_seg.converters.convert import SCHEMES, Converted, convert_many
from edge_seg.converters.exported import open_exported, read_reference

SIDE = 48
CLASSES = 5
ZEROED_CHANNEL = 3


class ConvNormAct(nn.Sequential):
    def __init__(self, cin, cout, kernel, stride=1, groups=1, padding=None):
        conv = nn.Conv2d(
            cin, cout, kernel, stride, kernel // 2 if padding is None else padding, groups=groups, bias=False
        )
        super().__init__(conv, nn.BatchNorm2d(cout), nn.ReLU6())


class Normalise(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, groups=3)
        nn.init.constant_(self.conv.weight, 1 / 127.5)
        nn.init.constant_(self.conv.bias, -1.0)

    def forward(self, image):
        return self.conv(image)


class TinyNet(nn.Module):
    """4x4 stride 2, depthwise, a ModuleList, a bilinear upsampling, an add and two heads."""

    def __init__(self):
        super().__init__()
        self.normalise = Normalise()
        self.stem = ConvNormAct(3, 16, 4, stride=2, padding=1)
        self.stages = nn.ModuleList([ConvNormAct(16, 16, 4, stride=2, groups=16, padding=1), ConvNormAct(16, 24, 1)])
        self.lateral = nn.Conv2d(16, 24, 1)
        self.heads = nn.ModuleList([nn.Conv2d(24, CLASSES, 3, padding=1), nn.Conv2d(24, 8, 1)])

    def forward(self, image):
        fine = self.stem(self.normalise(image))
        coarse = fine
        for stage in self.stages:
            coarse = stage(coarse)
        up = nn.functional.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.heads[0](torch.relu(up + self.lateral(fine))), torch.relu(self.heads[1](coarse))


class Nhwc(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, image_nhwc):
        outputs = self.body(image_nhwc.permute(0, 3, 1, 2))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return tuple(o.permute(0, 2, 3, 1) for o in outputs)


def tiny_contract():
    classes = tuple(ClassInfo(i + 1, f"klass {i}", i % 2 == 0, (i, 10 * i, 255 - i)) for i in range(CLASSES))
    return Contract(
        model=ModelInfo("tiny", "tiny", "panoptic", SIDE, 1, 1, 1, 0, "Apache-2.0", {"name": "edge_seg"}),
        input=InputTensor("image", (1, SIDE, SIDE, 3)),
        preprocess=Preprocess((128, 128, 128), (127.5,) * 3, (127.5,) * 3),
        outputs=(
            OutputTensor("semantic", "semantic", (1, SIDE // 2, SIDE // 2, CLASSES), 2),
            OutputTensor("features", "features", (1, SIDE // 4, SIDE // 4, 8), 4, "relu"),
        ),
        classes=classes,
        decoder=DecoderInfo("none", {"score": 0.5}, (DecoderConstant("embedding", (CLASSES, 8)),)),
    )


def tiny_net():
    torch.manual_seed(0)
    net = TinyNet().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.bias, 0.3)
            nn.init.uniform_(module.weight, 2.0, 4.0)
    nn.init.zeros_(net.stem[0].weight[ZEROED_CHANNEL])  # a dead channel, as the shared ImageNet weights have
    return net


def save_program(net, path, side=SIDE):
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(net, (torch.zeros(1, side, side, 3),)), path)


def smooth_pictures(count, seed=0, side=SIDE):
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.integers(0, 256, (count, side // 8, side // 8, 3)), np.ones((1, 8, 8, 1)))
    return np.clip(coarse + rng.normal(0, 8, coarse.shape), 0, 255).astype(np.uint8)


def write_exported(folder):
    """Writes a whole exported folder of the tiny network."""
    folder.mkdir(parents=True, exist_ok=True)
    contract, wrapped = tiny_contract(), Nhwc(tiny_net()).eval()
    save_program(wrapped, folder / "model.pt2")
    contract.save(folder / "contract.json")
    embedding = np.arange(CLASSES * 8, dtype=np.float32).reshape(CLASSES, 8)
    write_bytes(folder / "decoder.safetensors", save_safetensors({"embedding": embedding}))
    inputs = smooth_pictures(2)
    with torch.inference_mode():
        outputs = [o.numpy() for o in wrapped(torch.from_numpy(inputs).float())]
    arrays = {o.name: outputs[i] for i, o in enumerate(contract.outputs)}
    np.savez(
        folder / "reference.npz", inputs_nhwc_u8=inputs, float32_error_of_range=np.full(len(outputs), 1e-7), **arrays
    )
    for name in ("model.pt2", "contract.json", "decoder.safetensors", "reference.npz"):
        write_manifest(folder / name, kind="exported", step="export", config={})
    return folder


@functools.cache
def _root():
    keeper = tempfile.TemporaryDirectory(prefix="edge_seg_tests_")
    return keeper, Path(keeper.name)  # the keeper lives as long as the process and removes the folder then


@functools.cache
def exported_folder() -> Path:
    """One exported folder for the whole test run; tests that change it work on a copy."""
    return write_exported(_root()[1] / "exported")


@functools.cache
def converted_files() -> dict[str, Converted]:
    """The four schemes, converted once for the whole test run; read only."""
    made = convert_many(
        exported_folder(), SCHEMES, out=_root()[1] / "converted", calibration=smooth_pictures(8, seed=1)
    )
    return {c.scheme: c for c in made}


@functools.cache
def converted_module(name: str, factory, *, side: int = 16) -> Path:
    """Converts a small module to a bare float .tflite; `factory()` returns it, input [1, side, side, 3]."""
    from edge_seg.converters.routes import ROUTES

    folder = _root()[1] / "modules"
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    wrapped = Nhwc(factory()).eval()
    with torch.no_grad():
        shapes = [tuple(o.shape) for o in wrapped(torch.zeros(1, side, side, 3))]
    save_program(wrapped, folder / f"{name}.pt2", side)
    contract = tiny_contract()
    contract = Contract(
        model=contract.model,
        input=InputTensor("image", (1, side, side, 3)),
        preprocess=contract.preprocess,
        outputs=tuple(OutputTensor(f"out{i}", "out", s, 1) for i, s in enumerate(shapes)),
        classes=contract.classes,
        decoder=contract.decoder,
    )
    file = folder / f"{name}.tflite"
    file.write_bytes(ROUTES["litert"](folder / f"{name}.pt2", contract))
    return file


def test_the_tiny_network_has_a_readable_exported_folder():
    exported = open_exported(exported_folder())
    reference = read_reference(exported)
    assert reference.inputs_nhwc_u8.shape == (2, SIDE, SIDE, 3)
    assert reference.outputs["semantic"].shape == (2, SIDE // 2, SIDE // 2, CLASSES)


@pytest.mark.parametrize("name", ["semantic", "features"])
def test_the_reference_outputs_of_the_tiny_network_are_not_constant(name):
    reference = read_reference(open_exported(exported_folder()))
    assert reference.outputs[name].std() > 0.05
