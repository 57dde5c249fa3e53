"""What every runner that reaches its device through `runner_script` shares: opening, blocks, state."""

from __future__ import annotations

import contextlib
import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_seg.benchmarks.machine import processor
from edge_seg.benchmarks.profile import Profile
from edge_seg.benchmarks.remote import runner_script
from edge_seg.benchmarks.remote.link import Finished, Link, Pipe, Processes, SystemProcesses
from edge_seg.benchmarks.result import Kind
from edge_seg.benchmarks.runner import Opened, StageTimes
from edge_seg.errors import ArtifactError, EdgeSegError, InputError, MissingHere, nearest
from edge_seg.letterbox import letterbox_image

SCRIPT = Path(runner_script.__file__)
_RESOLVERS = {"xnnpack": "AUTO", "none": "BUILTIN_REF"}
_UNKNOWN_STAGES = {
    "stages.pre_ms": "pictures are letterboxed before they are sent: the device needs no image library",
    "stages.post_ms": "the decoder is not on the device: only NumPy and a TFLite runtime are asked of it",
}
_NO_LATENCY = "the times of an emulated processor are no device's latency; the raw ones are in samples_file"
_START_S, _OPEN_S, _BLOCK_S, _STATE_S = 300.0, 600.0, 3600.0, 60.0
_COOL_LIMIT_S, _COOL_STEP_S = 900.0, 5.0
# https://www.raspberrypi.com/documentation/computers/os.html#get_throttled
_THROTTLE_BITS = {
    0: "under-voltage",
    1: "Arm frequency capped",
    2: "throttled",
    3: "soft temperature limit",
    16: "under-voltage since boot",
    17: "Arm frequency capped since boot",
    18: "throttled since boot",
    19: "soft temperature limit since boot",
}


class Transport(Protocol):
    """A way to bring files to a device and to start the script there."""

    def explain(self, done: Finished) -> EdgeSegError:
        """Says why the script ended."""

    def put(self, path: Path) -> str:
        """Brings a file there and returns its path there."""

    def start(self) -> Pipe:
        """Starts the script."""

    def close(self) -> None:
        """Removes what was brought, if the script has not done so."""


class RemoteExecutor:
    """One file open on a device.

    `run_ms` is taken on the device: write the input, invoke, read and dequantise every output, as on this machine.
    """

    def __init__(
        self, path: Path, profile: Profile, resolver: str, *, name: str, link: Link, transport: Transport
    ) -> None:
        from edge_seg.converters.flatbuffer import read_graph
        from edge_seg.converters.interpreter import places
        from edge_seg.converters.metadata import read_contract

        self.contract = read_contract(path)
        source, outputs = places(read_graph(path), self.contract)
        grids = {o.name: o.quantization for o in self.contract.outputs}
        self._name, self._link, self._transport = name, link, transport
        self._known: dict[int, tuple[int, NDArray[np.uint8]]] = {}
        self.told = link.ask(
            "open",
            _OPEN_S,
            name=name,
            file=transport.put(path),
            threads=profile.threads,
            resolver=resolver,
            input=source,
            dtype=self.contract.input.dtype,
            outputs=[[i, g.scale if g else None, g.zero_point if g else None] for i, g in _places(outputs, grids)],
        )
        self.facts: Opened

    def prepare(self, images: Sequence[NDArray[np.uint8]]) -> None:
        """Sends pictures, [H, W, 3] RGB, as network inputs, once each."""
        new = [image for image in images if id(image) not in self._known]
        if not new:
            return
        size, fill = self.contract.input_wh_px, self.contract.preprocess.fill_rgb
        canvases = np.stack([letterbox_image(image, size, fill)[0] for image in new])
        with tempfile.TemporaryDirectory(prefix="edge_seg_") as folder:
            path = Path(folder) / "pictures.npz"
            np.savez_compressed(path, pictures=canvases)
            count = self._link.ask("pictures", _OPEN_S, name=self._name, file=self._transport.put(path))["n"]
        first = len(self._known)
        if count != first + len(new):
            raise ArtifactError("The device has other pictures than were sent.", expected=str(first + len(new)))
        # the picture is kept, since an id is only unique while its object lives
        self._known |= {id(image): (first + k, image) for k, image in enumerate(new)}

    def block(self, images: Sequence[NDArray[np.uint8]]) -> list[tuple[float, StageTimes]]:
        """Runs pictures back to back on the device; returns start (its clock, seconds) and times of each."""
        self.prepare(images)
        wanted = [self._known[id(image)][0] for image in images]
        told = self._link.ask("block", _BLOCK_S, name=self._name, pictures=wanted)
        starts_s, run_ms = (_numbers(told.get(key), len(wanted)) for key in ("start_s", "run_ms"))
        return [(s, StageTimes(None, ms, None)) for s, ms in zip(starts_s, run_ms, strict=True)]

    def step(self, image_hwc_u8: NDArray[np.uint8]) -> StageTimes:
        """Runs one picture, [H, W, 3] RGB."""
        return self.block([image_hwc_u8])[0][1]

    def digest(self, image_hwc_u8: NDArray[np.uint8]) -> str:
        """Returns the SHA-256 of the raw outputs of a picture, in the order of the contract: proof of what ran."""
        self.prepare([image_hwc_u8])
        index = self._known[id(image_hwc_u8)][0]
        return str(self._link.ask("digest", _BLOCK_S, name=self._name, picture=index)["sha256"])

    def close(self) -> None:
        """Lets the file go on the device; a device that is gone has let it go."""
        if self._link.alive:
            with contextlib.suppress(EdgeSegError):
                self._link.ask("close", _STATE_S, name=self._name)


