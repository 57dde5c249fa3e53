"""Float network -> network that computes on integer grids, for any body of the registry.

The body is rewritten as a graph: exact rewrites first (4x4 kernels, split 7x7, folded coordinates), BatchNorm folded
into convolutions, then a grid behind every operation, as TFLite's int8 kernels have them. Module paths stay, so that
everything that handles a float network (training, checkpoints, export) handles this one.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import fx, nn

from edge_seg.errors import InputError
from edge_seg.layers import ops
from edge_seg.layers.coordinates import fold_coordinates
from edge_seg.layers.picture import fold_deviation
from edge_seg.models.base import Network, plain_convolutions, split_convolutions
from edge_seg.quantization.convolutions import QuantConv2d, QuantNormalize
from edge_seg.quantization.grids import ON_ITS_GRID, ActivationGrid, RangeOptions
from edge_seg.schemes import INPUT_GRID, JOINS_GRIDS, KEEPS_GRID

GRIDS = "grids"
"""Name of the submodule that holds the grids of activations."""

_KINDS: dict[type[nn.Module], str] = {
    nn.Conv2d: "conv",
    QuantConv2d: "conv",
    QuantNormalize: "conv",
    ops.Normalize: "conv",
    ops.Add: "add",
    ops.Concat: "concat",
    ops.GlobalMean: "mean",
    ops.Upsample: "resize",
    ops.ResizeLike: "resize",
    ops.Resize: "resize",
    ops.ConstantMap: "constant",
    nn.ReLU: "activation",
    nn.ReLU6: "activation",
    nn.BatchNorm2d: "norm",
    nn.Identity: "nothing",
}


class _Tracer(fx.Tracer):
    """Keeps the elementary operations of `edge_seg.layers.ops` whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m).__module__ == ops.__name__ or super().is_leaf_module(m, module_qualified_name)


def prepare(network: Network, options: RangeOptions) -> Network:
    """Makes a network compute on integer grids, in place.

    Args:
        network: A float network. Its weights are kept; BatchNorm statistics are frozen and folded.
        options: How ranges come about.

    Returns:
        `network`, whose body is now an `fx.GraphModule` with the same module paths.

    Raises:
        InputError: The body has an operation without a rule for int8.
    """
    deferred = deferred_convolutions(network)
    body = split_convolutions(plain_convolutions(fold_coordinates(fold_deviation(copy.deepcopy(network.body).eval()))))
    body.requires_grad_(True)
    module = fx.GraphModule(body, _Tracer().trace(body))
    _drop_identities(module)
    _fold(module, deferred, options)
    _insert_grids(module, deferred, options)
    module.delete_all_unused_submodules()
    module.recompile()
    network.body = module
    return network


def is_prepared(body: nn.Module) -> bool:
    """Returns whether a body computes on integer grids."""
    return isinstance(body, fx.GraphModule) and any(isinstance(m, ActivationGrid) for m in body.modules())


def deferred_convolutions(network: Network) -> frozenset[str]:
    """Returns the paths of the convolutions that the export leaves to the decoder; they stay in float."""
    exported = network.export_graph().body
    paths = {path for path, module in exported.named_modules() if isinstance(module, nn.Identity)}
    whole = dict(network.body.named_modules())
    return frozenset(p for p in paths if isinstance(whole.get(p), nn.Conv2d))


def kind_of(module: fx.GraphModule, node: fx.Node) -> str:
    """Returns the kind of an operation: conv, add, concat, mean, resize, activation, norm or nothing.

    Raises:
        InputError: There is no rule for it in int8.
    """
    if node.op == "call_module":
        kind = _KINDS.get(type(module.get_submodule(str(node.target))))
        if kind:
            return kind
        name = f"{node.target} ({type(module.get_submodule(str(node.target))).__name__})"
    else:
        name = f"{node.name} ({node.target})"
    raise InputError(
        f"There is no int8 rule for {name}.",
        expected="modules of edge_seg.layers.ops, convolution, BatchNorm, ReLU or ReLU6",
        todo="write the body with these modules, or add a rule in edge_seg/quantization/prepare.py",
    )


def _operations(module: fx.GraphModule) -> Iterator[tuple[fx.Node, str]]:
    """Yields every operation with its kind, in the order of computation."""
    for node in list(module.graph.nodes):
        if node.op not in ("placeholder", "output", "get_attr"):
            yield node, kind_of(module, node)


def _drop_identities(module: fx.GraphModule) -> None:
    for node, kind in _operations(module):
        if kind == "nothing":
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            module.graph.erase_node(node)


