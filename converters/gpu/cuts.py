"""Parts of a graph as files of their own: its beginning up to an operator, and a few operators alone.

The GPU accelerator shows a graph's outputs and nothing between. A part makes a tensor in between an output; all that
lies before it stays inside, so that the accelerator may join the operators of a part as it does those of the whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from edge_seg.converters.flatbuffer import Graph, OpInfo, graph_of
from edge_seg.converters.flatbuffer_edit import Editor
from edge_seg.converters.op_rules import is_static


@dataclass(frozen=True)
class Part:
    """Some operators of a graph, as a graph.

    Attributes:
        ops: Operators in execution order.
        inputs: Tensors that it is given.
        outputs: Tensors that it gives.
    """

    ops: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class Cuts:
    """A .tflite that can be cut.

    Args:
        data: The whole file.
        path: Its name in messages.

    Attributes:
        graph: What it contains.
        positions: Operators after which it can be cut: those that compute something at run time.

    Raises:
        ArtifactError: The file is broken.
    """

    def __init__(self, data: bytes, path: Path) -> None:
        self.graph: Graph = graph_of(data, path)
        self._editor = Editor(data)
        self.positions = [op.index for op in self.graph.ops if any(self._computed(t) for t in op.outputs)]
        self._last_reader = {t: op.index for op in self.graph.ops for t in op.inputs if t >= 0}

    def head(self, position: int) -> Part:
        """Returns everything up to the operator `position`; what is still needed after it is the output."""
        return self._part(self.live(position), set())

    def live(self, position: int) -> tuple[int, ...]:
        """Returns the computed tensors that the rest of the graph reads, or that are results of the graph."""
        results = set(self.graph.outputs)
        made = [t for op in self.graph.ops[: position + 1] for t in op.outputs if self._computed(t)]
        return tuple(t for t in made if t in results or self._last_reader.get(t, -1) > position)

    def window(self, ops: Collection[int]) -> Part:
        """Returns some operators with what they read from others as inputs; the last one's results are the output."""
        last = self.graph.ops[max(ops)]
        read = {t for i in ops for t in self.runtime_inputs(self.graph.ops[i])}
        inside = {t for i in ops for t in self.graph.ops[i].outputs}
        return self._part(tuple(t for t in last.outputs if self._computed(t)), read - inside)

    def runtime_inputs(self, op: OpInfo) -> list[int]:
        """Returns the tensors that an operator reads and that are not constants, each once."""
        return list(dict.fromkeys(t for t in op.inputs if t >= 0 and self._computed(t)))

    def file(self, part: Part) -> bytes:
        """Returns a part as a file; arguments and results are in the order of the part's."""
        return self._editor.part(part.ops, part.inputs, part.outputs)

    def _computed(self, tensor: int) -> bool:
        return not is_static(self.graph, tensor)

    def _part(self, outputs: Iterable[int], given: Collection[int]) -> Part:
        """Walks back from `outputs` to the tensors `given` and to the graph's inputs."""
        stop = set(given) | set(self.graph.inputs)
        wanted, open_tensors = tuple(outputs), list(outputs)
        ops: set[int] = set()
        inputs: set[int] = set()
        while open_tensors:
            tensor = open_tensors.pop()
            op = self.graph.producer(tensor)
            if tensor in stop:
                inputs.add(tensor)
            elif op is not None and op.index not in ops:
                ops.add(op.index)
                open_tensors += [t for t in op.inputs if t >= 0]
        return Part(tuple(sorted(ops)), tuple(sorted(inputs)), wanted)
