"""The host runner on a real converted file."""

import numpy as np
import pytest

from edge_seg.benchmarks.bench import benchmark
from edge_seg.benchmarks.profile import load_profile
from edge_seg.benchmarks.runner import RUNNERS
from edge_seg.errors import InputError

PROFILE = """
name = "quick"
title = "This machine, in a moment"
soc = "host"
runner = "host"
delegates = ["xnnpack", "none"]
threads = 1
cpu_mask = "{mask}"
precision = "{precision}"
sessions = 1
min_runs = 4
min_time_s = 0.0
max_time_s = 0.2
target_ci_pct = 50.0
cool_down_s = 0.0
"""


@pytest.fixture(scope="module")
def tiny_file(tiny_exported, tmp_path_factory):
    from edge_seg.converters.convert import convert

    return convert(tiny_exported, scheme="fp32", out=tmp_path_factory.mktemp("converted")).file


def _profile(tmp_path, *, mask="", precision="file"):
    path = tmp_path / "quick.toml"
    path.write_text(PROFILE.format(mask=mask, precision=precision))
    return path


@pytest.mark.slow
def test_a_real_file_is_measured_with_and_without_its_delegate(tiny_file, tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8)
    with_xnnpack, without = benchmark(
        [tiny_file], [_profile(tmp_path, mask="0x1")], images=[image], out=tmp_path / "r.json"
    )
    assert with_xnnpack.delegate_actual == "xnnpack"
    assert without.delegate_actual == "none"
    assert without.nodes_delegated == 0
    assert with_xnnpack.nodes_delegated == with_xnnpack.nodes_total > 10
    assert with_xnnpack.scheme == "fp32"
    assert without.median_ms > with_xnnpack.median_ms
    assert all(value > 0 for value in with_xnnpack.stages.values())
    assert with_xnnpack.init_ms > 0
    assert with_xnnpack.kind == "measured"


@pytest.mark.slow
def test_a_closed_file_does_not_run_and_a_precision_is_not_promised(tiny_file, tmp_path):
    runner = RUNNERS["host"]()
    executor = runner.open(tiny_file, load_profile(_profile(tmp_path)), "xnnpack")
    executor.close()
    with pytest.raises(InputError, match="closed"):
        executor.step(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(InputError, match="precision"):
        runner.open(tiny_file, load_profile(_profile(tmp_path, precision="fp16")), "xnnpack")