def _fold(module: fx.GraphModule, deferred: frozenset[str], options: RangeOptions) -> None:
    """Replaces convolutions, each with the BatchNorm behind it, and the normalisation of the picture."""
    taken: set[str] = set()
    for node in list(module.graph.nodes):
        if node.op != "call_module" or node.target in deferred:
            continue
        child = module.get_submodule(node.target)
        if isinstance(child, ops.Normalize):
            module.set_submodule(node.target, QuantNormalize(child))
        elif type(child) is nn.Conv2d or node.target in taken:
            norm = _only_user(node, lambda n: _is_norm(module, n))
            bn = module.get_submodule(str(norm.target)) if norm else None
            path = node.target if node.target not in taken else f"{node.target}_{node.name}"
            taken.add(node.target)
            module.set_submodule(path, QuantConv2d(child, bn, options))  # type: ignore[arg-type]
            node.target = path
            if norm is not None:
                norm.replace_all_uses_with(node)
                module.graph.erase_node(norm)


def _is_norm(module: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), nn.BatchNorm2d)


def _only_user(node: fx.Node, wanted: Callable[[fx.Node], bool]) -> fx.Node | None:
    """Returns the one user of a node if it is as `wanted`."""
    users = list(node.users)
    return users[0] if len(users) == 1 and wanted(users[0]) else None


@dataclass
class _Value:
    """A tensor that gets a grid: the node that computes it (after a fused activation), and which values it joins."""

    node: fx.Node
    kind: str
    group: int
    site: int = ON_ITS_GRID


def _insert_grids(module: fx.GraphModule, deferred: frozenset[str], options: RangeOptions) -> None:
    values = _joined(module, _values(module, deferred))
    holder = nn.Module()
    module.add_submodule(GRIDS, holder)
    sites: dict[int, list[_Value]] = {}
    for value in values.values():
        if value.kind == "input" or value.kind not in KEEPS_GRID | JOINS_GRIDS:
            members = sites.setdefault(value.group, [])
            value.site = len(members)
            members.append(value)
    names = {group: members[0].node.name for group, members in sites.items()}
    for group, members in sites.items():
        known = [r for m in members if (r := _known_range(module, m, values))]
        grid = fixed_grid(*known[0]) if known else ActivationGrid(len(members), options)
        holder.add_module(names[group], grid)
    for value in values.values():
        with module.graph.inserting_after(value.node):
            on_grid = module.graph.call_module(f"{GRIDS}.{names[value.group]}", (value.node, value.site))
        value.node.replace_all_uses_with(on_grid, delete_user_cb=partial(operator.is_not, on_grid))


def _known_range(module: fx.GraphModule, value: _Value, values: dict[fx.Node, _Value]) -> tuple[float, float] | None:
    """Returns the range of the picture, and of its sum with one number: bytes, whatever is seen; None for others."""
    low, high = INPUT_GRID.range
    if value.kind == "input":
        return low, high
    sources = [values[n] for n in value.node.all_input_nodes if n in values]
    if value.kind != "add" or sorted(s.kind for s in sources) != ["constant", "input"]:
        return None
    (constant,) = (s.node for s in sources if s.kind == "constant")
    shift: Any = module.get_submodule(str(constant.target)).value
    return (low + float(shift), high + float(shift)) if shift.numel() == 1 else None


def fixed_grid(low: float, high: float) -> ActivationGrid:
    """Returns a grid whose range does not follow what is seen."""
    grid = ActivationGrid(1, RangeOptions(observe_steps=0))
    grid.get_buffer("low").fill_(low)
    grid.get_buffer("high").fill_(high)
    grid.get_buffer("steps").fill_(1)
    return grid


def _values(module: fx.GraphModule, deferred: frozenset[str]) -> dict[fx.Node, _Value]:
    """Returns the values that get a grid, by node: inputs and operations, an activation fused into what it follows."""
    values: dict[fx.Node, _Value] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            values[node] = _Value(node, "input", len(values))
    fused: set[fx.Node] = set()
    for node, kind in _operations(module):
        if node in fused or node.target in deferred:
            continue
        if kind == "norm":
            raise InputError(
                f"The BatchNorm {node.target} follows no convolution of its own.",
                expected="convolution, BatchNorm, activation",
                todo="fold it, or write it as a 1x1 depthwise convolution",
            )
        last = _only_user(node, lambda n: n.op == "call_module" and kind_of(module, n) == "activation")
        last = last if last is not None and kind in ("conv", "add") else node
        fused.add(last)
        values[last] = _Value(last, kind, len(values))
    return values


def _joined(module: fx.GraphModule, values: dict[fx.Node, _Value]) -> dict[fx.Node, _Value]:
    """Gives values that must share a grid one group."""
    for value in values.values():
        if value.kind not in KEEPS_GRID | JOINS_GRIDS:
            continue
        sources = list(value.node.all_input_nodes)
        for source in sources[:1] if value.kind in KEEPS_GRID else sources:
            old, new = values[source].group, value.group
            for other in values.values():
                other.group = new if other.group == old else other.group
    return values


def grids_of(network: nn.Module) -> dict[str, ActivationGrid]:
    """Returns the activation grids of a prepared network by path."""
    return {path: m for path, m in network.named_modules() if isinstance(m, ActivationGrid)}


def unobserved(network: nn.Module) -> list[str]:
    """Returns the paths of grids that have seen nothing yet."""
    return [path for path, grid in grids_of(network).items() if not grid.observed()]
