"""Runs a converted file on LiteRT's GPU accelerator: the same calls as `interpreter.TfliteRunner`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edge_seg.contract import Contract
from edge_seg.converters.flatbuffer import Graph, read_graph
from edge_seg.converters.gpu.accelerator import Accelerator, Precision, RunTimes
from edge_seg.converters.interpreter import check_picture, dequantize, encode, places, runtime_version
from edge_seg.converters.metadata import read_constants, read_contract
from edge_seg.errors import InputError


class GpuRunner:
    """A converted file on the GPU accelerator, whole: bytes in, raw outputs by contract name out.

    Close it, or use it in `with`: the work is done in a process of its own.

    Args:
        path: A .tflite that carries its contract.
        precision: Arithmetic; a device that computes in another one is refused.
        benchmark_mode: Makes `times.run_ms` hold the device's time; otherwise most of it can be in `times.read_ms`.
        with_cpu: Lets the CPU run the operators that the accelerator does not take; `told` then says how many.

    Raises:
        InputError: No such file, or a bad argument.
        ArtifactError: The file is broken or carries no contract.
        OpsRefused: An operator of it is not taken, and the CPU may not run it.
        MissingHere: No Vulkan implementation here runs the accelerator in this precision.
    """

    def __init__(
        self, path: Path, *, precision: Precision = "fp32", benchmark_mode: bool = False, with_cpu: bool = False
    ) -> None:
        self.path, self.with_cpu = path, with_cpu
        self.graph: Graph = read_graph(path)
        self.contract: Contract = read_contract(path)
        signature = self.graph.signatures[0] if self.graph.signatures else None
        if signature is None:
            raise InputError(f"{path} has no signature.", todo="convert it again with edge-seg")
        keys = {index: key for key, index in signature.outputs.items()}
        _, outputs = places(self.graph, self.contract)
        self._accelerator = Accelerator(precision, benchmark_mode=benchmark_mode, with_cpu=with_cpu)
        self.adapter = self._accelerator.adapter
        self.times = RunTimes(0.0, 0.0, 0.0)
        self._raw: list[NDArray[Any]] = []
        try:
            self._accelerator.open(path)
            order = self._accelerator.outputs  # by name: a file lists more than ten results in another order
            self._outputs = {name: order.index(keys[index]) for name, index in outputs.items()}
        except BaseException:
            self.close()
            raise

    @property
    def told(self) -> str:
        """What the runtime logged when it opened the file."""
        return self._accelerator.told

    @property
    def runtime(self) -> dict[str, str]:
        """Name and version of the runtime, the device and its arithmetic."""
        used = self._accelerator.vulkan
        adapter = {"adapter": self.adapter.name, "adapter_kind": self.adapter.kind, "precision": self.adapter.precision}
        return {**runtime_version(), **adapter, "vulkan": used.icd or used.place}

    @functools.cached_property
    def constants(self) -> Mapping[str, NDArray[Any]]:
        """The decoder's constants that travel with the file."""
        return read_constants(self.path)

    def __call__(self, input_hwc_u8: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Runs the network once; see `TfliteRunner.__call__`."""
        self.invoke(input_hwc_u8)
        return {n: dequantize(raw, self.contract.output(n).quantization) for n, raw in self.raw_outputs().items()}

    def invoke(self, input_hwc_u8: NDArray[np.uint8]) -> None:
        """Writes the input, runs the graph and reads every output; `times` then says how long that took.

        Args:
            input_hwc_u8: The letterboxed picture, uint8 [H, W, 3], RGB, of the contract's size.

        Raises:
            InputError: The picture has another shape or dtype than the contract's input, or the runner is closed.
            Crashed: The process of the accelerator died.
        """
        check_picture(input_hwc_u8, self.contract)
        self._raw, self.times = self._accelerator.run([encode(input_hwc_u8, self.contract.input.dtype)])

    def raw_outputs(self) -> dict[str, NDArray[Any]]:
        """Returns the last outputs by contract name, in the file's own dtype (int8 in w8a8)."""
        return {name: self._raw[place] for name, place in self._outputs.items()}

    def close(self) -> None:
        """Ends the process."""
        self._accelerator.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
