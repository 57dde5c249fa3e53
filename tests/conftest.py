"""Fixtures of the whole suite: shared data, a tiny network with plausible statistics, and its exported folder.

`tiny_checkpoint` and `tiny_exported` are read-only: copy before changing. Nothing heavy is imported until a test asks.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
if "torch" in sys.modules:
    sys.modules["torch"].set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
TINY_INPUT_PX = 64
_WARM_UP_PASSES = 4


def _shared_folder() -> Path:
    named = os.environ.get("EDGE_SEG_SHARED")
    return Path(named) if named else ROOT.parent / "shared"


def _cuda_works() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests that need what this machine has not, with the reason."""
    cuda = any(item.get_closest_marker("gpu") for item in items) and _cuda_works()
    for item in items:
        if item.get_closest_marker("gpu") and not cuda:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; none is usable here"))
        if item.get_closest_marker("phone") and not shutil.which("adb"):
            item.add_marker(pytest.mark.skip(reason="needs an attached phone; adb is not installed here"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The project's shared folder (its data in `shared_dir / "data"`), or a skip that says how to get it."""
    folder = _shared_folder()
    if not (folder / "data").is_dir():
        pytest.skip(f"no shared data at {folder}: set EDGE_SEG_SHARED, or place it beside the checkout")
    return folder


def tiny_settings(name: str = "maskconver_mnv2_256", **model: Any) -> Any:
    """Returns the settings of a tiny experiment on `synthetic:easy` at 64 pixels."""
    from edge_seg.training.settings import DataSettings, ModelSettings, OptimSettings, TrainSettings

    return TrainSettings(
        data=DataSettings("synthetic:easy"),
        model=ModelSettings(name, input_px=TINY_INPUT_PX, **model),
        optim=OptimSettings(steps=1, batch_size=2),
    )


def warm_up_batchnorm(network: Any, input_px: int) -> None:
    """Fills BatchNorm statistics with the average over a few seeded random batches, then evaluation mode."""
    import torch
    from torch import nn

    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    momentum = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _ in range(_WARM_UP_PASSES):
            coarse = torch.rand(4, 3, input_px // 8, input_px // 8, generator=generator) * 255
            network.train().body(nn.functional.interpolate(coarse, scale_factor=8.0, mode="bilinear"))
    for norm, before in zip(norms, momentum, strict=True):
        norm.momentum = before
    network.eval()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained maskconver_mnv2_256 at 64 pixels with the classes of `synthetic:easy`, as a checkpoint file."""
    import torch

    from edge_seg.data.source import open_dataset
    from edge_seg.training.checkpoint import build_network, save_checkpoint

    settings = tiny_settings()
    classes = open_dataset("synthetic:easy", split="val").classes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(settings, classes)
    warm_up_batchnorm(network, TINY_INPUT_PX)
    path = tmp_path_factory.mktemp("tiny") / "model.safetensors"
    save_checkpoint(path, network.state_dict(), settings=settings, classes=classes, step=0)
    return path


@pytest.fixture(scope="session")
def tiny_exported(tiny_checkpoint: Path) -> Path:
    """The exported folder of `tiny_checkpoint`."""
    from edge_seg.export import export

    return export(tiny_checkpoint, tiny_checkpoint.parent / "exported").folder


@pytest.fixture
def edge_seg(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The program as a function: `edge_seg("models", "--json")` gives exit code, stdout and stderr."""
    from cli_run import Program

    return Program(monkeypatch, capsys)
