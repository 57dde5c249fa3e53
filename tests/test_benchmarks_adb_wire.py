"""The runner over the real `adb` client and a protocol stand-in for the device, which is never a phone."""

import json
import shutil
import socket
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from adb_stand_in import StandIn
from click.testing import CliRunner

from edge_seg.benchmarks import bench
from edge_seg.benchmarks.adb.client import Adb, Phone
from edge_seg.benchmarks.result import load_records
from edge_seg.commands.devices import devices
from edge_seg.errors import InputError, MissingHere

SHIMS = Path(__file__).parent / "data" / "adb_shims"
ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00" + (183).to_bytes(2, "little") + bytes(44)
PROFILE = """
name = "stand_in"
title = "A protocol stand-in, never a phone"
soc = "none"
runner = "adb"
delegates = ["xnnpack"]
threads = 4
cpu_mask = "0xf0"
precision = "file"
sessions = 1
min_runs = 64
min_time_s = 0.1
max_time_s = 5.0
target_ci_pct = 2.0
cool_down_s = 0.0
start_below_c = 37.0
"""

pytestmark = pytest.mark.skipif(shutil.which("adb") is None, reason="the adb client is not installed here")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def attach(tmp_path, monkeypatch):
    """Attaches stand-ins to an adb server of the test's own, which is ended with the test."""
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(free_port()))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    open_ones = []

    def start(*trouble):
        one = StandIn(tmp_path / f"device{len(open_ones)}", SHIMS, trouble)
        open_ones.append(one)
        subprocess.run(["adb", "connect", one.serial], capture_output=True, timeout=30, check=False)
        return one

    yield start
    subprocess.run(["adb", "kill-server"], capture_output=True, timeout=30, check=False)
    for one in open_ones:
        one.close()


@pytest.fixture
def wish(tmp_path, monkeypatch):
    """Returns a function that measures two files; what it writes lies in `wish.out`."""
    binary = tmp_path / "tool" / "benchmark_model"
    binary.parent.mkdir()
    binary.write_bytes(ELF + b"/system/bin/linker64\0gpu_precision_loss_allowed\0")
    monkeypatch.setenv("EDGE_SEG_BENCHMARK_MODEL", str(binary))
    contract = SimpleNamespace(model=SimpleNamespace(name="net", scheme="w8a8"))
    monkeypatch.setattr("edge_seg.converters.metadata.read_contract", lambda path: contract)
    files = []
    for name in ("a", "b"):
        files.append(tmp_path / f"{name}.tflite")
        files[-1].write_bytes(name.encode() * 5000)
    (tmp_path / "stand_in.toml").write_text(PROFILE)

    def measure(address="", profile=PROFILE):
        (tmp_path / "stand_in.toml").write_text(profile + (f'address = "{address}"\n' if address else ""))
        return bench.benchmark(
            files,
            [tmp_path / "stand_in.toml"],
            images=[np.zeros((8, 8, 3), np.uint8)],
            out=tmp_path / "out" / "results.json",
            clocks=bench.Clocks(utc=lambda: datetime(2026, 1, 2, tzinfo=UTC)),
        )

    measure.out = tmp_path / "out"
    return measure


