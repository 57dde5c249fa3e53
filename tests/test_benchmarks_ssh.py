"""The ssh runner: every way a device can fail with stand-ins for the clients, and the whole path on a real sshd."""

import ast
import dataclasses
import getpass
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from benchmarks_ssh_stand_ins import InProcess, Pipes, PretendSsh
from test_converters_tinynet import converted_files

from edge_seg.benchmarks import bench, machine
from edge_seg.benchmarks.bench import Clocks, benchmark
from edge_seg.benchmarks.profile import load_profile, with_address
from edge_seg.benchmarks.remote import runner_script
from edge_seg.benchmarks.remote.device import environment
from edge_seg.benchmarks.remote.link import Finished, Link, SystemProcesses
from edge_seg.benchmarks.result import Samples, load_records, samples_path
from edge_seg.benchmarks.runners.emulated_arm import EmulatedArmRunner
from edge_seg.benchmarks.runners.ssh import Destination, SshRunner
from edge_seg.converters.interpreter import TfliteRunner
from edge_seg.errors import ArtifactError, InputError, MissingHere
from edge_seg.letterbox import letterbox_image

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 255, (60, 90, 3), dtype=np.uint8) for _ in range(3)]


def board(address="pi@board", **changes):
    """The profile of a Pi, made short, with this Python as the device's."""
    short = {"min_runs": 8, "min_time_s": 0.0, "max_time_s": 0.05, "target_ci_pct": 500.0, "sessions": 1}
    plain = {"python": sys.executable, "cpu_mask": "", "threads": 1, "cool_down_s": 0.0, "start_below_c": None}
    profile = dataclasses.replace(load_profile("raspberry_pi_5"), **{**short, **plain, **changes})
    return with_address(profile, address)


def left_over():
    return set(Path("/tmp").glob("edge_seg.????????"))


@pytest.fixture(scope="module")
def tflite():
    return converted_files()["w8a8"].file


@pytest.fixture(scope="module")
def fp32():
    return converted_files()["fp32"].file


@pytest.fixture
def use(monkeypatch):
    """Makes `benchmark` take these processes for the runner called ssh."""

    def set_processes(processes):
        monkeypatch.setattr(bench, "RUNNERS", {"ssh": lambda: SshRunner(processes, sleep_s=lambda s: None)})
        return processes

    return set_processes


def expected_digest(path, image):
    """What the same file gives on this machine, through the project's own runner."""
    runner = TfliteRunner(path)
    canvas, _ = letterbox_image(image, runner.contract.input_wh_px, runner.contract.preprocess.fill_rgb)
    runner.invoke(canvas)
    found = hashlib.sha256()
    for raw in runner.raw_outputs().values():
        found.update(raw.tobytes())
    return found.hexdigest()


# --- the script -----------------------------------------------------------------------------------------------------


def test_the_script_needs_python_3_8_numpy_and_a_runtime_and_nothing_of_ours():
    source = Path(runner_script.__file__).read_text()
    tree = ast.parse(source, feature_version=(3, 8))
    imported = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert imported - set(sys.stdlib_module_names) == {"numpy"}


def test_a_machine_without_a_runtime_is_told_from_one_without_numpy(monkeypatch):
    monkeypatch.setattr(runner_script, "RUNTIMES", (("not_there.interpreter", "not_there", "not-there"),))
    with pytest.raises(MissingHere, match="no TFLite runtime"), SshRunner(Pipes(InProcess())).session(board()):
        pass
    with pytest.raises(MissingHere, match="no NumPy"):
        # a Python without its installed packages
        run_session(PretendSsh(), board(python=f"{sys.executable} -I -S"))


def run_session(processes, profile):
    with SshRunner(processes).session(profile):
        pass


