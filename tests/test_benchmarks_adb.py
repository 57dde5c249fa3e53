"""The adb runner with a made-up client: every way a phone can fail, flags, and what a record says. No adb needed."""

import json
import random
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from test_benchmarks_parsers import RESULT, damaged

from edge_seg.benchmarks import bench
from edge_seg.benchmarks.adb import facts
from edge_seg.benchmarks.adb.attached import Attached, choose, read_list
from edge_seg.benchmarks.adb.client import Adb, Completed, DeviceError, Phone, run_process
from edge_seg.benchmarks.adb.elf import check_fits, read_program
from edge_seg.benchmarks.adb.tool import arguments, find_tool
from edge_seg.benchmarks.parser import Delegation, Residency
from edge_seg.benchmarks.profile import load_profile
from edge_seg.benchmarks.result import load_records, samples_path
from edge_seg.benchmarks.runner import RUNNERS, ToolRunner
from edge_seg.benchmarks.runners.adb import AdbRunner, actual_delegate
from edge_seg.commands.devices import devices
from edge_seg.errors import EdgeSegError, InputError, MissingHere

LOGS = Path(__file__).parent / "data" / "benchmark_logs"
GPU_LOG = (LOGS / "tensorflow_43541_gpu.txt").read_text()
NEW_LOG = """INFO: STARTING!
VERBOSE: Replacing 66 out of 66 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 1 partitions.
INFO: count=3 first=2500 curr=2000 min=1900 max=2500 avg=2100 std=262 p5=1900 median=2000 p95=2500
INFO: count=64 first=2000 curr=2100 min=1800 max=9000 avg=2105 std=20 p5=1850 median=2050 p95=2400
INFO: Inference timings in us: Init: 800, First inference: 2500, Warmup (avg): 2100, Inference (avg): 2105
"""
# a Samsung A52 as posted at https://android.stackexchange.com/questions/246774, shortened
THERMAL = """IsStatusOverride: false
Thermal Status: 0
Cached temperatures:
\tTemperature{mValue=99.0, mType=0, mName=AP, mStatus=0}
HAL Ready: true
Current temperatures from HAL:
\tTemperature{mValue=25.6, mType=0, mName=AP, mStatus=0}
\tTemperature{mValue=23.8, mType=2, mName=BAT, mStatus=0}
\tTemperature{mValue=24.7, mType=3, mName=LRB, mStatus=0}
\tTemperature{mValue=25.7, mType=5, mName=PA, mStatus=0}
\tTemperature{mValue=0.0, mType=2, mName=SUBBAT, mStatus=0}
Current cooling devices from HAL:
"""
BATTERY = "Current Battery Service state:\n  AC powered: false\n  USB powered: true\n  level: 80\n  temperature: 255\n"
PROPERTIES = {
    "ro.product.manufacturer": "Maker",
    "ro.product.model": "Phone 8",
    "ro.soc.model": "Chip G3",
    "ro.product.cpu.abi": "arm64-v8a",
    "ro.product.cpu.abilist": "arm64-v8a,armeabi-v7a",
    "ro.build.version.release": "14",
    "ro.build.version.sdk": "34",
}
PROFILE = """
name = "fake_phone"
title = "A phone that is not there"
soc = "none"
runner = "adb"
delegates = ["xnnpack"]
threads = 4
cpu_mask = "0xf0"
precision = "file"
sessions = 1
min_runs = 64
min_time_s = 1.0
max_time_s = 5.0
target_ci_pct = 2.0
cool_down_s = 0.0
"""


