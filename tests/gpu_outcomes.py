"""What LiteRT's GPU accelerator makes of a small graph, judged by TFLite's reference kernels."""

from __future__ import annotations

import numpy as np

from edge_seg.converters import interpreter
from edge_seg.converters.flatbuffer import read_graph
from edge_seg.converters.gpu.accelerator import Accelerator, Crashed
from edge_seg.errors import ArtifactError, MissingHere

_STARTED = {}


def accelerator(precision="fp32"):
    """One process for all tests, started anew after a crash; None with a reason in `missing` where there is none."""
    if precision not in _STARTED or _STARTED[precision].is_closed:
        _STARTED[precision] = Accelerator(precision)
    return _STARTED[precision]


def missing(precision="fp32"):
    """Returns why there is no accelerator here, "" where there is one; a process that dies is no reason to skip."""
    try:
        accelerator(precision)
    except MissingHere as error:
        if "died" in error.got:
            raise
        return f"{error.what} {error.todo}"
    return ""


def close_all():
    while _STARTED:
        _STARTED.popitem()[1].close()


def noise(graph, low, high):
    """Seeded inputs of a graph."""
    rng = np.random.default_rng(0)
    return [_noise(rng, graph.tensors[i], low, high) for i in graph.inputs]


def _noise(rng, tensor, low, high):
    if tensor.dtype == "float32":
        return rng.uniform(low, high, tensor.shape).astype(np.float32)
    if tensor.dtype == "bool":
        return rng.integers(0, 2, tensor.shape).astype(bool)
    bounds = (-128, 128) if tensor.dtype == "int8" else (0, 6)
    return rng.integers(*bounds, tensor.shape).astype(tensor.dtype)


def on_the_cpu(path, inputs):
    """The outputs of TFLite's reference kernels; those of its default ones where there is no reference."""
    graph = read_graph(path)
    module, _ = interpreter._runtime()
    kind = "AUTO" if {"CEIL", "ELU"} & {op.name for op in graph.ops} else "BUILTIN_REF"
    run = interpreter._prepared(module, path, 1, kind)
    for place, values in zip(graph.inputs, inputs, strict=True):
        run.set_tensor(place, values)
    run.invoke()
    return [run.get_tensor(place) for place in graph.outputs]


def error_of_range(wanted, found):
    """Largest error as a share of the output's range or largest value, whichever is larger."""
    a, b = wanted.astype(np.float64), found.astype(np.float64)
    scale = max(a.max() - a.min(), np.abs(a).max())
    return float(np.abs(a - b).max() / scale)


def is_right(wanted, found, tolerance):
    """Floats to a share of the range, integers to one step, truth values exactly."""
    if wanted.dtype != found.dtype or wanted.shape != found.shape:
        return False
    if wanted.dtype == np.float32:
        return error_of_range(wanted, found) <= tolerance
    return int(np.abs(wanted.astype(int) - found.astype(int)).max()) <= (wanted.dtype != bool)


def outcome(case, path):
    """Runs a case on the accelerator: "right", "wrong", "refused" or "crashed"."""
    path.write_bytes(case.build())
    inputs = noise(read_graph(path), case.low, case.high)
    try:
        gpu = accelerator()
        gpu.open(path)
        found, _ = gpu.run(inputs)
    except Crashed:
        return "crashed"
    except ArtifactError:
        return "refused"
    pairs = zip(on_the_cpu(path, inputs), found, strict=True)
    return "right" if all(is_right(a, b, case.tolerance) for a, b in pairs) else "wrong"
