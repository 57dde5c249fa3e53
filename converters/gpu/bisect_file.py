"""`edge-seg bisect`: one file on the CPU and on the GPU accelerator, and the operator at which they part."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.artifact import plain_json
from edge_seg.contract import Contract
from edge_seg.converters.check import DELEGATES, OpFinding, judge
from edge_seg.converters.flatbuffer import read_bytes
from edge_seg.converters.gpu.accelerator import Accelerator, Precision
from edge_seg.converters.gpu.bisect import Arrays, Difference, Found, Parting, Search, Values
from edge_seg.converters.gpu.cuts import Cuts
from edge_seg.converters.graph import Graph, OpInfo
from edge_seg.converters.interpreter import check_picture, encode, places, plain_interpreter
from edge_seg.converters.metadata import read_contract
from edge_seg.errors import InputError

# The first is the tolerance of `verify` for float outputs. In half precision every operator rounds to 2^-11 of a
# value; whole networks reached 1.4e-1 of the range (see `verify.HALF_ARITHMETIC`), tensors on the way much less.
LIMITS: Mapping[Precision, float] = {"fp32": 1e-5, "fp16": 2e-2}
_ULPS: Mapping[Precision, float] = {"fp32": 2.0**-23, "fp16": 2.0**-10}
_SEEDS = 2
_BLOCK_PX = 16


@dataclass(frozen=True)
class Bisected:
    """What `bisect` found.

    Attributes:
        file: Its name.
        precision: Arithmetic of the accelerator.
        adapter: The device, in the words of its log.
        limit: Share of a tensor's range up to which the devices agree.
        inputs: What was fed, for people.
        graph: The file's graph.
        found: The search.
        rules: What `check --delegate gpu` says about the operators that were named.
    """

    file: str
    precision: Precision
    adapter: str
    limit: float
    inputs: str
    graph: Graph
    found: Found
    rules: tuple[OpFinding, ...]

    @property
    def parting(self) -> Parting | None:
        """Where the devices part, or None."""
        return self.found.partings[-1] if self.found.partings else None

    def to_json(self) -> dict[str, Any]:
        """Returns the result as plain JSON types; what is not finite becomes null."""
        names = {t: self.graph.tensors[t].name for t in self.found.outputs}
        document = {
            **{k: getattr(self, k) for k in ("file", "precision", "adapter", "limit", "inputs")},
            "outputs": {names[t]: asdict(d) for t, d in self.found.outputs.items()},
            "parting": self._parting_json(),
            "tried": [{"op": op, "range_share": share} for op, share in self.found.tried.items()],
        }
        return dict(plain_json(document))

    def _parting_json(self) -> dict[str, Any] | None:
        parting = self.parting
        if parting is None:
            return None
        op = self.graph.ops[parting.op]
        named = {"type": op.name, "module": self.graph.source(op), "tensor": self.graph.tensors[parting.tensor].name}
        return {**asdict(parting), **named, "rules": [asdict(r) for r in self.rules], "next": self.advice()}

    def text(self) -> str:
        """Returns the result for people."""
        worst = max(self.found.outputs.values(), key=lambda d: d.range_share)
        head = f"{self.file} in {self.precision} on {self.adapter}, {self.inputs}: largest difference of an output"
        head = f"{head} {_figures(worst)}"
        if self.parting is None:
            return f"{head}\nthe GPU and the CPU do not part: within {self.limit:.2g} of the range"
        parting, op = self.parting, self.graph.ops[self.parting.op]
        before = _figures(parting.before) if parting.before else "the graph's own input"
        lines = [
            f"{head}\nthey part at #{op.index} {op.name} {self._place(op)}",
            f"  before it  {before}",
            f"  behind it  {_figures(parting.after)}",
            f"  {self._verdict(parting)}",
        ]
        for rule in self.rules:
            lines.append(f"  rule       #{rule.index} {rule.op}: {rule.reason} ({rule.rule})")
        return "\n".join([*lines, f"  next       {self.advice()}"])

    def _verdict(self, parting: Parting) -> str:
        own = f"{_figures(parting.alone)} on the CPU's own inputs, where {parting.allowed_share:.2g} is rounding"
        if parting.how == "alone":
            return f"alone      {own}: this operator is wrong by itself"
        if parting.how == "together":
            others = ", ".join(f"#{i} {self.graph.ops[i].name}" for i in parting.with_ops)
            return f"together   {own}: wrong only together with {others}; alone it is right"
        before = parting.before.range_share if parting.before else 0.0
        grew = f", and grows {parting.after.range_share / before:.0f} times here" if before else ""
        return f"alone      {own}: right by itself, rounding has added up{grew}"

    def advice(self) -> str:
        """Returns the next step."""
        parting = self.parting
        if parting is None:
            return ""
        if _is_hybrid(self.graph, self.graph.ops[parting.op]):
            return "the CPU puts this operator's input on an int8 grid (w8_dynamic), the GPU does not"
        if parting.how == "accumulated":
            return (
                "no operator is wrong; `verify --kernels gpu` says whether the outputs are farther from PyTorch than "
                "rounding explains, `evaluate` what it costs"
            )
        rewrites = list(dict.fromkeys(r.rewrite for r in self.rules))
        if rewrites:
            return f"rewrite: {'; '.join(rewrites)}"
        return "no rule knows this: write the operator in another way, and report it with this file"

    def _place(self, op: OpInfo) -> str:
        tensor = self.graph.tensors[self.parting.tensor if self.parting else op.outputs[0]]
        return f"{self.graph.source(op) or tensor.name} {list(tensor.shape)}"


def bisect_file(
    path: Path, pictures: Sequence[NDArray[np.uint8]] = (), *, precision: Precision = "fp32", limit: float | None = None
) -> Bisected:
    """Finds the first operator whose result on the GPU accelerator parts from the CPU's.

    Args:
        path: A .tflite.
        pictures: Letterboxed pictures, [H, W, 3] uint8; none takes seeded noise.
        precision: Arithmetic of the accelerator.
        limit: Share of a tensor's range up to which they agree; None takes that of the precision.

    Raises:
        InputError: No such file, a limit that is not positive, or pictures for a file without a contract.
        ArtifactError: The file is broken, or the accelerator does not take it whole.
        MissingHere: No Vulkan implementation here runs the accelerator in this precision.
    """
    limit = LIMITS[precision] if limit is None else limit
    if not limit > 0.0:
        raise InputError("The limit is a share of the range.", expected="more than 0", got=str(limit))
    data = read_bytes(path)
    cuts = Cuts(data, path)
    inputs, said = _inputs(path, cuts.graph, pictures)
    with Accelerator(precision) as accelerator, tempfile.TemporaryDirectory(prefix="edge_seg_") as folder:
        accelerator.open(path)  # a refusal then names the file itself
        gpu = _OnGpu(accelerator, Path(folder) / "part.tflite")
        values = every_value(data, cuts.graph, inputs)
        found = Search(cuts, values, gpu, on_cpu, limit, _ULPS[precision]).run()
        adapter = f"{accelerator.adapter.name} ({accelerator.adapter.kind})"
    rules = _rules(cuts.graph, found)
    return Bisected(path.name, precision, adapter, limit, said, cuts.graph, found, rules)


class _OnGpu:
    """Runs files on an open accelerator."""

    def __init__(self, accelerator: Accelerator, path: Path) -> None:
        self._accelerator, self._path = accelerator, path

    def __call__(self, file: bytes, inputs: Sequence[Arrays]) -> list[list[NDArray[Any]]]:
        self._path.write_bytes(file)
        self._accelerator.open(self._path)
        order = np.argsort(self._accelerator.outputs)  # output_000, output_001 ...
        runs = (self._accelerator.run(arrays)[0] for arrays in inputs)
        return [[run[k] for k in order] for run in runs]


def on_cpu(file: bytes, inputs: Sequence[Arrays]) -> list[list[NDArray[Any]]]:
    """Runs a file on XNNPACK, once for each list of inputs; raises ArtifactError where the runtime does not take it."""
    interpreter = plain_interpreter(file)
    places_in = [d["index"] for d in interpreter.get_input_details()]
    places_out = [d["index"] for d in interpreter.get_output_details()]
    found = []
    for arrays in inputs:
        for place, array in zip(places_in, arrays, strict=True):
            interpreter.set_tensor(place, array)
        interpreter.invoke()
        found.append([interpreter.get_tensor(place).copy() for place in places_out])
    return found


def every_value(data: bytes, graph: Graph, inputs: Sequence[Mapping[int, NDArray[Any]]]) -> Values:
    """Returns what the CPU computes: the inputs and every operator's results by tensor, for each of `inputs`."""
    interpreter = plain_interpreter(data, keep_all=True)
    wanted = [*graph.inputs, *(t for op in graph.ops for t in op.outputs)]
    values = []
    for arrays in inputs:
        for place, array in arrays.items():
            interpreter.set_tensor(place, array)
        interpreter.invoke()
        values.append({t: interpreter.get_tensor(t).copy() for t in wanted})
    return values


