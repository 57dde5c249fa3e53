"""What tells one processor from another of the same name."""

from __future__ import annotations

import pytest

from edge_seg.benchmarks import machine

XEON = """processor\t: 0
cpu family\t: 6
model\t\t: 207
model name\t: Intel(R) Xeon(R) Processor
stepping\t: 2
flags\t\t: fpu avx2 hypervisor {extra}

processor\t: 1
cpu family\t: 6
model\t\t: 1
stepping\t: 1
flags\t\t: fpu
"""
ARM = (
    "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\nCPU implementer\t: 0x41\nCPU part\t: 0xd4d\nCPU revision\t: 1\n"
)


@pytest.mark.parametrize(
    ("told", "number", "features"),
    [
        (XEON.format(extra="avx512_vnni amx_int8"), "6 207 2", ["avx2", "avx512_vnni", "amx_int8"]),
        (XEON.format(extra=""), "6 207 2", ["avx2"]),
        (ARM, "0x41 0xd4d 1", ["asimddp", "i8mm"]),
        ("", None, None),
    ],
)
def test_the_first_core_tells_its_number_and_what_int8_kernels_may_use(told, number, features, monkeypatch):
    monkeypatch.setattr(machine, "_cpuinfo", lambda: told)
    device = machine.host_device()
    assert (device["cpu_id"], device["int8_features"]) == (number, features)


def test_this_machine_says_the_same_twice():
    assert machine.host_device() == machine.host_device()
