"""LiteRT's GPU accelerator in a process of its own. The only file that uses the CompiledModel API.

Native GPU code may crash or hang; here it takes down a child process and not the program. The parent's side is
`Accelerator`; `python -m edge_seg.converters.gpu.accelerator FD` is the child, which talks over the socket FD. The
child asks for the GPU and nothing else, so that an operator the accelerator does not take is an error, not a run on
the CPU; who wants the rest on the CPU asks for that by name.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from edge_seg.converters.gpu.vulkan import Vulkan, found
from edge_seg.converters.small_graph import GraphWriter
from edge_seg.errors import ArtifactError, EdgeSegError, InputError, MissingHere

Precision = Literal["fp32", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
SETUP = "edge-seg doctor --setup vulkan, or name a driver's json in EDGE_SEG_VULKAN_ICD"
START_TIMEOUT_S = 180.0
RUN_TIMEOUT_S = 300.0  # a software driver compiles its shaders at the first run: a minute on a busy machine
_ADAPTER = re.compile(r"Selected adapter: (?P<name>.*?), arch=.*?backend=(?P<backend>\w+), adapterType=(?P<kind>.+)")
_API = re.compile(r"Initializing (\w+)-based API")
_UNSUPPORTED = re.compile(r"not supported by GPU delegate:\s*\n(.*?)(?:\n\n|\n[^\n]*(?:delegate|INFO|ERROR)|\Z)", re.S)
_LOG_CHARS = 200_000


class OpsRefused(ArtifactError):
    """The accelerator does not take some operator of a file."""


class Crashed(EdgeSegError):
    """The process of the accelerator died, did not answer, or gave its device up."""

    exit_code = 2


@dataclass(frozen=True)
class Adapter:
    """The device that runs the accelerator's kernels, in the words of its log.

    Attributes:
        name: "SwiftShader Device (Subzero)", ...
        backend: Graphics interface below WebGPU ("Vulkan").
        kind: "CPU / Software", "Discrete GPU", ...
        precision: Arithmetic it computes in, measured with a probe: "fp32" or "fp16".
    """

    name: str
    backend: str
    kind: str
    precision: Precision

    @property
    def is_software(self) -> bool:
        """Whether a CPU plays the GPU: its numbers count, its latencies do not."""
        return "CPU" in self.kind or "Software" in self.kind


@dataclass(frozen=True)
class RunTimes:
    """One run inside the child, in milliseconds. Running is asynchronous: most of the time can be in the reading."""

    write_ms: float
    run_ms: float
    read_ms: float

    @property
    def total_ms(self) -> float:
        """Write, run and read: what an app waits for."""
        return self.write_ms + self.run_ms + self.read_ms


class Accelerator:
    """A child process that holds one file on the GPU accelerator at a time. Close it, or use it in `with`.

    Args:
        precision: "fp32" forces float32 arithmetic, "fp16" is the accelerator's default where a device can do it.
        vulkan: The implementation to use; None takes the first one found here that computes in `precision`.
        benchmark_mode: Makes `run` wait for the device, so that its time lies in `RunTimes.run_ms`.
        with_cpu: Lets the CPU run the operators that the accelerator does not take; `told` then says how many.

    Raises:
        InputError: An unknown precision.
        MissingHere: There is no Vulkan implementation, it does not start, or none computes in `precision`.
    """

    def __init__(
        self,
        precision: Precision = "fp32",
        *,
        vulkan: Vulkan | None = None,
        benchmark_mode: bool = False,
        with_cpu: bool = False,
    ) -> None:
        if precision not in PRECISIONS:
            raise InputError(f"There is no precision {precision!r}.", expected=" or ".join(PRECISIONS))
        self._request = (precision, benchmark_mode, with_cpu)
        self.told = ""  # what the runtime logged when it opened the file
        self._child: _Child | None = None
        candidates = [vulkan] if vulkan is not None else found()
        if not candidates:
            raise MissingHere("No Vulkan implementation is installed here.", expected="a GPU or software", todo=SETUP)
        refusals = []
        for candidate in candidates:
            try:
                self._start(candidate)
                return
            except (MissingHere, Crashed) as error:
                self.close()
                refusals.append(f"{candidate.place}: {error.what} {error.got}".strip())
            except BaseException:
                self.close()
                raise
        raise MissingHere(
            f"No Vulkan implementation here runs the GPU accelerator in {precision}.",
            expected="a working driver" + (" with 16-bit arithmetic in shaders" if precision == "fp16" else ""),
            got="; ".join(refusals),
            todo=SETUP + (" (fp16: lavapipe of Mesa 25 or a GPU)" if precision == "fp16" else ""),
        )

    def _start(self, vulkan: Vulkan) -> None:
        self._child = _Child(vulkan)
        self.vulkan = vulkan
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder) / "probe.tflite"
            probe.write_bytes(_probe())
            self._open(probe)
        value = np.float32(1.0) + np.float32(2.0**-12)  # float16 has 10 bits behind the point: it rounds to 1
        (answer,), _ = self.run([np.full((1, 4, 4, 4), value, np.float32)])
        actual: Precision = "fp32" if (answer == value).all() else "fp16"
        name, backend, kind = self._adapter()
        if actual != self._request[0]:
            raise MissingHere(f"{name} computes in {actual} where {self._request[0]} was asked for.")
        self.adapter = Adapter(name, backend, kind, actual)

    def open(self, path: Path) -> None:
        """Opens a file; the one before is let go.

        Raises:
            OpsRefused: The accelerator does not take the file whole; `got` names operators where its log does.
            ArtifactError: The runtime cannot read it.
            Crashed: The child died or did not answer.
        """
        self._open(path.resolve())

    def _open(self, path: Path) -> None:
        child = self._running()
        before = child.log_size()
        kind, answer = self._ask(("open", str(path), *self._request), START_TIMEOUT_S)
        if kind != "ok":
            raise _refusal(path, answer, child.log(before))
        self.told = child.log(before)
        if not _API.search(self.told):
            raise ArtifactError(f"LiteRT opened {path} and did not say that it runs on the GPU.")
        self.outputs: tuple[str, ...] = tuple(answer)

    def run(self, inputs: Sequence[NDArray[Any]]) -> tuple[list[NDArray[Any]], RunTimes]:
        """Runs the open file once and reads every output.

        Args:
            inputs: One array for each argument of the signature, in its order, dtype and shape.

        Returns:
            The results in the order of `outputs`, and the times taken in the child around the work itself.

        Raises:
            InputError: An array of another number, size or dtype than the signature's.
            Crashed: The child died or did not answer, or the device did not finish within the runtime's own limit.
        """
        kind, answer = self._ask(("run", [np.asarray(a) for a in inputs]), RUN_TIMEOUT_S)
        if kind == "RuntimeError":
            # seen where a software driver on a busy machine needs more than LiteRT's own 120 s to compile its shaders
            self.close()
            todo = "run it again on a quieter machine: drivers keep compiled shaders"
            raise Crashed("The GPU accelerator did not finish the run.", got=str(answer)[:600], todo=todo)
        if kind != "ok":
            raise InputError("The arrays do not fit the signature of the open file.", got=str(answer)[:600])
        outputs, times = answer
        return outputs, RunTimes(*times)

    def _adapter(self) -> tuple[str, str, str]:
        line = _ADAPTER.search(self._running().log(0))
        if line is None:
            raise MissingHere("LiteRT does not name the device its GPU accelerator uses.")
        return line["name"].strip(), line["backend"], line["kind"].strip()

    @property
    def is_closed(self) -> bool:
        """Whether the child is gone, by `close` or by a crash."""
        return self._child is None

    def _ask(self, message: tuple[Any, ...], timeout_s: float) -> tuple[str, Any]:
        """Asks the child; one that died or does not answer is let go."""
        try:
            return self._running().ask(message, timeout_s)
        except Crashed:
            self.close()
            raise

    def _running(self) -> _Child:
        if self._child is None:
            raise InputError("The GPU accelerator is closed.", todo="open it again")
        return self._child

    def close(self) -> None:
        """Ends the child."""
        child, self._child = self._child, None
        if child is not None:
            child.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class _Child:
    """The process, its socket and its log."""

    def __init__(self, vulkan: Vulkan) -> None:
        ours, theirs = socket.socketpair()
        self._log, name = tempfile.mkstemp(prefix="edge_seg_gpu_")
        os.unlink(name)
        command = [sys.executable, "-m", "edge_seg.converters.gpu.accelerator", str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **vulkan.environment},
            )
        self._pipe = Connection(ours.detach())

    def ask(self, message: tuple[Any, ...], timeout_s: float) -> tuple[str, Any]:
        """Sends one message and waits for its answer."""
        try:
            self._pipe.send(message)
            if self._pipe.poll(timeout_s):
                kind, answer = self._pipe.recv()
                return kind, answer
        except (EOFError, OSError) as error:
            raise self._dead(error) from error
        raise Crashed(f"The GPU accelerator did not answer within {timeout_s:.0f} s.", todo="try a smaller file")

    def _dead(self, error: Exception) -> Crashed:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        last = self.log(0).strip().splitlines()[-3:]
        return Crashed(
            "The process of the GPU accelerator died.",
            got=f"exit {self._process.poll()} ({type(error).__name__}); last words: {' | '.join(last)}"[:600],
            todo="another Vulkan driver may do: " + SETUP,
        )

    def log_size(self) -> int:
        """Returns the bytes logged so far."""
        return os.fstat(self._log).st_size

    def log(self, start: int) -> str:
        """Returns what was logged from byte `start` on, without moving the child's own position."""
        return os.pread(self._log, _LOG_CHARS, start).decode("utf-8", "replace")

    def close(self) -> None:
        """Closes the socket, which ends the child; a child that does not go is killed."""
        self._pipe.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._log)