def test_an_emulated_processor_is_found_by_the_kernel_below_it(monkeypatch):
    monkeypatch.setattr(runner_script, "read", lambda path: "x86_64" if path.endswith("arch") else None)
    monkeypatch.setattr(runner_script.platform, "machine", lambda: "aarch64")
    assert runner_script.machine_facts()["emulated"] is True
    runner = SshRunner(Pipes(InProcess()))
    with runner.session(board()):
        assert runner.kind == "emulated"
        assert runner.device()["machine"] == "aarch64"


def test_a_board_tells_its_processors_number_and_instructions(monkeypatch):
    """The same file read twice, over the link and here; a board that names none is unknown, not an error."""
    runner = SshRunner(Pipes(InProcess()))
    with runner.session(board()):
        here, told = machine.host_device(), runner.device()
    assert [told[key] for key in ("cpu_id", "int8_features")] == [here[key] for key in ("cpu_id", "int8_features")]
    cores = "CPU implementer : 0x41\nCPU part : 0x{part}\nCPU revision : 1\nFeatures : asimd{more}\n"
    cpuinfo = cores.format(part="d05", more="") + "\n" + cores.format(part="d0d", more=" asimddp")
    old = "Processor : Armv8\nprocessor : 0\n\n" + cores.format(part="d03", more=" asimddp")  # of kernels before 4
    told = ((cpuinfo, "0x41 0xd05 1", []), (old, "0x41 0xd03 1", ["asimddp"]), (None, None, None))
    for text, number, features in told:
        monkeypatch.setattr(runner_script, "read", lambda path, text=text: text if path.endswith("cpuinfo") else None)
        with runner.session(board()):
            assert (runner.device()["cpu_id"], runner.device()["int8_features"]) == (number, features)


def test_a_pis_flags_are_read_and_named(monkeypatch, tmp_path):
    tool = tmp_path / "vcgencmd"
    tool.write_text("#!/bin/sh\necho throttled=0x50005\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert runner_script.throttled() == 0x50005
    tool.write_text("#!/bin/sh\necho 'VCHI initialization failed'\n")
    assert runner_script.throttled() is None


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        (0x0, 0x0, []),
        (0x50000, 0x50000, []),  # it happened before this session: not ours
        (0x0, 0x40004, ["throttled", "throttled since boot"]),
        (0x10000, 0x30002, ["Arm frequency capped", "Arm frequency capped since boot"]),
        (None, None, None),
    ],
)
def test_throttling_is_what_is_on_now_or_came_since_the_start(before, after, named):
    assert environment({"throttled": before}, {"throttled": after}, "3.11")["throttling"] == named


def test_an_open_files_delegate_is_counted_on_the_device_as_here(tflite, tmp_path, use):
    use(PretendSsh())
    record = benchmark([tflite], [board(delegates=("xnnpack", "none"))], images=IMAGES, out=tmp_path / "r.json")
    here = TfliteRunner(tflite).xnnpack_partitions()
    assert (record[0].delegate_actual, record[0].nodes_delegated) == ("xnnpack", here.nodes_delegated)
    assert record[0].nodes_total == here.nodes_total
    assert (record[1].delegate_actual, record[1].nodes_delegated) == ("none", 0)


# --- the whole path, with stand-ins for the clients -----------------------------------------------------------------


def test_two_files_are_measured_in_turn_and_nothing_is_left_on_the_device(tflite, fp32, tmp_path, use):
    before = left_over()
    processes = use(PretendSsh())
    records = benchmark([tflite, fp32], [board()], images=IMAGES, out=tmp_path / "r.json")
    assert [r.scheme for r in records] == ["w8a8", "fp32"]
    assert all(r.kind == "measured" and r.n >= 8 and r.median_ms > 0 and r.init_ms > 0 for r in records)
    assert all(r.stages["pre_ms"] is None and r.stages["post_ms"] is None for r in records)
    assert all({"stages.pre_ms", "stages.post_ms"} <= set(r.unknown) for r in records)
    samples = Samples.load(samples_path(tmp_path / "r.json", records[0]))
    assert (np.diff(samples.t_s) > 0).all()  # starts are the device's own clock
    assert list(samples.image_index[:6]) == [0, 1, 2, 0, 1, 2]
    assert left_over() == before
    for call in processes.calls:
        assert "BatchMode=yes" in call
        assert not any("StrictHostKeyChecking" in part for part in call)
        assert call[call.index("--") + 1 :][0].startswith(("pi@board", "/"))