def elf(machine=183, bits=64, tail=b"/system/bin/linker64\0gpu_precision_loss_allowed\0"):
    head = b"\x7fELF" + bytes([bits // 32, 1, 1]) + bytes(9) + b"\x03\x00" + machine.to_bytes(2, "little")
    return head + bytes(44) + tail


class FakePhones:
    """Answers as the adb client would; `says` replaces what a command on the device prints."""

    def __init__(self, *serials):
        self.states = dict.fromkeys(serials or ["S1"], "device")
        self.calls, self.says, self.log, self.code = [], {}, {}, {}
        self.pushes, self.push_complaint, self.pulled = [], "", b""
        self.lost_after_runs, self.runs = {}, dict.fromkeys(self.states, 0)
        self.silent = ""

    def __call__(self, argv, timeout_s):
        assert isinstance(argv, list)
        self.calls.append(argv)
        if argv[1:] == ["version"]:
            return Completed(0, b"Android Debug Bridge version 1.0.41\nVersion 29.0.6\n", b"")
        if argv[1:] == ["devices", "-l"]:
            rows = [f"{serial} {state} product:p model:Phone_8" for serial, state in self.states.items()]
            return Completed(0, ("List of devices attached\n" + "\n".join(rows) + "\n\n").encode(), b"")
        assert argv[1] == "-s", "the serial number is always given"
        serial, verb = argv[2], argv[3]
        state = self.states.get(serial, "gone")
        if state != "device":
            complaint = {"gone": f"error: device '{serial}' not found", "offline": "error: device offline"}
            return Completed(1, b"", complaint.get(state, f"error: device {state}.").encode())
        return getattr(self, verb.replace("-", "_"))(serial, argv[4:])

    def get_state(self, serial, rest):
        return Completed(0, b"device\n", b"")

    def push(self, serial, rest):
        self.pushes.append((serial, Path(rest[0]).name, rest[1]))
        if self.push_complaint and rest[1].endswith("model.tflite"):
            return Completed(1, b"", self.push_complaint.encode())
        return Completed(0, b"1 file pushed\n", b"")

    def pull(self, serial, rest):
        Path(rest[1]).write_bytes(self.pulled)
        return Completed(0, b"1 file pulled\n", b"")

    def shell(self, serial, rest):
        (script,) = rest
        inside = re.fullmatch(r"\( (.*) \) 2>&1; edge_seg_code=\$\?; echo; echo edge_seg_exit=\$edge_seg_code", script)
        command, code, text = inside[1], 0, ""
        if self.silent and self.silent in command:
            return Completed(None, b"half an ans", b"")
        for part, answer in self.says.items():
            if part in command:
                code, text = answer if isinstance(answer, tuple) else (0, answer)
                return Completed(0, f"{text}\nedge_seg_exit={code}\n".encode(), b"")
        if command == "getprop":
            text = "".join(f"[{key}]: [{value}]\n" for key, value in PROPERTIES.items())
        elif command == "dumpsys power":
            text = "POWER MANAGER\n  mWakefulness=Awake\n"
        elif command == "dumpsys thermalservice":
            text = THERMAL
        elif command == "dumpsys battery":
            text = BATTERY
        elif command.startswith("df "):
            text = "Filesystem 1K-blocks Used Available Use% Mounted on\n/dev/x\n 9000000 100 8000000 1% /data\n"
        elif "kill -0" in command:
            code = 1
        elif "scaling_governor" in command:
            text = "sched_pixel\n1803000\n"
        elif "benchmark_model --graph" in command:
            self.runs[serial] += 1
            if self.runs[serial] > self.lost_after_runs.get(serial, 99):
                self.states[serial] = "gone"
                return Completed(1, b"INFO: STARTING!\nINFO: count=3 fir", b"error: closed")
            log = self.log.get(self.runs[serial], NEW_LOG)
            text, code = log, self.code.get(self.runs[serial], 0)
        return Completed(0, f"{text}\nedge_seg_exit={code}\n".encode(), b"")

    def commands(self, part):
        return [argv[4] for argv in self.calls if argv[3:4] == ["shell"] and part in argv[4]]


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Files, a program and a function that measures them on made-up phones."""
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    binary = tmp_path / "tool" / "benchmark_model"
    binary.parent.mkdir()
    binary.write_bytes(elf())
    monkeypatch.setenv("EDGE_SEG_BENCHMARK_MODEL", str(binary))
    contract = SimpleNamespace(model=SimpleNamespace(name="net", scheme="w8a8"))
    monkeypatch.setattr("edge_seg.converters.metadata.read_contract", lambda path: contract)
    files = [tmp_path / "a.tflite", tmp_path / "my 'b'; rm -rf x.tflite"]
    for file in files:
        file.write_bytes(file.name.encode() * 100)
    slept_s = []

    def measure(phones, profile=PROFILE, some=files):
        (tmp_path / "fake_phone.toml").write_text(profile)
        RUNNERS["adb"]
        monkeypatch.setitem(RUNNERS._entries, "adb", lambda: AdbRunner(Adb(phones, "adb"), sleep_s=slept_s.append))
        images, out = [np.zeros((8, 8, 3), np.uint8)], tmp_path / "out" / "results.json"
        return bench.benchmark(some, [tmp_path / "fake_phone.toml"], images=images, out=out)

    return SimpleNamespace(measure=measure, out=tmp_path / "out", binary=binary, slept_s=slept_s, files=files)


def test_a_record_says_what_the_program_gave_and_why_the_rest_is_unknown(lab):
    phones = FakePhones()
    record = lab.measure(phones)[0]
    assert (record.median_ms, record.p95_ms, record.min_ms, record.n) == (2.05, 2.4, 1.8, 64)
    assert (record.ci95_median_ms, record.p90_ms, record.samples_file, record.outliers) == (None, None, None, None)
    assert all("no raw samples" in record.unknown[key] for key in ("ci95_median_ms", "samples_file", "outliers"))
    assert record.valid is False
    assert any("no interval" in text for text in record.warnings)
    assert (record.delegate_requested, record.delegate_actual) == ("xnnpack", "xnnpack")
    assert (record.nodes_delegated, record.nodes_total, record.protocol["partitions"]) == (66, 66, 1)
    assert record.device["name"] == "Maker Phone 8"
    assert (record.device["soc"], record.device["os"], record.kind) == ("Chip G3", "Android 14 (API 34)", "measured")
    assert record.environment["thermal_status"] == "none"
    assert (record.environment["temperature_c"], record.environment["temperature_c_after"]) == (25.6, 25.6)
    assert (record.environment["governor"], record.environment["frequency_mhz"]) == ("sched_pixel", 1803.0)
    assert (record.environment["battery_pct"], record.environment["charging"]) == (80, True)
    assert record.environment["gpu_c"] is None
    assert record.unknown["environment.gpu_c"] == "the device does not say"
    with pytest.raises(InputError, match="no raw samples"):
        samples_path(lab.out / "results.json", record)
    assert load_records(lab.out / "results.json")[0] == record


def test_androids_emulator_is_no_phone(lab, monkeypatch):
    for key in ("ro.kernel.qemu", "ro.boot.qemu"):
        with monkeypatch.context() as patch:
            patch.setitem(PROPERTIES, key, "1")
            assert lab.measure(FakePhones())[0].kind == "emulated"


def test_every_none_of_a_record_has_a_reason(lab):
    document = lab.measure(FakePhones())[0].to_json()
    known = document["unknown"]
    nothing = [key for key, value in document.items() if value is None]
    nothing += [
        f"{k}.{j}" for k in ("stages", "drift", "environment", "runtime") for j, v in document[k].items() if v is None
    ]
    assert [key for key in nothing if key not in known] == []


def test_the_phone_is_pinned_and_the_users_file_names_never_reach_its_shell(lab):
    phones = FakePhones()
    lab.measure(phones)
    runs = phones.commands("benchmark_model --graph")
    assert len(runs) == 2
    assert all("taskset f0 /data/local/tmp/edge_seg/benchmark_model --graph=" in run for run in runs)
    assert all(flag in runs[0] for flag in ("--num_threads=4", "--num_runs=64", "--min_secs=1", "--max_secs=5"))
    assert not any("rm -rf x" in argv[4] for argv in phones.calls if argv[3:4] == ["shell"])
    assert [remote for _, _, remote in phones.pushes].count("/data/local/tmp/edge_seg/model.tflite") == 2
    assert "rm -rf /data/local/tmp/edge_seg" in phones.calls[-1][4]
    assert phones.commands("chmod 755 /data/local/tmp/edge_seg/benchmark_model")


def test_an_old_build_without_a_median_leaves_it_unknown_and_a_gpu_claim_is_kept_as_told(lab):
    phones = FakePhones()
    phones.log[1] = GPU_LOG
    record = lab.measure(phones, PROFILE.replace('["xnnpack"]', '["gpu"]'), lab.files[:1])[0]
    assert record.median_ms is None
    assert record.unknown["median_ms"] == record.unknown["stages.run_ms"]
    assert record.delegate_actual == "gpu"
    assert (record.nodes_delegated, record.nodes_total) == (None, None)
    assert "did not print" in record.unknown["nodes_delegated"]
    assert record.protocol["avg_ms"] == 119.375


def test_litert_results_come_from_its_message_and_its_libraries_go_along(lab):
    lab.binary.write_bytes(elf(tail=b"/system/bin/linker64\0gpu-precision\0"))
    (lab.binary.parent / "libLiteRtOpenClAccelerator.so").write_bytes(b"x")
    phones = FakePhones()
    phones.pulled = RESULT
    phones.log[1] = NEW_LOG.replace("count=64", "count=50")
    profile = PROFILE.replace('["xnnpack"]', '["gpu"]')
    record = lab.measure(phones, profile, lab.files[:1])[0]
    assert (record.median_ms, record.p95_ms, record.peak_memory_mb, record.n) == (10.25, 11.5, 33.5, 50)
    assert "libLiteRtOpenClAccelerator.so" in [name for _, name, _ in phones.pushes]
    (run,) = phones.commands("benchmark_model --graph")
    assert "--use_cpu=false --use_gpu=true --gpu-precision=fp16" in run
    assert "LD_LIBRARY_PATH=/data/local/tmp/edge_seg" in run
    assert record.delegate_actual is None  # only XNNPACK printed a share; what the GPU did is not inferred
    assert "does not say whether gpu ran" in record.unknown["delegate_actual"]
    phones.log[2] = NEW_LOG
    with pytest.raises(InputError, match="of two runs"):
        lab.measure(phones, profile, lab.files[:1])


@pytest.mark.parametrize(
    ("state", "says", "todo"),
    [
        ("unauthorized", "does not trust this computer", "accept this computer's key"),
        ("authorizing", "does not trust this computer", "accept this computer's key"),
        ("offline", "is offline", "plug it in again"),
        ("no permissions (user in plugdev group; are your udev rules wrong?)", "no permissions", "udev"),
        ("recovery", "is recovery", "start Android"),
    ],
)
def test_a_phone_that_is_not_ready_says_why(lab, state, says, todo):
    phones = FakePhones()
    phones.states["S1"] = state
    with pytest.raises(MissingHere, match=says) as caught:
        lab.measure(phones)
    assert todo in caught.value.todo
    assert caught.value.exit_code == 3


def test_which_phones_an_address_means(monkeypatch):
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    ready, asleep = Attached("S1", "device"), Attached("S2", "offline")
    assert choose([ready], "") == ["S1"]
    assert choose([ready, asleep], "all") == ["S1"]
    assert choose([ready, asleep], "S1") == ["S1"]
    with pytest.raises(InputError, match="2 Android devices") as caught:
        choose([ready, asleep], "")
    assert "S2 (offline)" in str(caught.value)
    with pytest.raises(MissingHere, match="S2 is offline"):
        choose([ready, asleep], "S1,S2")
    with pytest.raises(MissingHere, match="S3 is not attached"):
        choose([ready], "S3")
    with pytest.raises(MissingHere, match="No Android device"):
        choose([], "")
    with pytest.raises(InputError, match="named twice"):
        choose([ready], "S1,S1")
    with pytest.raises(MissingHere, match="S2 is offline"):
        choose([asleep], "all")
    monkeypatch.setenv("ANDROID_SERIAL", "S1")
    assert choose([ready, asleep], "") == ["S1"]


def test_the_list_of_adb_is_read_with_its_odd_lines():
    text = "* daemon not running; starting now at tcp:5037\nList of devices attached\n"
    text += "R58 device usb:1-2 product:beyond1 model:SM_G973F transport_id:3\n"
    text += "0123 no permissions (user in plugdev group); see [http://x]\n\nemulator-5554\toffline\n"
    found = read_list(text)
    assert [(d.serial, d.state) for d in found] == [
        ("R58", "device"),
        ("0123", "no permissions"),
        ("emulator-5554", "offline"),
    ]
    assert found[0].facts == {"usb": "1-2", "product": "beyond1", "model": "SM_G973F", "transport_id": "3"}


def test_without_a_client_or_a_program_it_is_said_how_to_get_one(lab, monkeypatch):
    monkeypatch.setenv("EDGE_SEG_ADB", "no-such-adb")
    with pytest.raises(MissingHere, match="adb is not installed") as caught:
        Adb()
    assert "platform-tools" in caught.value.todo
    monkeypatch.delenv("EDGE_SEG_BENCHMARK_MODEL")
    with pytest.raises(MissingHere, match="No benchmark program") as caught:
        lab.measure(FakePhones())
    assert "EDGE_SEG_BENCHMARK_MODEL" in caught.value.todo


def test_a_client_that_cannot_be_run_or_does_not_answer_is_named():
    with pytest.raises(MissingHere, match="cannot be run"):
        run_process(["/no/such/program"], 1.0)
    assert run_process(["sleep", "5"], 0.1).code is None
    with pytest.raises(MissingHere, match="cannot list"):
        Adb(lambda argv, timeout_s: Completed(1, b"", b"cannot connect to daemon"), "adb").list()


@pytest.mark.parametrize("serial", ["-rf", "a b", "", "x;y", "a" * 200])
def test_a_serial_number_that_cannot_be_one_never_becomes_an_argument(serial):
    calls = []
    with pytest.raises(InputError, match="serial number"):
        Adb(lambda argv, timeout_s: calls.append(argv), "adb").call(serial, ["get-state"])
    assert calls == []


@pytest.mark.parametrize(
    ("says", "error", "what"),
    [
        ({"dumpsys power": "  mWakefulness=Asleep\n"}, MissingHere, "S1 is asleep"),
        ({"dumpsys power": "  mWakefulness=Dozing\n"}, MissingHere, "S1 is dozing"),
        (
            {"df -k": "Filesystem 1K-blocks Used Available Use% Mounted on\n/x 9 9 2000 99% /data\n"},
            MissingHere,
            "is full",
        ),
        ({"mkdir": (1, "mkdir: '/data/local/tmp/edge_seg': No space left on device\n")}, MissingHere, "is full"),
        ({"mkdir": (1, "mkdir: Permission denied\n")}, MissingHere, "refused a command"),
        ({"kill -0": ""}, MissingHere, "is busy with another run"),
        ({"getprop": "[ro.product.cpu.abi]: [x86_64]\n"}, InputError, "is not for the processor"),
    ],
)
def test_a_phone_in_a_wrong_state_is_refused_before_anything_runs(lab, says, error, what):
    phones = FakePhones()
    phones.says = says
    with pytest.raises(error, match=what) as caught:
        lab.measure(phones)
    assert "nothing was measured" in str(caught.value)
    assert phones.commands("benchmark_model --graph") == []
    if "kill -0" in says:  # another's run, and its files, are left alone
        assert phones.pushes == []
        assert phones.commands("rm -rf") == []


@pytest.mark.parametrize(
    "part", ["dumpsys power", "df -k", "dumpsys thermalservice", "dumpsys battery", "scaling_governor"]
)
def test_what_a_phone_does_not_tell_is_none_and_does_not_stop_the_run(lab, part):
    phones = FakePhones()
    phones.says = {part: (1, "sh: not found\n")}
    record = lab.measure(phones)[0]
    lost = {"dumpsys power": "wakefulness", "dumpsys battery": "battery_pct", "scaling_governor": "governor"}
    lost["dumpsys thermalservice"] = "thermal_status"
    if part in lost:
        assert record.environment[lost[part]] is None
        assert record.environment[f"{lost[part]}_after"] is None


def test_a_full_storage_found_while_copying_is_said(lab):
    phones = FakePhones()
    phones.push_complaint = "adb: error: failed to copy: remote write failed: No space left on device"
    with pytest.raises(MissingHere, match="storage of S1 is full"):
        lab.measure(phones)
    phones.push_complaint = "adb: error: failed to copy: remote secure_mkdirs failed"
    with pytest.raises(MissingHere, match="could not be copied to S1"):
        lab.measure(phones)


def test_a_cable_pulled_in_the_middle_keeps_the_finished_file_and_the_half_log(lab):
    phones = FakePhones()
    phones.lost_after_runs["S1"] = 1
    with pytest.raises(MissingHere, match="S1 is not attached") as caught:
        lab.measure(phones)
    assert "1 records are kept" in caught.value.todo
    (record,) = load_records(lab.out / "results.json")
    assert record.median_ms == 2.05
    (half,) = (lab.out / "logs").glob("*.failed.txt")
    assert half.read_text() == "INFO: STARTING!\nINFO: count=3 fir"


def test_a_phone_that_stops_answering_meets_the_time_limit(lab):
    phones = FakePhones()
    phones.silent = "benchmark_model --graph"
    with pytest.raises(MissingHere, match="did not answer in 126 s"):
        lab.measure(phones)
    assert "kill $(cat /data/local/tmp/edge_seg/pid); rm -rf" in phones.calls[-1][4]


@pytest.mark.parametrize("end", [b"", b"edge_seg_exit=", b"edge_seg_exit=0x"])
def test_an_answer_without_an_end_is_a_cut_link_even_where_adb_reports_success(end):
    def cut(argv, timeout_s):
        return Completed(0, b"device\n" if argv[3] == "get-state" else b"text without its end\n" + end, b"")

    with pytest.raises(DeviceError, match="was cut") as caught:
        Phone(Adb(cut, "adb"), "S1").shell("getprop")
    assert caught.value.output == b"text without its end\n" + end


def test_one_phone_that_is_lost_does_not_disturb_the_other(lab):
    phones = FakePhones("S1", "S2")
    phones.lost_after_runs["S1"] = 0
    with pytest.raises(MissingHere, match="S1 is not attached") as caught:
        lab.measure(phones, PROFILE + 'address = "all"\n')
    assert "2 records are kept" in caught.value.todo
    assert len({r.device["id"] for r in load_records(lab.out / "results.json")}) == 1
    assert "S2" not in (lab.out / "results.json").read_text()  # only a hash of the serial number


def test_a_lost_phone_ends_the_call_after_the_session_in_which_it_was_lost(lab):
    phones = FakePhones("S1", "S2")
    phones.lost_after_runs["S1"] = 0
    with pytest.raises(MissingHere, match="S1 is not attached"):
        lab.measure(phones, PROFILE.replace("sessions = 1", "sessions = 3") + 'address = "all"\n')
    assert phones.runs["S2"] == 2


def test_a_file_that_the_program_refuses_does_not_keep_the_other_from_being_measured(lab):
    phones = FakePhones()
    phones.log[1], phones.code[1] = "INFO: STARTING!\nERROR: Failed to apply GPU delegate.\n", 1
    with pytest.raises(InputError, match="failed") as caught:
        lab.measure(phones)
    assert "exit code 1" in str(caught.value)
    assert "Failed to apply GPU delegate" in str(caught.value)
    assert len(load_records(lab.out / "results.json")) == 1
    assert len(phones.commands("benchmark_model --graph")) == 2


def test_a_log_that_ends_early_is_a_failure_even_with_exit_code_zero(lab):
    phones = FakePhones()
    phones.log[1] = NEW_LOG.rsplit("INFO: Inference", 1)[0]
    with pytest.raises(InputError, match="holds no result"):
        lab.measure(phones, some=lab.files[:1])


def test_sessions_take_the_files_forth_and_back(lab):
    phones = FakePhones()
    lab.measure(phones, PROFILE.replace("sessions = 1", "sessions = 2"))
    models = [name for _, name, remote in phones.pushes if remote.endswith("model.tflite")]
    assert models == [lab.files[i].name for i in (0, 1, 1, 0)]


def test_a_warm_phone_cools_down_first_and_one_that_never_does_is_given_up(lab):
    phones, profile = FakePhones(), PROFILE + "start_below_c = 30.0\n"
    answers = iter(["  temperature: 350\n", "  temperature: 310\n", *["  temperature: 290\n"] * 99])
    phones.says = {}
    original = phones.shell
    phones.shell = lambda serial, rest: (
        Completed(0, f"{next(answers)}\nedge_seg_exit=0\n".encode(), b"")
        if "dumpsys battery" in rest[0]
        else original(serial, rest)
    )
    record = lab.measure(phones, profile, lab.files[:1])[0]
    assert lab.slept_s == [10.0, 10.0]
    assert (record.environment["start_temperature_c"], record.environment["cooled_s"]) == (29.0, 20.0)
    hot = FakePhones()
    hot.says = {"dumpsys battery": "  temperature: 500\n"}
    with pytest.raises(MissingHere, match="does not cool down"):
        lab.measure(hot, profile)


def test_a_phone_that_hides_its_temperature_is_measured_with_a_warning(lab):
    phones = FakePhones()
    phones.says = {"dumpsys battery": "", "dumpsys thermalservice": ""}
    record = lab.measure(phones, PROFILE + "start_below_c = 30.0\n")[0]
    assert any("start condition was not checked" in text for text in record.warnings)


def test_heat_and_sleep_during_a_run_are_warned_of(lab):
    phones = FakePhones()
    phones.says = {"dumpsys thermalservice": THERMAL.replace("Thermal Status: 0", "Thermal Status: 3")}
    record = lab.measure(phones, some=lab.files[:1])[0]
    assert any("severe throttling after the run" in text for text in record.warnings)


def test_a_posted_thermal_report_is_read_and_sensors_that_are_not_there_are_left_out():
    told = facts.thermal(THERMAL)
    assert (told["cpu_c"], told["skin_c"], told["battery_c"], told["gpu_c"]) == (25.6, 24.7, 23.8, None)
    assert facts.thermal("")["thermal_status"] is None
    absent = (
        "Temperature{mValue=0.0, mType=1, mName=GPU, mStatus=0} Temperature{mValue=-5.0, mType=3, mName=S, mStatus=0}"
    )
    assert (facts.thermal(absent)["gpu_c"], facts.thermal(absent)["skin_c"]) == (None, -5.0)
    assert facts.battery("  temperature: x\n") == {"battery_pct": None, "battery_c": None, "charging": None}


def test_programs_for_other_processors_and_systems_are_told_apart(tmp_path):
    file = tmp_path / "benchmark_model"
    for machine, bits, abi in ((183, 64, "arm64-v8a"), (40, 32, "armeabi-v7a"), (62, 64, "x86_64"), (3, 32, "x86")):
        file.write_bytes(elf(machine, bits))
        assert read_program(file).abi == abi
    check_fits(read_program(file), [], file, "S1")  # a phone that does not say what it runs is tried
    with pytest.raises(InputError, match="not for the processor"):
        check_fits(read_program(file), ["arm64-v8a", "armeabi-v7a"], file, "S1")
    file.write_bytes(elf(tail=b"/lib/ld-linux-aarch64.so.1\0"))
    with pytest.raises(InputError, match="built for Linux"):
        check_fits(read_program(file), ["arm64-v8a"], file, "S1")
    for wrong in (b"", b"#!/bin/sh\n", elf()[:40], b"MZ" + bytes(100), elf()[:5] + b"\x02" + elf()[6:], elf(machine=8)):
        file.write_bytes(wrong)
        with pytest.raises(InputError, match=r"not a program|has not"):
            read_program(file)


@pytest.mark.parametrize(
    ("mark", "delegate", "precision", "flags"),
    [
        (b"gpu_precision_loss_allowed", "xnnpack", "file", "--use_xnnpack=true"),
        (b"gpu_precision_loss_allowed", "xnnpack", "fp16", "--use_xnnpack=true --xnnpack_force_fp16=true"),
        (b"gpu_precision_loss_allowed", "none", "file", "--use_xnnpack=false"),
        (b"gpu_precision_loss_allowed", "gpu", "fp32", "--use_gpu=true --gpu_precision_loss_allowed=false"),
        (
            b"gpu_precision_loss_allowed",
            "nnapi",
            "fp16",
            "--use_nnapi=true --disable_nnapi_cpu=true --nnapi_allow_fp16=true",
        ),
        (b"gpu-precision", "xnnpack", "file", "--use_cpu=true --use_gpu=false --result_file_path=/d/results.pb"),
        (
            b"gpu-precision",
            "gpu",
            "fp32",
            "--use_cpu=false --use_gpu=true --gpu-precision=fp32 --result_file_path=/d/results.pb",
        ),
        (b"gpu-precision", "nnapi", "file", None),
        (b"gpu-precision", "xnnpack", "fp16", None),
        (b"gpu_precision_loss_allowed", "xnnpack", "fp32", None),
        (b"gpu_precision_loss_allowed", "xnnpak", "file", None),
    ],
)
def test_each_program_is_asked_in_its_own_flags(lab, tmp_path, mark, delegate, precision, flags):
    lab.binary.write_bytes(elf(tail=mark))
    (tmp_path / "fake_phone.toml").write_text(PROFILE.replace('precision = "file"', f'precision = "{precision}"'))
    profile, tool = load_profile(tmp_path / "fake_phone.toml"), find_tool()
    if flags is None:
        with pytest.raises(InputError, match=r"has no delegate|cannot be asked"):
            arguments(tool, profile, delegate, "/d")
    else:
        assert shlex.join(arguments(tool, profile, delegate, "/d")[5:]) == flags


def test_qualcomms_delegate_is_a_library_that_the_user_names(lab, tmp_path, monkeypatch):
    profile = PROFILE.replace('["xnnpack"]', '["qnn"]')
    with pytest.raises(MissingHere, match="Qualcomm's delegate is not here"):
        lab.measure(FakePhones(), profile)
    library = tmp_path / "libQnnTFLiteDelegate.so"
    library.write_bytes(b"x")
    monkeypatch.setenv("EDGE_SEG_QNN_DELEGATE", str(library))
    phones = FakePhones()
    record = lab.measure(phones, profile)[0]
    assert ("S1", library.name, f"/data/local/tmp/edge_seg/{library.name}") in phones.pushes
    assert record.delegate_actual is None  # the log names XNNPACK only


def test_a_file_that_is_no_benchmark_program_is_refused(tmp_path):
    for content in (b"", elf(tail=b"")):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(InputError, match="is not benchmark_model"):
            find_tool(str(tmp_path / "x"))
    with pytest.raises(InputError, match="There is no file"):
        find_tool(str(tmp_path / "y"))


def test_the_delegate_that_ran_is_what_the_log_says_and_never_inferred():
    def share(family, nodes):
        return Residency(delegations=(Delegation(family, family, nodes, 10, 1),))

    assert actual_delegate(share("gpu", 10), "gpu") == ("gpu", "")
    assert actual_delegate(share("gpu", 0), "gpu") == ("none", "")
    assert actual_delegate(share("xnnpack", 10), "gpu")[0] is None
    assert actual_delegate(Residency(applied="nnapi", extent="not"), "nnapi") == ("none", "")
    assert actual_delegate(Residency(applied="gpu", extent="partially"), "gpu") == ("gpu", "")
    assert actual_delegate(Residency(), "xnnpack")[0] is None
    assert actual_delegate(Residency(), "none")[0] is None


def test_whatever_a_phone_answers_it_gives_a_record_or_an_error_of_ours(lab):
    chance = random.Random(7)
    outcomes = {"measured": 0, "refused": 0}
    for _ in range(150):
        phones = FakePhones()
        original = phones.shell

        def shell(serial, rest, original=original):
            done = original(serial, rest)
            if chance.random() < 0.04 and done.stdout:
                return Completed(chance.choice((0, 1, 255, None)), damaged(done.stdout, chance), b"")
            return done

        phones.shell = shell
        phones.says = (
            {"df": "Available\n" + chance.choice(("²", "9" * 5000, "-1", "٣٤"))} if chance.random() < 0.2 else {}
        )
        try:
            lab.measure(phones, PROFILE + "start_below_c = 90.0\n", lab.files[:1])
            outcomes["measured"] += 1
        except EdgeSegError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 10, outcomes


def test_the_runner_is_found_by_name_and_is_one_that_measures_whole_files():
    assert isinstance(RUNNERS["adb"](), ToolRunner)
    assert not isinstance(RUNNERS["host"](), ToolRunner)


def test_the_verb_says_that_adb_is_missing_and_does_not_fail(monkeypatch):
    monkeypatch.setenv("EDGE_SEG_ADB", "no-such-adb")
    done = CliRunner().invoke(devices, ["--json"], catch_exceptions=False)
    told = json.loads(done.stdout)
    assert (done.exit_code, told["attached"], told["adb"]["program"]) == (0, [], None)
    assert "not installed" in told["adb"]["reason"]
    assert told["host"]["cores"]
    assert "not looked for" in CliRunner().invoke(devices, [], catch_exceptions=False).stdout