def _inputs(
    path: Path, graph: Graph, pictures: Sequence[NDArray[np.uint8]]
) -> tuple[list[dict[int, NDArray[Any]]], str]:
    """Returns the inputs by tensor, and what they are."""
    if not zipfile.is_zipfile(path):  # the contract travels in an archive behind the graph
        if pictures:
            raise InputError(f"{path} carries no contract: how a picture becomes its input is not known.")
        return [_noise(graph, seed) for seed in range(_SEEDS)], f"{_SEEDS} seeded noises"
    contract = read_contract(path)
    place, _ = places(graph, contract)
    chosen = list(pictures) or [_seeded_picture(contract, seed) for seed in range(_SEEDS)]
    for picture in chosen:
        check_picture(picture, contract)
    said = f"{len(chosen)} pictures" if pictures else f"{len(chosen)} seeded pictures"
    return [{place: encode(picture, contract.input.dtype)} for picture in chosen], said


def _seeded_picture(contract: Contract, seed: int) -> NDArray[np.uint8]:
    """Blocks of colour with grain, so that activations look like those of a picture."""
    rng, (width, height) = np.random.default_rng(seed), contract.input_wh_px
    blocks = rng.integers(0, 256, (-(-height // _BLOCK_PX), -(-width // _BLOCK_PX), 3))
    smooth = np.kron(blocks, np.ones((_BLOCK_PX, _BLOCK_PX, 1)))[:height, :width]
    return np.clip(smooth + rng.normal(0.0, 12.0, smooth.shape), 0, 255).astype(np.uint8)


def _noise(graph: Graph, seed: int) -> dict[int, NDArray[Any]]:
    rng, found = np.random.default_rng(seed), {}
    for index in graph.inputs:
        tensor = graph.tensors[index]
        if tensor.dtype == "float32":
            found[index] = rng.uniform(-1.0, 1.0, tensor.shape).astype(np.float32)
        else:
            low, high = (-128, 128) if tensor.dtype == "int8" else (0, 2)
            found[index] = rng.integers(low, high, tensor.shape).astype(tensor.dtype)
    return found


def _rules(graph: Graph, found: Found) -> tuple[OpFinding, ...]:
    if not found.partings:
        return ()
    named = {found.partings[-1].op, *found.partings[-1].with_ops}
    verdict = judge(graph, DELEGATES["gpu"]())
    return tuple(f for f in (*verdict.refused, *verdict.warnings) if f.index in named)


def _is_hybrid(graph: Graph, op: OpInfo) -> bool:
    """Whether the CPU multiplies float maps with int8 weights."""
    if len(op.inputs) < 2 or op.inputs[1] < 0:
        return False
    data, weights = graph.tensors[op.inputs[0]], graph.tensors[op.inputs[1]]
    return data.dtype == "float32" and weights.dtype == "int8" and weights.constant


def _figures(found: Difference) -> str:
    snr = "equal" if found.snr_db is None else f"{found.snr_db:.1f} dB"
    steps = "" if found.steps is None else f", {found.steps} steps"
    return f"{found.range_share:.2g} of its range ({snr}{steps})"