@pytest.mark.parametrize("scheme", ["fp32", "w8a8"])
def test_the_device_computes_what_this_machine_computes(scheme):
    path = converted_files()[scheme].file
    runner, profile = SshRunner(PretendSsh()), board()
    with runner.session(profile):
        executor = runner.open(path, profile, "xnnpack")
        assert executor.digest(IMAGES[1]) == expected_digest(path, IMAGES[1])
        assert executor.digest(IMAGES[0]) != executor.digest(IMAGES[1])
        executor.close()


def test_a_cut_link_keeps_what_was_measured_and_says_so(tflite, fp32, tmp_path, use):
    # hello, state, 2 x open, 2 x (pictures, warm-up), then a few blocks
    use(PretendSsh(cut_after=60))
    with pytest.raises(MissingHere, match="stay connected"):
        benchmark(
            [tflite, fp32],
            [board(max_time_s=60.0, min_time_s=60.0, target_ci_pct=1e-9)],
            images=IMAGES,
            out=tmp_path / "r.json",
        )
    records = load_records(tmp_path / "r.json")
    assert [r.protocol["stopped_by"] for r in records] == ["lost", "lost"]
    assert all(r.n >= 8 and not r.valid for r in records)
    assert all(any("lost after" in warning for warning in r.warnings) for r in records)
    assert Samples.load(samples_path(tmp_path / "r.json", records[0])).run_ms.size == records[0].n


FAILURES = [
    (Finished(255, "", "ssh: Could not resolve hostname board: Name or service not known"), "is not reached"),
    (Finished(255, "", "ssh: connect to host board port 22: Connection refused"), "is not reached"),
    (Finished(255, "", "ssh: connect to host board port 22: Connection timed out"), "is not reached"),
    (Finished(255, "", "ssh: connect to host board port 22: No route to host"), "is not reached"),
    (Finished(255, "", "Host key verification failed."), "host key"),
    (Finished(255, "", "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @"), "host key"),
    (Finished(255, "", "pi@board: Permission denied (publickey,password)."), "does not let us in"),
    (Finished(73, "", "mktemp: failed to create directory: No space left on device"), "no space"),
    (Finished(1, "", "This account is currently not available."), "Cannot make a folder"),
    (Finished(0, "EDGE_SEG_FOLDER /tmp/x; rm -rf /\n", ""), "Cannot make a folder"),
]


@pytest.mark.parametrize(("done", "says"), FAILURES)
def test_a_device_that_cannot_be_used_is_told_apart_from_others(done, says):
    processes = PretendSsh()
    processes.answers["connect"] = done
    with pytest.raises(MissingHere, match=says) as caught:
        run_session(processes, board())
    assert caught.value.exit_code == 3
    assert caught.value.got
    assert caught.value.todo or says == "Cannot make a folder"


def test_no_python_on_the_device_is_its_own_error():
    with pytest.raises(MissingHere, match="no such Python"):
        run_session(PretendSsh(), board(python="python-that-is-not-there"))


def test_a_full_disk_is_seen_before_the_copy_and_during_it(tflite):
    processes = PretendSsh()
    full = "EDGE_SEG_FOLDER /tmp/edge_seg.abcdEFGH\nFilesystem x y z\n/dev/root 100 90 10 90% /tmp\n"
    processes.answers |= {"connect": Finished(0, full, ""), "scp": Finished(0, "", ""), "rm": Finished(0, "", "")}
    runner = SshRunner(Pipes(InProcess()))
    with runner.session(board()):
        runner._session[1]._free_kb = 10
        with pytest.raises(MissingHere, match="no space"):
            runner.open(tflite, board(), "xnnpack")
    processes.answers["scp"] = Finished(1, "", 'scp: write remote "x": No space left on device')
    with pytest.raises(MissingHere, match="no space"):
        run_session(processes, board())


