"""The two programs called `benchmark_model`: which one a file is, and what to ask of it.

"classic" is TensorFlow Lite's (tensorflow/lite/tools/benchmark), "litert" is LiteRT's
(litert/tools/benchmark_litert_model). Their flags for delegates and precision differ, and each refuses the other's.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_seg.benchmarks.profile import Profile
from edge_seg.errors import InputError, MissingHere, nearest

Kind = Literal["classic", "litert"]
BINARY_VARIABLE = "EDGE_SEG_BENCHMARK_MODEL"
QNN_VARIABLE = "EDGE_SEG_QNN_DELEGATE"
RESULT_NAME = "results.pb"
# a flag that only one of them has, as it lies in the program's strings
_MARKS: tuple[tuple[bytes, Kind], ...] = ((b"gpu-precision", "litert"), (b"gpu_precision_loss_allowed", "classic"))
_MAX_LIBRARIES = 32


@dataclass(frozen=True)
class Tool:
    """A benchmark program on this machine.

    Attributes:
        path: The program.
        kind: Which of the two it is.
        libraries: Shared libraries beside it, which it loads for a GPU or an NPU.
    """

    path: Path
    kind: Kind
    libraries: tuple[Path, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that goes to the device."""
        return (self.path, *self.libraries)


def find_tool(named: str = "") -> Tool:
    """Returns the benchmark program that was named, or that $EDGE_SEG_BENCHMARK_MODEL names.

    Raises:
        MissingHere: None was named.
        InputError: It is not there, or is neither of the two.
    """
    name = named or os.environ.get(BINARY_VARIABLE, "")
    if not name:
        raise MissingHere(
            "No benchmark program was named.",
            expected="benchmark_model, built for the device's processor",
            todo=f"download android_arm64/benchmark_model of LiteRT or TFLite and set {BINARY_VARIABLE}=PATH",
        )
    path = Path(name)
    if not path.is_file():
        raise InputError(f"There is no file {path}.", expected="benchmark_model", todo=f"correct {BINARY_VARIABLE}")
    beside = sorted(item for item in path.parent.glob("lib*.so") if item.is_file())[:_MAX_LIBRARIES]
    return Tool(path, _kind(path), tuple(beside))


def _kind(path: Path) -> Kind:
    if path.stat().st_size:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for mark, kind in _MARKS:
                if data.find(mark) >= 0:
                    return kind
    raise InputError(
        f"{path} is not benchmark_model.",
        expected="TensorFlow Lite's or LiteRT's program, with its flags in it",
        todo="take benchmark_model of a release of LiteRT, or build it",
    )


def arguments(tool: Tool, profile: Profile, delegate: str, folder: str) -> list[str]:
    """Returns the flags for one run.

    Args:
        tool: The program.
        profile: Threads, runs, times and precision.
        delegate: "xnnpack", "none", "gpu", "nnapi" or "qnn".
        folder: The folder on the device, which holds `model.tflite`.

    Raises:
        InputError: The program has no such delegate, or cannot be asked for that precision.
        MissingHere: The delegate is a library that was not named.
    """
    asked = _DELEGATES[tool.kind]
    if delegate not in asked:
        raise InputError(
            f"This benchmark_model ({tool.kind}) has no delegate {delegate!r}.",
            got=delegate,
            todo=nearest(delegate, sorted(asked)),
        )
    flags = [
        f"--graph={folder}/model.tflite",
        f"--num_threads={profile.threads}",
        f"--num_runs={profile.min_runs}",
        f"--min_secs={profile.min_time_s:g}",
        f"--max_secs={profile.max_time_s:g}",
        *asked[delegate](profile.precision_for(delegate), folder),
    ]
    return [*flags, f"--result_file_path={folder}/{RESULT_NAME}"] if tool.kind == "litert" else flags


_Asked = Callable[[str, str], list[str]]


def _cpu_classic(precision: str, folder: str) -> list[str]:
    if precision == "fp32":
        raise _no_precision("xnnpack", precision)
    return ["--use_xnnpack=true", *(["--xnnpack_force_fp16=true"] if precision == "fp16" else [])]


def _plain_classic(precision: str, folder: str) -> list[str]:
    if precision != "file":
        raise _no_precision("none", precision)
    return ["--use_xnnpack=false"]


def _gpu_classic(precision: str, folder: str) -> list[str]:
    return ["--use_gpu=true", f"--gpu_precision_loss_allowed={'true' if precision == 'fp16' else 'false'}"]


def _nnapi_classic(precision: str, folder: str) -> list[str]:
    # NNAPI's own CPU path would otherwise stand in for an accelerator without a word
    relaxed = ["--nnapi_allow_fp16=true"] if precision == "fp16" else []
    return ["--use_nnapi=true", "--disable_nnapi_cpu=true", *relaxed]


def _qnn_classic(precision: str, folder: str) -> list[str]:
    library = qnn_library()
    return [f"--external_delegate_path={folder}/{library.name}", "--external_delegate_options=backend_type:htp"]


def qnn_library() -> Path:
    """Returns Qualcomm's delegate; raises MissingHere where $EDGE_SEG_QNN_DELEGATE does not name it."""
    library = Path(os.environ.get(QNN_VARIABLE, ""))
    if not library.is_file():
        raise MissingHere(
            "Qualcomm's delegate is not here.",
            expected="libQnnTFLiteDelegate.so of the QNN SDK, with the libraries it needs beside benchmark_model",
            todo=f"set {QNN_VARIABLE}=PATH",
        )
    return library


def _cpu_litert(precision: str, folder: str) -> list[str]:
    if precision != "file":
        raise _no_precision("xnnpack", precision)
    return ["--use_cpu=true", "--use_gpu=false"]


def _gpu_litert(precision: str, folder: str) -> list[str]:
    # without the CPU in the list a graph that the GPU cannot take whole is refused, not quietly shared
    return ["--use_cpu=false", "--use_gpu=true", f"--gpu-precision={precision}"]


def _no_precision(delegate: str, precision: str) -> InputError:
    return InputError(
        f"benchmark_model cannot be asked for {precision} on {delegate}.",
        expected='precision = "file" in the profile',
        got=precision,
    )


_DELEGATES: dict[Kind, dict[str, _Asked]] = {
    "classic": {
        "xnnpack": _cpu_classic,
        "none": _plain_classic,
        "gpu": _gpu_classic,
        "nnapi": _nnapi_classic,
        "qnn": _qnn_classic,
    },
    "litert": {"xnnpack": _cpu_litert, "gpu": _gpu_litert},
}