def _refusal(path: Path, text: str, log: str) -> EdgeSegError:
    """Tells a missing device, a refused operator and a broken file apart by what the runtime wrote."""
    said = text + "\n" + log
    if "No adapters found" in said or "initialize WebGPU environment" in said:
        return MissingHere("The Vulkan implementation has no device that LiteRT takes.", got=_reason(log), todo=SETUP)
    listed = _UNSUPPORTED.search(log)
    if listed or "not accelerated" in said:
        got = " ".join(listed[1].split()) if listed else text
        return OpsRefused(f"The GPU accelerator does not take {path.name} whole.", got=got[:600])
    return ArtifactError(f"LiteRT cannot open {path} on the GPU.", got=text[:600])


def _reason(log: str) -> str:
    lines = [line for line in log.splitlines() if "adapter" in line or "required" in line]
    return lines[0].strip() if lines else ""


def _probe() -> bytes:
    """Returns a file that gives back what it is given, if that fits the accelerator's arithmetic."""
    graph = GraphWriter()
    source = graph.input("x", (1, 4, 4, 4))
    return graph.finish(graph.op("RELU", [source], (1, 4, 4, 4)))


_Place = tuple[Any, tuple[int, ...], np.dtype[Any]]  # a buffer, its shape and dtype


class _Server:
    """The child's side: opens and runs files on the accelerator."""

    def __init__(self) -> None:
        self._model: Any = None
        self._inputs: list[_Place] = []
        self._outputs: list[_Place] = []

    def open(self, path: str, precision: str, benchmark_mode: bool, with_cpu: bool = False) -> list[str]:
        """Compiles a file for the GPU, alone or with the CPU; returns its results' names in the runtime's order."""
        from ai_edge_litert import compiled_model as litert

        self._inputs, self._outputs, self._model = [], [], None
        gpu = litert.GpuOptions(enforce_f32=precision == "fp32", benchmark_mode=benchmark_mode)
        wanted = litert.HardwareAccelerator.GPU
        if with_cpu:
            wanted |= litert.HardwareAccelerator.CPU
        options = litert.Options(hardware_accelerators=wanted, gpu_options=gpu)
        model = litert.CompiledModel.from_file(path, options=options)
        key, names = next(iter(model.get_signature_list().items()))
        self._inputs = _places(names["inputs"], model.get_input_tensor_details(key), model.create_input_buffers(0))
        self._outputs = _places(names["outputs"], model.get_output_tensor_details(key), model.create_output_buffers(0))
        self._model = model
        return [str(name) for name in names["outputs"]]

    def run(self, inputs: list[NDArray[Any]]) -> tuple[list[NDArray[Any]], tuple[float, float, float]]:
        """Writes, runs and reads; returns outputs and the three times in milliseconds."""
        self._check(inputs)
        start = time.perf_counter()
        for (buffer, _, _), array in zip(self._inputs, inputs, strict=True):
            buffer.write(array)
        written = time.perf_counter()
        self._model.run_by_index(0, [b for b, _, _ in self._inputs], [b for b, _, _ in self._outputs])
        ran = time.perf_counter()
        found = [b.read(int(np.prod(shape)), dtype) for b, shape, dtype in self._outputs]
        done = time.perf_counter()
        arrays = [a.reshape(shape) for a, (_, shape, _) in zip(found, self._outputs, strict=True)]
        return arrays, ((written - start) * 1e3, (ran - written) * 1e3, (done - ran) * 1e3)

    def _check(self, inputs: list[NDArray[Any]]) -> None:
        """Raises ValueError unless the arrays are the signature's: LiteRT itself takes one that is too small."""
        wanted = [f"{dtype} {list(shape)}" for _, shape, dtype in self._inputs]
        found = [f"{a.dtype} {list(a.shape)}" for a in inputs]
        if wanted != found:
            raise ValueError(f"expected {', '.join(wanted)}; got {', '.join(found) or 'none'}")


def _places(names: list[str], details: dict[str, Any], buffers: list[Any]) -> list[_Place]:
    """Puts buffers beside shape and dtype, in the order of the signature."""
    pairs = zip(names, buffers, strict=True)
    return [(buffer, tuple(details[n]["shape"]), np.dtype(details[n]["dtype"])) for n, buffer in pairs]


def _serve(pipe: Connection) -> None:
    """Answers until the parent closes the socket."""
    server = _Server()
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            verb, *arguments = pipe.recv()
            try:
                pipe.send(("ok", getattr(server, verb)(*arguments)))
            except (RuntimeError, ValueError, TypeError, KeyError, ImportError) as error:
                pipe.send((type(error).__name__, str(error)))


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