def _places(outputs: Mapping[str, int], grids: Mapping[str, Any]) -> list[tuple[int, Any]]:
    return [(index, grids[name]) for name, index in outputs.items()]


def _numbers(values: Any, count: int) -> list[float]:
    fits = isinstance(values, list) and len(values) == count
    if not fits or not all(isinstance(v, int | float) and math.isfinite(v) and v >= 0 for v in values):
        raise ArtifactError(
            "The device's times cannot be read.", expected=f"{count} finite numbers", got=str(values)[:99]
        )
    return [float(v) for v in values]


class RemoteRunner:
    """Shared part of the runners: a session is one script on the device, all files open in it.

    Args:
        processes: Starts programs; a test gives its own.
        sleep_s: Waits, while a device cools down.
    """

    name = ""
    local = False

    def __init__(self, processes: Processes | None = None, sleep_s: Callable[[float], None] = time.sleep) -> None:
        self.kind: Kind = "measured"
        self._processes: Processes = processes or SystemProcesses()
        self._sleep_s = sleep_s
        self._hello: dict[str, Any] = {}
        self._session: tuple[Link, Transport] | None = None
        self._names = itertools.count()

    def transport(self, profile: Profile) -> Transport:
        """Returns the way to the profile's device."""
        raise NotImplementedError

    @contextlib.contextmanager
    def session(self, profile: Profile) -> Iterator[None]:
        """Starts the script on the device, pinned to the profile's CPUs, and waits until the device is cool.

        Raises:
            MissingHere: The device is not reached, lacks something, or stays hot.
        """
        transport = self.transport(profile)
        try:
            link = Link(transport.start(), transport.explain)
            try:
                self._hello = link.ask("hello", _START_S, cpus=list(profile.cpus))
                self.kind = "emulated" if self._hello.get("emulated") else self.kind
                self._session = (link, transport)
                self._wait_until_cool(link, profile)
                yield
            finally:
                self._session = None
                link.close()
        finally:
            transport.close()

    def _wait_until_cool(self, link: Link, profile: Profile) -> None:
        """Waits for `start_below_c`; a device that shows no temperature is not waited for."""
        waited_s, limit_c = 0.0, profile.start_below_c
        while limit_c is not None:
            now_c = link.ask("state", _STATE_S).get("temperature_c")
            if now_c is None or now_c < limit_c:
                return
            if waited_s >= _COOL_LIMIT_S:
                raise MissingHere(
                    "The device stays too hot to start.",
                    expected=f"below {limit_c:g} degrees Celsius within {_COOL_LIMIT_S:.0f} s",
                    got=f"{now_c:g}",
                    todo="cool it, end what runs on it, or change start_below_c in the profile",
                )
            self._sleep_s(_COOL_STEP_S)
            waited_s += _COOL_STEP_S

    def open(self, path: Path, profile: Profile, delegate: str) -> RemoteExecutor:
        """Brings a file to the device and opens it.

        Raises:
            InputError: The delegate is not one of this runner's, or the precision cannot be forced.
            ArtifactError: The runtime there cannot run the file.
            MissingHere: No session is open, or the device went away.
        """
        if self._session is None:
            raise MissingHere("No device is connected.", expected="an open session of the runner")
        if delegate not in _RESOLVERS:
            raise InputError(
                f"The {self.name} runner has no delegate {delegate!r}.",
                expected=" or ".join(_RESOLVERS),
                got=delegate,
                todo=nearest(delegate, list(_RESOLVERS)),
            )
        if profile.precision != "file":
            raise InputError(
                f"The {self.name} runner cannot force a precision.",
                expected='precision = "file"',
                got=profile.precision,
            )
        link, transport = self._session
        name = f"file{next(self._names)}"
        executor = RemoteExecutor(path, profile, _RESOLVERS[delegate], name=name, link=link, transport=transport)
        facts = _facts(executor, dict(self._hello.get("runtime", {})))
        executor.facts = replace(facts, no_latency=_NO_LATENCY) if self.kind == "emulated" else facts
        return executor

    def device(self) -> dict[str, Any]:
        """Returns `name soc os cpu cpu_id int8_features machine cores emulated` as the device told them.

        Unknown is None.
        """
        told = {key: self._hello.get(key) for key in ("soc", "os", "cpu", "machine", "cores", "emulated")}
        number = processor(str(self._hello.get("cpuinfo") or ""))
        return {"name": self._hello.get("model") or self.name, **told, **number}

    def watch(self) -> Callable[[], dict[str, Any]]:
        """Reads the device's state now and, in the returned function, again; a device that is gone gives None."""
        before = self._state()
        return lambda: environment(before, self._state(), self._hello.get("python"))

    def _state(self) -> dict[str, Any]:
        if self._session is None or not self._session[0].alive:
            return {}
        try:
            return self._session[0].ask("state", _STATE_S)
        except EdgeSegError:
            return {}  # what was measured must be kept even where the device went away meanwhile