def test_a_mask_that_the_device_has_not_is_refused_with_what_it_has():
    with pytest.raises(MissingHere, match=r"(?s)mask.*CPUs here"):
        run_session(Pipes(InProcess()), dataclasses.replace(board(), cpu_mask="0x80000000"))


def test_a_missing_ssh_client_is_missing_here(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingHere, match="ssh does not start"):
        run_session(SystemProcesses(), board())


def test_a_profile_without_an_address_says_how_to_give_one():
    with pytest.raises(MissingHere, match="raspberry_pi_5@user@host"):
        run_session(PretendSsh(), dataclasses.replace(board(), address=""))


@pytest.mark.parametrize(
    ("address", "target", "port"),
    [
        ("pi", "pi", ""),
        ("pi@192.168.1.7", "pi@192.168.1.7", ""),
        ("pi@board.local:2222", "pi@board.local", "2222"),
        ("pi@[fe80::1%eth0]:22", "pi@[fe80::1%eth0]", "22"),
    ],
)
def test_addresses_are_read(address, target, port):
    assert Destination.parse(address) == Destination(target, port)


@pytest.mark.parametrize(
    "address",
    ["", "-oProxyCommand=reboot", "pi@-oProxyCommand=x", "a b", "pi@host;reboot", "$(reboot)", "h:0", "h:99999"],
)
def test_an_address_that_could_mean_something_else_is_refused(address):
    with pytest.raises(InputError, match="address"):
        Destination.parse(address)


def test_words_of_the_python_command_reach_the_device_as_words(tmp_path):
    processes = PretendSsh()
    with pytest.raises(MissingHere, match="no such Python"):
        run_session(processes, board(python=f"'{tmp_path}/no such$(touch {tmp_path}/planted)' -u"))
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize("delegate", ["gpu", "xnnpak"])
def test_a_delegate_the_device_script_has_not_is_refused(tflite, delegate):
    runner = SshRunner(PretendSsh())
    with runner.session(board()), pytest.raises(InputError, match="no delegate"):
        runner.open(tflite, board(), delegate)


def test_a_hot_device_is_waited_for_and_then_given_up(monkeypatch):
    degrees, waited = iter([71.0, 66.0, 59.0]), []
    monkeypatch.setattr(runner_script, "machine_state", lambda: {"temperature_c": next(degrees)})
    with SshRunner(Pipes(InProcess()), waited.append).session(board(start_below_c=60.0)):
        pass
    assert len(waited) == 2
    monkeypatch.setattr(runner_script, "machine_state", lambda: {"temperature_c": 80.0})
    with (
        pytest.raises(MissingHere, match="too hot"),
        SshRunner(Pipes(InProcess()), waited.append).session(board(start_below_c=60.0)),
    ):
        pass


# --- what a device may answer ---------------------------------------------------------------------------------------


def test_a_greeting_between_the_answers_is_passed_over():
    pipe = InProcess()
    pipe.lines += ["Welcome to board\n", "Last login: today\n"]
    assert Link(pipe, lambda done: MissingHere("cut")).ask("state", 1.0)["load"] is not None


@pytest.mark.parametrize(
    "told",
    [runner_script.PREFIX + "{", runner_script.PREFIX + "[]", runner_script.PREFIX + '{"id": 7, "done": {}}'],
)
def test_an_answer_that_is_none_is_an_error_and_no_number(told):
    with pytest.raises(ArtifactError, match="cannot be read"):
        Link(InProcess(lambda do, answer: told), lambda done: MissingHere("cut")).ask("state", 1.0)


