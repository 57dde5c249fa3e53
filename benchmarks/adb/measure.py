"""One phone measures several files: check, copy, run, read, clean up; what is finished is handed on at once."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge_seg.benchmarks.adb import facts
from edge_seg.benchmarks.adb.client import DeviceError, Phone, ToolFailed, quoted, storage_full
from edge_seg.benchmarks.adb.elf import check_fits, read_program
from edge_seg.benchmarks.adb.tool import RESULT_NAME, Tool, arguments, qnn_library
from edge_seg.benchmarks.parser import ToolResult, parse_bytes, parse_file
from edge_seg.benchmarks.parsers.benchmark_model_text import FORM as TEXT
from edge_seg.benchmarks.parsers.benchmark_result_proto import FORM as PROTO
from edge_seg.benchmarks.profile import Profile
from edge_seg.errors import InputError

FOLDER = "/data/local/tmp/edge_seg"
_SPARE_KB = 64 << 10
_GRACE_S = 120.0  # opening a file on a GPU compiles its kernels, for tens of seconds on slow phones
_COOL_POLL_S = 10.0
_COOL_LIMIT_S = 1800.0


@dataclass(frozen=True)
class Run:
    """One file on one phone.

    Attributes:
        index: Position among the files.
        told: What the benchmark program told.
        log: Everything it printed.
        environment: The phone before and after.
        command: The command as it was run.
    """

    index: int
    told: ToolResult
    log: bytes
    environment: dict[str, Any]
    command: str


@dataclass(frozen=True)
class Job:
    """What to measure on every phone.

    Attributes:
        files: `.tflite` files.
        order: Positions of the files, in the order to run them.
        profile: How.
        delegate: On what.
        tool: The benchmark program.
        sleep_s: Waits that many seconds; a test gives its own.
    """

    files: Sequence[Path]
    order: Sequence[int]
    profile: Profile
    delegate: str
    tool: Tool
    sleep_s: Callable[[float], None] = time.sleep


def check(phone: Phone, job: Job) -> dict[str, Any]:
    """Looks at the phone and changes nothing on it.

    Returns:
        What the phone says about itself.

    Raises:
        DeviceError: Asleep, full, busy with a run of ours, or gone.
        InputError: The program is for another processor.
    """
    device = facts.identity(facts.properties(phone), phone.serial)
    check_fits(read_program(job.tool.path), device["abis"], job.tool.path, phone.serial)
    facts.check_awake(phone)
    _check_free(phone)
    _check_space(phone, job)
    return device


def install(phone: Phone, job: Job) -> None:
    """Copies the program and its libraries to a phone that `check` found free; raises DeviceError if it cannot."""
    _must(phone, f"rm -rf {FOLDER} && mkdir -p {FOLDER}")
    extra = (qnn_library(),) if job.delegate == "qnn" else ()
    for file in (*job.tool.files, *extra):
        phone.push(file, f"{FOLDER}/{'benchmark_model' if file == job.tool.path else file.name}")
    _must(phone, f"chmod 755 {FOLDER}/benchmark_model")


def run_files(phone: Phone, job: Job, on_run: Callable[[Run], None]) -> list[InputError]:
    """Measures every file; a file that the program refuses does not keep the others from being measured.

    Args:
        phone: A phone with the program on it.
        job: What to measure.
        on_run: Called with every finished run.

    Returns:
        What went wrong with single files.

    Raises:
        DeviceError: The phone is gone or cannot be measured; `output` holds what it had printed.
    """
    failed: list[InputError] = []
    for index in job.order:
        facts.check_awake(phone)
        cooled = _cool(phone, job)
        try:
            on_run(_run_one(phone, job, index, cooled))
        except ToolFailed as error:
            failed.append(error)
    return failed


def clean_up(phone: Phone) -> None:
    """Ends a run of ours that goes on, and removes everything of ours; raises DeviceError if the phone is gone."""
    phone.shell(f"test -f {FOLDER}/pid && kill $(cat {FOLDER}/pid); rm -rf {FOLDER}")


def _run_one(phone: Phone, job: Job, index: int, cooled: dict[str, Any]) -> Run:
    profile, file = job.profile, job.files[index]
    phone.push(file, f"{FOLDER}/model.tflite")
    cpu = profile.cpus[0] if profile.cpus else 0
    command = quoted(f"{FOLDER}/benchmark_model", *arguments(job.tool, profile, job.delegate, FOLDER))
    pinned = f"taskset {profile.cpu_mask.removeprefix('0x')} {command}" if profile.cpus else command
    before = facts.snapshot(phone, cpu)
    # in the background with its number written down, so that a later call sees whether it still runs
    script = (
        f"cd {FOLDER}; LD_LIBRARY_PATH={FOLDER} ADSP_LIBRARY_PATH={FOLDER} {pinned} & "
        f"echo $! > {FOLDER}/pid; wait $!; edge_seg_run=$?; rm -f {FOLDER}/pid; exit $edge_seg_run"
    )
    printed = phone.shell(script, profile.max_time_s + profile.min_time_s + _GRACE_S)
    after = facts.snapshot(phone, cpu)
    told = _read(phone, job, file, printed.code, printed.output)
    environment = {**before, **{f"{key}_after": value for key, value in after.items()}, **cooled}
    return Run(index, told, printed.output, environment, pinned)


def _read(phone: Phone, job: Job, file: Path, code: int, output: bytes) -> ToolResult:
    """Reads the program's text and, where it writes one, its message, which has more digits."""
    source = f"benchmark_model on {phone.serial} with {file.name}"
    try:
        if code != 0:
            raise InputError(f"{source} failed.", expected="exit code 0", got=f"exit code {code}: {_tail(output)}")
        text = parse_bytes(output, source, TEXT)
        return text if job.tool.kind == "classic" else _with_message(phone, text)
    except DeviceError:
        raise
    except InputError as error:
        failed = ToolFailed(error.what, expected=error.expected, got=error.got, todo=error.todo)
        failed.output = output
        raise failed from error


