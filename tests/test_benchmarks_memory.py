"""Peak memory of a file in a process of its own."""

import mmap
import sys

import pytest

from edge_seg.benchmarks import bench, memory
from edge_seg.benchmarks.memory import PeakMemory
from edge_seg.benchmarks.profile import load_profile
from edge_seg.errors import MissingHere

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, which only Linux has")


def test_the_high_water_mark_rises_with_what_is_touched_and_stays():
    before = memory.status_bytes("VmRSS")
    # pages of its own: an allocator may hand out some that are counted already
    with mmap.mmap(-1, 64_000_000) as block:
        for place in range(0, len(block), mmap.PAGESIZE):
            block[place] = 1
        during = memory.status_bytes("VmRSS")
    assert during - before == pytest.approx(64e6, rel=0.1)
    assert memory.status_bytes("VmHWM") >= during - 2e6  # the kernel counts pages in batches per thread


def test_a_file_that_does_not_run_gives_the_childs_reason(tmp_path):
    (tmp_path / "broken.tflite").write_bytes(b"not a file")
    with pytest.raises(MissingHere, match=r"broken\.tflite did not run"):
        memory.peak_memory(tmp_path / "broken.tflite", "host_cpu_1t", "xnnpack")


@pytest.mark.slow
def test_a_real_file_needs_more_than_its_own_size_and_less_than_the_whole_process(tiny_exported, tmp_path):
    from edge_seg.converters.convert import convert

    file = convert(tiny_exported, scheme="fp32", out=tmp_path).file
    found = memory.peak_memory(file, "host_cpu_1t", "xnnpack", runs=2)
    assert file.stat().st_size / 1e6 < found.peak_mb < found.process_mb


def test_a_benchmark_that_is_asked_to_writes_the_peak_of_each_file(monkeypatch, tmp_path):
    asked = []

    def told(path, profile, delegate):
        asked.append((path.name, profile, delegate))
        return PeakMemory(10.0 * len(asked), 100.0)

    monkeypatch.setattr(bench, "peak_memory", told)
    files = [tmp_path / "a.tflite", tmp_path / "b.tflite"]
    found = bench._peaks_mb(files, ["host_cpu_1t", load_profile("host_cpu_2t"), "raspberry_pi_5"])
    assert asked == [("a.tflite", "host_cpu_1t", "xnnpack"), ("b.tflite", "host_cpu_1t", "xnnpack")]
    assert found == {("host_cpu_1t", "xnnpack", file): 10.0 * (n + 1) for n, file in enumerate(files)}