def test_commands_files_and_exit_codes_go_over_the_wire(attach, tmp_path):
    one = attach()
    phone = Phone(Adb(), one.serial)
    assert phone.state() == "device"
    printed = phone.shell("echo out; echo bad >&2; exit 7")
    assert (printed.code, sorted(printed.text.split())) == (7, ["bad", "out"])
    raw = subprocess.run(
        ["adb", "-s", one.serial, "shell", "echo out; echo bad >&2; exit 9"],
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (raw.returncode, raw.stdout, raw.stderr) == (9, b"out\n", b"bad\n")
    sent, back = tmp_path / "sent", tmp_path / "back"
    sent.write_bytes(np.random.default_rng(0).bytes(400_000))
    phone.push(sent, "/data/local/tmp/sent")
    phone.pull("/data/local/tmp/sent", back)
    assert back.read_bytes() == sent.read_bytes()
    with pytest.raises(MissingHere, match="could not be copied from"):
        phone.pull("/data/local/tmp/none", back)


def test_two_files_are_measured_and_nothing_of_ours_stays_on_the_device(attach, wish):
    one = attach()
    records = wish()
    assert [r.delegate_actual for r in records] == ["xnnpack", "xnnpack"]
    first = records[0]
    assert (first.median_ms, first.p95_ms, first.min_ms, first.n, first.warmup_n) == (2.05, 2.4, 1.8, 64, 3)
    assert (first.nodes_delegated, first.nodes_total) == (66, 66)
    assert first.kind == "emulated"  # the stand-in says it is no real device
    assert first.device["name"] == "protocol stand-in, never a phone"
    assert not first.valid
    assert first.samples_file is None
    assert (first.environment["skin_c"], first.environment["battery_c_after"]) == (31.5, 25.5)
    assert (one.root / "state" / "mask").read_text() == "f0\n"
    assert list((one.root / "tmp").iterdir()) == []
    log = (wish.out / first.protocol["log_file"]).read_text()
    assert "Inference timings in us" in log
    assert load_records(wish.out / "results.json") == records
    assert one.serial not in (wish.out / "results.json").read_text()


def test_a_partly_delegated_file_says_so(attach, wish):
    attach()
    profile = PROFILE.replace('["xnnpack"]', '["gpu"]')
    record = wish(profile=profile)[0]
    assert (record.delegate_requested, record.delegate_actual) == ("gpu", "gpu")
    assert (record.nodes_delegated, record.nodes_total, record.protocol["partitions"]) == (60, 66, 5)
    assert record.precision == "fp16"
    assert any("60 of 66 nodes ran on gpu" in text for text in record.warnings)


def test_two_devices_are_measured_at_the_same_time(attach, wish):
    attach()
    attach()
    with pytest.raises(InputError, match="2 Android devices are attached"):
        wish()
    records = wish("all")
    assert len(records) == 4
    assert len({r.device["id"] for r in records}) == 2


def test_a_link_that_is_cut_in_the_middle_keeps_what_was_measured(attach, wish):
    one, two = attach("cut"), attach()
    with pytest.raises(MissingHere, match=r"not attached|is offline|was cut") as caught:
        wish(f"{one.serial},{two.serial}")
    assert "2 records are kept" in str(caught.value)
    assert len(load_records(wish.out / "results.json")) == 2
    partial = [path.read_text() for path in (wish.out / "logs").glob("*.failed.txt")]
    assert len(partial) == 1
    assert "STARTING!" in partial[0]
    assert "Inference timings" not in partial[0]


@pytest.mark.parametrize(
    ("trouble", "error", "says"),
    [
        ("unauthorized", MissingHere, "does not trust this computer"),
        ("asleep", MissingHere, "is asleep"),
        ("full", MissingHere, "is full"),
        ("full_at_push", MissingHere, "is full"),
        ("x86_64", InputError, "is not for the processor"),
    ],
)
def test_a_device_that_cannot_be_measured_says_why_and_is_left_clean(attach, wish, trouble, error, says):
    one = attach(trouble)
    with pytest.raises(error, match=says) as caught:
        wish()
    assert caught.value.exit_code == (3 if error is MissingHere else 2)
    assert caught.value.todo
    assert list((one.root / "tmp").iterdir()) == []


def test_the_verb_lists_stand_ins_with_their_state(attach):
    good, bad = attach(), attach("unauthorized")
    told = json.loads(CliRunner().invoke(devices, ["--json"], catch_exceptions=False).stdout)
    states = {row["serial"]: row["state"] for row in told["attached"]}
    assert states[good.serial] == "device"
    assert states[bad.serial] in ("unauthorized", "authorizing", "offline")
    assert told["adb"]["version"]
    text = CliRunner().invoke(devices, [], catch_exceptions=False).stdout
    assert f"{good.serial}  device" in text