def _with_message(phone: Phone, text: ToolResult) -> ToolResult:
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / RESULT_NAME
        phone.pull(f"{FOLDER}/{RESULT_NAME}", local)
        message = parse_file(local, PROTO)
    if message.n != text.n:
        raise InputError(
            "The program's text and its result file are of two runs.", got=f"{text.n} and {message.n} runs"
        )
    return replace(message, graph=text.graph, threads=text.threads, residency=text.residency)


def _cool(phone: Phone, job: Job) -> dict[str, Any]:
    """Waits until the phone is as cool as the profile asks, and says how long that took."""
    limit_c = job.profile.start_below_c
    if limit_c is None:
        return {}
    waited_s = 0.0
    while True:
        now_c = facts.start_temperature_c(phone)
        if now_c is None or now_c < limit_c:
            return {"start_below_c": limit_c, "start_temperature_c": now_c, "cooled_s": waited_s}
        if waited_s >= _COOL_LIMIT_S:
            raise DeviceError(
                f"{phone.serial} does not cool down.",
                expected=f"below {limit_c:g} degrees Celsius",
                got=f"{now_c:g} after {waited_s:g} s",
                todo="unplug what charges it, take off its case, put it into a cooler place",
            )
        job.sleep_s(_COOL_POLL_S)
        waited_s += _COOL_POLL_S


def _check_free(phone: Phone) -> None:
    """Raises DeviceError while a run that lost its link goes on: both would measure each other."""
    alive = phone.shell(f"test -f {FOLDER}/pid && kill -0 $(cat {FOLDER}/pid)")
    if alive.code == 0:
        raise DeviceError(
            f"{phone.serial} is busy with another run of this benchmark.",
            got=f"{FOLDER}/pid names a living process",
            todo="wait until it has ended, or end it on the phone",
        )


def _check_space(phone: Phone, job: Job) -> None:
    sizes = [file.stat().st_size for file in job.tool.files]
    need_kb = (sum(sizes) + max(job.files[i].stat().st_size for i in job.order)) // 1024 + _SPARE_KB
    free = facts.free_kb(phone, "/data/local/tmp")
    if free is not None and free < need_kb:
        raise storage_full(phone.serial, f"{free >> 10} MiB free", f"{(need_kb >> 10) + 1} MiB free in /data/local/tmp")


def _must(phone: Phone, command: str) -> None:
    printed = phone.shell(command)
    if printed.code == 0:
        return
    if "no space left" in printed.text.lower():
        raise storage_full(phone.serial, _tail(printed.output))
    raise DeviceError(f"{phone.serial} refused a command.", got=f"{command}: {_tail(printed.output)}")


def _tail(output: bytes) -> str:
    lines = [line.strip() for line in output.decode("utf-8", "replace").splitlines() if line.strip()]
    return " / ".join(lines[-3:])[:400] or "nothing printed"