def _facts(executor: RemoteExecutor, runtime: dict[str, Any]) -> Opened:
    told, model = executor.told, executor.contract.model
    partitions = told.get("partitions")
    actual = None if partitions is None else "xnnpack" if partitions else "none"
    found = {key: told.get(key) for key in ("nodes_delegated", "nodes_total")}
    reason = f"{runtime.get('name')} {runtime.get('version')}: {told.get('reason') or 'not told'}"
    silent = {"delegate_actual": actual, **found}
    return Opened(
        model=model.name,
        scheme=model.scheme,
        init_ms=_numbers([told.get("init_ms")], 1)[0],
        runtime=runtime,
        delegate_actual=actual,
        nodes_delegated=found["nodes_delegated"],
        nodes_total=found["nodes_total"],
        unknown={**_UNKNOWN_STAGES, **{key: reason for key, value in silent.items() if value is None}},
    )


def environment(before: Mapping[str, Any], after: Mapping[str, Any], python: Any) -> dict[str, Any]:
    """Returns the environment between two states: the keys of `machine.watch`, and throttling.

    `throttling` names the flags that are set now or came since the start; None where the device has none to read.

    Args:
        before: State at the start.
        after: State at the end, empty where the device went away.
        python: Version of Python on the device.
    """
    flags = after.get("throttled")
    new = None if flags is None else (flags & 0xF) | (flags & ~int(before.get("throttled") or 0))
    return {
        "governor": before.get("governor"),
        "frequency_mhz": before.get("frequency_mhz"),
        "frequency_after_mhz": after.get("frequency_mhz"),
        "temperature_c": before.get("temperature_c"),
        "temperature_after_c": after.get("temperature_c"),
        "throttling": None if new is None else [text for bit, text in _THROTTLE_BITS.items() if new >> bit & 1],
        "load": before.get("load"),
        "load_after": after.get("load"),
        **_shares(before.get("cpu_s"), after.get("cpu_s")),
        "python": python,
    }


def _shares(before: Mapping[str, float] | None, after: Mapping[str, float] | None) -> dict[str, float | None]:
    spent = {key: after[key] - before[key] for key in before} if before and after else {}
    if not spent or spent["wall"] <= 0:
        return {"foreign_cpu_pct": None, "steal_pct": None}
    foreign = max(0.0, spent["busy"] - spent["own"])
    return {
        "foreign_cpu_pct": round(100.0 * foreign / spent["wall"], 1),
        "steal_pct": round(100.0 * spent["steal"] / spent["wall"], 1),
    }
