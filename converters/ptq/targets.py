"""Which scheme suits which processor, and what a scheme costs on a network: from measurements and operator rules."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from edge_seg.converters.check import DELEGATES, Verdict, judge
from edge_seg.converters.graph import Graph
from edge_seg.errors import InputError, nearest
from edge_seg.schemes import SCHEMES

Target = Literal["gpu", "cpu", "npu"]
TARGETS: tuple[str, ...] = get_args(Target)


@dataclass(frozen=True)
class Advice:
    """A scheme for a processor.

    Attributes:
        target: The processor.
        scheme: What to convert to.
        why: One or two sentences.
    """

    target: str
    scheme: str
    why: str


def check_target(target: str) -> None:
    """Raises InputError for a processor that there is no advice for."""
    if target not in TARGETS:
        raise InputError(f"There is no target {target!r}.", got=target, todo=nearest(target, TARGETS))


def advise(graph: Graph, target: str) -> Advice:
    """Picks the scheme for a processor.

    Args:
        graph: The float network.
        target: "gpu", "cpu" or "npu".

    Raises:
        InputError: Another word.
    """
    check_target(target)
    if target == "gpu":
        why = "a GPU computes in half precision and gains nothing from int8; fp16 is half the size, and an fp16 file"
        return Advice(target, "fp16", f"{why} scored within 0.1 PQ of fp32 here.")
    if target == "npu":
        why = "NPUs run static integer networks, and many run nothing else; no NPU was measured here"
        return Advice(target, "w8a8", f"{why}. It needs calibration pictures.")
    verdict = as_int8(graph)
    if verdict.fully_delegable and verdict.partitions == 1:
        why = "the whole network stays in one XNNPACK partition in int8; such networks ran 1.1 to 1.7 times as fast as"
        return Advice(target, "w8a8", f"{why} fp32 on the x86 host measured here. It needs calibration pictures.")
    words = ", ".join(_refused(verdict))
    why = f"in int8, {words} would fall out of XNNPACK and cut the network into {verdict.partitions} partitions"
    slower = "networks cut like that, and dynamic int8, ran slower than fp32 where they were measured"
    return Advice(target, "fp32", f"{why}; {slower}.")


def as_int8(graph: Graph) -> Verdict:
    """Judges what XNNPACK would make of a float network after static int8 quantisation, by rules."""
    tensors = tuple(replace(t, dtype="int8") if t.dtype == "float32" else t for t in graph.tensors)
    return judge(replace(graph, tensors=tensors), DELEGATES["xnnpack"]())


def scheme_warnings(graph: Graph, scheme: str) -> tuple[str, ...]:
    """Returns what an integer scheme costs on a CPU, for a converted file; empty where it costs nothing.

    Args:
        graph: The converted file.
        scheme: Its scheme.
    """
    if SCHEMES[scheme].activation_bits == 16:
        return (
            f"{scheme}: XNNPACK has no kernels for int16 activations; plain ones run, many times slower than fp32.",
        )
    if SCHEMES[scheme].kind not in ("static", "trained"):
        return ()
    verdict = judge(graph, DELEGATES["xnnpack"]())
    if verdict.fully_delegable and verdict.partitions <= 1:
        return ()
    words = ", ".join(_refused(verdict)) or "nothing"
    start = f"{scheme}: by the rules XNNPACK gets {verdict.partitions} partitions and leaves out {words}"
    return (f"{start}. Each boundary costs time; use ReLU or ReLU6 and BatchNorm in networks for int8.",)


def _refused(verdict: Verdict) -> list[str]:
    names = [f.op for f in verdict.refused]
    return [f"{names.count(name)} {name}" for name in dict.fromkeys(names)]