@pytest.mark.parametrize("run_ms", [[1.0], ["fast"] * 2, [float("nan")] * 2, [-1.0] * 2, "12", None])
def test_times_that_are_none_are_refused(tflite, monkeypatch, run_ms):
    monkeypatch.setattr(runner_script.OpenFile, "block", lambda self, i: {"start_s": [0.0, 1.0], "run_ms": run_ms})
    monkeypatch.setattr("edge_seg.benchmarks.runners.ssh.SshTransport.put", lambda self, path: str(path))
    monkeypatch.setattr(runner_script.OpenFile, "load", lambda self, path: 2)
    runner = SshRunner(Pipes(InProcess()))
    with runner.session(board()):
        executor = runner.open(tflite, board(), "xnnpack")
        with pytest.raises(ArtifactError, match="times"):
            executor.block(IMAGES[:2])


def test_a_device_that_says_nothing_is_given_up():
    pipe = InProcess()
    pipe.send = lambda line: None
    with pytest.raises(MissingHere, match="does not answer"):
        Link(pipe, lambda done: MissingHere("cut")).ask("state", 0.01)


def test_a_file_the_runtime_there_cannot_run_is_told_with_its_words(tflite, tmp_path, monkeypatch):
    monkeypatch.setattr("edge_seg.benchmarks.runners.ssh.SshTransport.put", lambda self, path: str(broken))
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"no network")
    runner = SshRunner(Pipes(InProcess()))
    with runner.session(board()), pytest.raises(ArtifactError, match="cannot run the file"):
        runner.open(tflite, board(), "xnnpack")


# --- a real sshd ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Sshd:
    """A private sshd: its process, port, and folder with keys and the client's configuration."""

    process: subprocess.Popen
    port: int
    folder: Path

    @property
    def address(self):
        return f"{getpass.getuser()}@127.0.0.1:{self.port}"


CLIENT = (
    "Host *\n  IdentityFile {key}\n  IdentitiesOnly yes\n  UserKnownHostsFile {known}\n  StrictHostKeyChecking yes\n"
)
SERVER = """\
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
"""


@pytest.fixture(scope="module")
def sshd(tmp_path_factory):
    program = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin")
    if program is None or shutil.which("ssh-keygen") is None:
        pytest.skip("needs sshd: apt-get install openssh-server (no service is started)")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # an sshd of root insists on it
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("key", "other_key", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (folder / "sshd_config").write_text(SERVER.format(folder=folder))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "known").write_text(f"[127.0.0.1]:{port} {(folder / 'host_key.pub').read_text()}")
    command = [program, "-D", "-e", "-p", str(port), "-f", folder / "sshd_config"]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            wait_for(port, process, folder / "log")
            yield Sshd(process, port, folder)
        finally:
            process.terminate()


def wait_for(port, process, log):
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    pytest.skip(f"sshd does not run here: {log.read_text()[-300:]}")


@pytest.fixture
def client(sshd, monkeypatch):
    """Names the client's configuration; keys and known hosts can be exchanged."""

    def configure(key="key", known="known"):
        path = sshd.folder / "client_config"
        path.write_text(CLIENT.format(key=sshd.folder / key, known=sshd.folder / known))
        monkeypatch.setenv("EDGE_SEG_SSH_CONFIG", str(path))

    configure()
    return configure


@pytest.mark.slow
def test_over_a_real_sshd_a_file_is_measured_pinned_and_computes_the_same(tflite, sshd, client, tmp_path):
    before = left_over()
    profile = board(sshd.address, cpu_mask="0x1")
    record = benchmark([tflite], [profile], images=IMAGES, out=tmp_path / "r.json")[0]
    assert (record.runner, record.kind, record.delegate_actual) == ("ssh", "measured", "xnnpack")
    assert record.runtime["name"] == "ai-edge-litert"
    assert record.environment["python"] == ".".join(map(str, sys.version_info[:3]))
    runner = SshRunner()
    with runner.session(profile):
        assert runner.open(tflite, profile, "xnnpack").digest(IMAGES[0]) == expected_digest(tflite, IMAGES[0])
    assert left_over() == before


