"""Faults planted in converted files, and the report of `verify_layers` on them; the layers' tests share it."""

from __future__ import annotations

import functools

import numpy as np
from mirror_networks import everything_exported, everything_file, everything_folder
from test_converters_tinynet import converted_files, exported_folder

from edge_seg.converters import flatbuffer_edit, metadata
from edge_seg.converters.exported import open_exported
from edge_seg.converters.flatbuffer import read_graph
from edge_seg.converters.layers.verify import verify_layers
from edge_seg.converters.metadata import read_contract


def file_of(scheme):
    return everything_file() if scheme == "qat_w8a8" else converted_files()[scheme].file


def folder_of(scheme):
    return everything_folder() if scheme == "qat_w8a8" else exported_folder()


@functools.cache
def whole(scheme):
    """The report on the unharmed file of a scheme."""
    return verify_layers(file_of(scheme), folder_of(scheme))


def planted(scheme, fault, folder):
    """Writes a copy of a scheme's file with a fault, its contract inside."""
    exported = everything_exported() if scheme == "qat_w8a8" else open_exported(exported_folder())
    return planted_in(file_of(scheme), exported, fault, folder)


def planted_in(file, exported, fault, folder):
    """Writes a copy of a file with a fault, its contract inside."""
    graph, contract = read_graph(file), read_contract(file)
    model = flatbuffer_edit._unpack(file.read_bytes())
    fault(model, graph)
    order = metadata.output_order(graph, graph.signatures[0].key, contract)
    data = metadata.embed(flatbuffer_edit._pack(model), contract, constants=exported.constants, outputs=order)
    path = folder / file.name
    path.write_bytes(data)
    return path


def op_of(graph, module):
    """The operator that computes a module: not the padding in front of it, not what unpacks its weights."""
    skipped = ("PAD", "DEQUANTIZE")
    return next(o for o in graph.ops if graph.source(o) == module and o.name not in skipped)


def stored(graph, index):
    """The tensor that holds a constant: of float16 weights the one in front of their unpacking."""
    op = graph.producer(index)
    return op.inputs[0] if op is not None else index


def _write(model, graph, index, values):
    buffer = model.buffers[model.subgraphs[0].tensors[index].buffer]
    buffer.data, buffer.offset, buffer.size = values.tobytes(), 0, 0


def scale_doubled(module):
    """The scale of the map that a module writes."""

    def fault(model, graph):
        tensor = model.subgraphs[0].tensors[op_of(graph, module).outputs[0]]
        tensor.quantization.scale = np.array(tensor.quantization.scale, np.float32) * 2

    return fault


def channel_flipped(module, channel):
    """The sign of one output channel of a module's weights."""

    def fault(model, graph):
        op = op_of(graph, module)
        index = stored(graph, op.inputs[1])
        values = graph.constant(index).copy()
        place = (..., channel) if op.name == "DEPTHWISE_CONV_2D" else channel
        values[place] = -values[place]
        _write(model, graph, index, values)

    return fault


def bias_moved(module, channel):
    """One bias: by one step of its grid, or by 1e-3 where it is a float."""

    def fault(model, graph):
        index = op_of(graph, module).inputs[2]
        values = graph.constant(index).copy()
        values[channel] += 1 if values.dtype == np.int32 else values.dtype.type(1e-3)
        _write(model, graph, index, values)

    return fault


def wrongly_aligned(module, *, corners=False):
    """A resize that counts from the corners of pixels instead of their centres, or aligns the corners."""

    def fault(model, graph):
        options = model.subgraphs[0].operators[op_of(graph, module).index].builtinOptions
        options.halfPixelCenters, options.alignCorners = False, corners

    return fault
