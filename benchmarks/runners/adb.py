"""Runs files on Android phones through adb, with the benchmark program that the user names.

The program gives figures of all its runs together and no raw samples, so a record of this runner has no interval
and is not valid by our protocol; it says so. Several phones are measured at once, one thread each.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from edge_seg.artifact import sha256_of
from edge_seg.benchmarks.adb.attached import attached, choose
from edge_seg.benchmarks.adb.client import Adb, DeviceError, Phone, ToolFailed
from edge_seg.benchmarks.adb.measure import Job, Run, check, clean_up, install, run_files
from edge_seg.benchmarks.adb.tool import Tool, arguments, find_tool
from edge_seg.benchmarks.parser import Residency
from edge_seg.benchmarks.profile import Profile
from edge_seg.benchmarks.result import Kind
from edge_seg.benchmarks.runner import RUNNERS, Failure, Opened, ToolRun
from edge_seg.contract import Contract
from edge_seg.errors import EdgeSegError

_SILENT = "benchmark_model did not print how many nodes this delegate took"


@RUNNERS.register("adb")
class AdbRunner:
    """Every phone that the profile's address means.

    Args:
        adb: The client; None looks for it when it is needed.
        tool: The benchmark program; None takes what $EDGE_SEG_BENCHMARK_MODEL names.
        sleep_s: Waits that many seconds.
    """

    name = "adb"

    def __init__(
        self, adb: Adb | None = None, tool: Tool | None = None, sleep_s: Callable[[float], None] = time.sleep
    ) -> None:
        self._adb, self._tool, self._sleep_s = adb, tool, sleep_s

    def measure_files(
        self,
        files: Sequence[Path],
        order: Sequence[int],
        profile: Profile,
        delegate: str,
        on_run: Callable[[ToolRun], None],
    ) -> list[Failure]:
        """Measures every file on every phone; see `ToolRunner.measure_files`."""
        from edge_seg.converters.metadata import read_contract

        adb, tool = self._adb or Adb(), self._tool or find_tool()
        arguments(tool, profile, delegate, "")  # a wish that cannot be met is refused before a phone is touched
        contracts = [read_contract(file) for file in files]
        serials = choose(attached(adb), profile.address)
        job = Job(files, order, profile, delegate, tool, self._sleep_s)
        with ThreadPoolExecutor(max_workers=len(serials)) as pool:
            done = pool.map(lambda serial: _on_one(Phone(adb, serial), job, contracts, on_run), serials)
            return [failure for failures in done for failure in failures]


def _on_one(phone: Phone, job: Job, contracts: Sequence[Contract], on_run: Callable[[ToolRun], None]) -> list[Failure]:
    """Measures every file on one phone and returns what went wrong; other phones are not disturbed by it."""
    name = hashlib.sha256(phone.serial.encode()).hexdigest()[:8]
    ours = False  # what lies on the phone before the check may be another's run
    try:
        device = check(phone, job)
        ours = True
        install(phone, job)

        def finished(run: Run) -> None:
            on_run(_tool_run(run, device, job, contracts[run.index]))

        failed = run_files(phone, job, finished)
        clean_up(phone)
    except EdgeSegError as error:
        if ours:
            _try_to_clean(phone)
        return [Failure(name, error, True, error.output if isinstance(error, DeviceError) else b"")]
    return [Failure(name, error, False, error.output if isinstance(error, ToolFailed) else b"") for error in failed]


def _try_to_clean(phone: Phone) -> None:
    """Removes our folder if the phone is still there; what went wrong before is what matters."""
    with contextlib.suppress(EdgeSegError):
        if phone.state() == "device":
            clean_up(phone)


def _tool_run(run: Run, device: Mapping[str, Any], job: Job, contract: Contract) -> ToolRun:
    kind: Kind = "emulated" if device["emulator"] else "measured"
    return ToolRun(
        index=run.index,
        device=device,
        kind=kind,
        opened=opened(run, job, contract),
        told=run.told,
        environment=run.environment,
        log=run.log,
        command=run.command,
    )


def opened(run: Run, job: Job, contract: Contract) -> Opened:
    """Returns what is known about the file on the phone: only what the program printed, nothing inferred."""
    residency = run.told.residency
    actual, reason = actual_delegate(residency, job.delegate)
    share = residency.of(job.delegate)
    unknown = {} if actual else {"delegate_actual": reason}
    if run.told.init_ms is None:
        unknown["init_ms"] = run.told.unknown.get("init_ms", "not told")
    delegated, total = (share.nodes_delegated, share.nodes_total) if share else (None, None)
    for key, value in (("nodes_delegated", delegated), ("nodes_total", total)):
        if value is None:
            unknown[key] = _SILENT
    return Opened(
        model=contract.model.name,
        scheme=contract.model.scheme,
        init_ms=run.told.init_ms,
        runtime={
            "name": f"benchmark_model ({job.tool.kind})",
            "version": None,
            "binary_sha256": sha256_of(job.tool.path),
        },
        delegate_actual=actual,
        nodes_delegated=delegated,
        nodes_total=total,
        unknown={**unknown, "runtime.version": "benchmark_model does not print it"},
    )


def actual_delegate(residency: Residency, requested: str) -> tuple[str | None, str]:
    """Returns the delegate that ran, as the log says it, or None and why that is not known.

    Args:
        residency: What the log says.
        requested: The delegate that was asked for.
    """
    share = residency.of(requested)
    if residency.extent == "not" and residency.applied == requested:
        return "none", ""
    if share is not None and share.nodes_delegated is not None:
        return (requested if share.nodes_delegated else "none"), ""
    if residency.applied == requested and residency.extent is not None:
        return requested, ""
    if requested == "none" and not residency.delegations and residency.applied is None:
        return None, "the log names no delegate; that none ran is not said"
    return None, f"the log does not say whether {requested} ran"