@pytest.mark.slow
def test_a_real_sshd_refuses_a_wrong_key_and_an_unknown_host(sshd, client):
    client(key="other_key")
    with pytest.raises(MissingHere, match="does not let us in"):
        run_session(SystemProcesses(), board(sshd.address))
    client(known="other_key.pub")
    with pytest.raises(MissingHere, match="host key"):
        run_session(SystemProcesses(), board(sshd.address))
    client()
    with pytest.raises(MissingHere, match="is not reached"):
        run_session(SystemProcesses(), board("127.0.0.1:1"))
    with pytest.raises(MissingHere, match="no such Python"):
        run_session(SystemProcesses(), board(sshd.address, python="python-that-is-not-there"))


@pytest.mark.slow
def test_a_real_link_cut_in_the_middle_keeps_the_runs_and_leaves_nothing_behind(tflite, sshd, client, tmp_path):
    before, blocks = left_over(), []

    def now_s():
        blocks.append(1)
        if len(blocks) == 6:
            for child in psutil.Process(sshd.process.pid).children(recursive=True):
                if child.name().startswith("sshd"):
                    child.kill()
        return time.perf_counter()

    profile = board(sshd.address, max_time_s=60.0, min_time_s=60.0, target_ci_pct=1e-9)
    with pytest.raises(MissingHere, match="stay connected"):
        benchmark([tflite], [profile], images=IMAGES, out=tmp_path / "r.json", clocks=Clocks(now_s=now_s))
    record = load_records(tmp_path / "r.json")[0]
    assert record.protocol["stopped_by"] == "lost"
    assert record.n == 5 * 8
    for _ in range(100):
        if left_over() == before:
            break
        time.sleep(0.1)
    assert left_over() == before


# --- an emulated processor ------------------------------------------------------------------------------------------


def test_what_runs_under_the_emulator_is_never_called_a_measurement(tflite, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_SEG_AARCH64", sys.executable)  # this Python stands in for an emulated one
    record = benchmark([tflite], ["emulated_arm"], images=IMAGES, out=tmp_path / "r.json", max_time_s=0.05)[0]
    assert (record.kind, record.valid) == ("emulated", False)
    # no time of it stands where a latency is looked for, and each says why; the raw ones are kept apart
    times = ("median_ms", "p90_ms", "p99_ms", "min_ms", "mad_ms", "ci95_median_ms", "first_ms", "init_ms")
    assert all(getattr(record, name) is None and "no device's latency" in record.unknown[name] for name in times)
    assert set(record.stages.values()) == {None}
    assert Samples.load(samples_path(tmp_path / "r.json", record)).run_ms.size == record.n > 0
    assert load_records(tmp_path / "r.json") == [record]
    assert any("do not quote" in warning for warning in record.warnings)


@pytest.mark.aarch64
@pytest.mark.slow
def test_the_script_runs_under_qemu_and_gives_the_same_integers(tflite):
    if "EDGE_SEG_AARCH64" not in os.environ:
        pytest.skip("EDGE_SEG_AARCH64 names no aarch64 Python; edge-seg doctor says how to get one")
    runner, profile = EmulatedArmRunner(), load_profile("emulated_arm")
    with runner.session(profile):
        executor = runner.open(tflite, profile, "xnnpack")
        assert runner.kind == "emulated"
        assert runner.device()["machine"] in ("aarch64", "arm64")
        assert executor.facts.delegate_actual == "xnnpack"
        assert executor.digest(IMAGES[0]) == expected_digest(tflite, IMAGES[0])
        assert executor.step(IMAGES[0]).run_ms > 0


def test_without_an_emulator_the_runner_says_how_to_get_one(tflite, tmp_path, monkeypatch):
    monkeypatch.delenv("EDGE_SEG_AARCH64", raising=False)
    with pytest.raises(MissingHere, match="EDGE_SEG_AARCH64"):
        benchmark([tflite], ["emulated_arm"], images=IMAGES, out=tmp_path / "r.json")
