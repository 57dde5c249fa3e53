"""Small graphs that the rules of the GPU delegate are tried on, at least one for every operator and every check.

A graph says what the rules must make of it and what LiteRT's GPU accelerator made of it (2.3.0 over SwiftShader,
float32 arithmetic). Extents are odd and channels no multiple of four on purpose: it packs channels in fours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from edge_seg.contract import Quantization
from edge_seg.converters.small_graph import GraphWriter

# "cpu_wrong": it differs from the CPU's kernels, and it is they that are wrong
Outcome = Literal["right", "wrong", "refused", "crashed", "cpu_wrong"]
H, W, C = 7, 10, 6
SHAPE = (1, H, W, C)
PER_CHANNEL = (1, 1, 1, C)
GRID = Quantization(0.03125, 5)
POSITIVE_GRID = Quantization(0.03125, -128)
WIDE_GRID = Quantization(0.1, 3)
UNIT_GRID = Quantization(1 / 256, -128)
SAME, VALID = 0, 1
RELU, TANH = 1, 4
TYPES = {"float32": 0, "int32": 2, "uint8": 3, "int64": 4, "bool": 6, "int8": 9}
CPU_VERSION = {"RESIZE_BILINEAR": 3, "RESIZE_NEAREST_NEIGHBOR": 3, "TRANSPOSE_CONV": 3, "CONV_2D": 3, "BROADCAST_TO": 2}
CPU_VERSION |= {"DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "CONCATENATION": 2, "TOPK_V2": 2, "DEQUANTIZE": 3}


@dataclass(frozen=True)
class Case:
    """A graph with one operator under test.

    Attributes:
        name: Name of the test.
        op: The operator the rule is about.
        build: Gives the file.
        accepted: Whether the rules must take the graph.
        accelerator: What the accelerator does with it.
        low: Smallest float input.
        high: Largest float input.
        tolerance: Largest error that is right, as a share of the output's range or largest value.
    """

    name: str
    op: str
    build: Callable[[], bytes]
    accepted: bool
    accelerator: Outcome
    low: float = -3.0
    high: float = 3.0
    tolerance: float = 1e-5


CASES: list[Case] = []


def conv_weights(cout: int, kernel: int, cin: int) -> Any:
    """Returns seeded weights [cout, kernel, kernel, cin] that keep the variance of what they convolve."""
    rng = np.random.default_rng(0)
    return (rng.normal(0, 1, (cout, kernel, kernel, cin)) / np.sqrt(kernel * kernel * cin)).astype(np.float32)


def takes(name: str, op: str, build: Callable[[], bytes], **values: float) -> None:
    """Adds a graph that the rules take; it must be right."""
    CASES.append(Case(name, op, build, True, "right", **values))


def refuses(name: str, op: str, build: Callable[[], bytes], accelerator: Outcome, **values: float) -> None:
    """Adds a graph that the rules refuse, and what the accelerator does with it."""
    CASES.append(Case(name, op, build, False, accelerator, **values))


class Build:
    """A graph to be: `Build("ADD").of(SHAPE).with_(constant).giving(SHAPE)` is called to get the file."""

    def __init__(self, op: str, dtype: str = "float32", grid: Quantization = GRID) -> None:
        self.op_name, self.dtype, self.grid = op, dtype, grid
        self.inputs: list[tuple[str, Any]] = []
        self.out: tuple[Any, ...] = (SHAPE,)
        self.out_dtype, self.out_grid = dtype, grid
        self.options: tuple[str, dict[str, Any]] | None = None

    def of(self, *shapes: Any, dtype: str = "") -> Build:
        """Adds arguments of the graph."""
        self.inputs += [("input", (s, dtype or self.dtype)) for s in shapes]
        return self

    def with_(self, *values: Any) -> Build:
        """Adds constants; whole numbers are int32."""
        self.inputs += [("constant", v if isinstance(v, np.ndarray | np.generic) else np.int32(v)) for v in values]
        return self

    def giving(self, *shapes: Any, dtype: str = "", grid: Quantization | None = None) -> Build:
        """Sets the outputs."""
        self.out, self.out_dtype, self.out_grid = shapes, dtype or self.dtype, grid or self.out_grid
        return self

    def so(self, options: str, **fields: Any) -> Build:
        """Sets the options."""
        self.options = (options, fields)
        return self

    def __call__(self) -> bytes:
        graph = GraphWriter()
        version = CPU_VERSION.get(self.op_name, 2 if self.dtype == "int8" and self.op_name not in _OLD else 1)
        places = [self._add(graph, i, kind, what) for i, (kind, what) in enumerate(self.inputs)]
        grid = self.out_grid if self.out_dtype == "int8" else None
        name = f"{self.op_name}:{version}"
        first = graph.op(name, places, self.out[0], self.out_dtype, grid=grid, options=self.options)
        rest = [graph.also(shape, self.out_dtype, grid=grid) for shape in self.out[1:]]
        return graph.finish(first, *rest)

    def _add(self, graph: GraphWriter, index: int, kind: str, what: Any) -> int:
        if kind == "input":
            return graph.input(f"x{index}", what[0], what[1], grid=self.grid if what[1] == "int8" else None)
        return graph.constant(what, grid=self.grid if what.dtype == np.int8 else None)


_OLD = {"NEG", "HARD_SWISH", "ELU", "PRELU", "LOG", "EXP", "GELU", "QUANTIZE", "RESHAPE"}


def f32(*values: float) -> Any:
    """Returns float32 values, a scalar where there is one."""
    return np.float32(values[0]) if len(values) == 1 else np.array(values, np.float32)


CHANNEL_VALUES = np.linspace(0.2, 1.3, C, dtype=np.float32)
HW_PAD = [[0, 0], [1, 2], [0, 1], [0, 0]]
HW_PADDED = (1, H + 3, W + 1, C)


# --- operators on one tensor
_POSITIVE = {"SQRT", "RSQRT", "LOG"}
_UNARY = [
    "RELU",
    "RELU6",
    "LOGISTIC",
    "TANH",
    "HARD_SWISH",
    "EXP",
    "ABS",
    "SQRT",
    "FLOOR",
    "ELU",
    "RSQRT",
    "SQUARE",
    "LOG",
    "NEG",
    "CEIL",
    "SIGN",
]
for _op in _UNARY:
    takes(_op.lower(), _op, Build(_op).of(SHAPE), low=0.05 if _op in _POSITIVE else -3.0)
for _op in ("SIN", "COS"):
    takes(_op.lower(), _op, Build(_op).of(SHAPE), tolerance=5e-4)
takes("gelu", "GELU", Build("GELU").of(SHAPE).so("GeluOptions", approximate=False))
takes("gelu by tanh", "GELU", Build("GELU").of(SHAPE).so("GeluOptions", approximate=True))
takes("leaky relu", "LEAKY_RELU", Build("LEAKY_RELU").of(SHAPE).so("LeakyReluOptions", alpha=0.1))
takes("prelu", "PRELU", Build("PRELU").of(SHAPE).with_(CHANNEL_VALUES.reshape(1, 1, C)))
_INT8_OUT = {"LOGISTIC": UNIT_GRID, "TANH": Quantization(1 / 128, 0), "ABS": GRID, "SQRT": Quantization(0.05, 0)}
for _op in ["RELU", "RELU6", "LOGISTIC", "TANH", "HARD_SWISH", "ABS", "ELU", "EXP"]:
    takes(f"int8 {_op.lower()}", _op, Build(_op, "int8").of(SHAPE).giving(SHAPE, grid=_INT8_OUT.get(_op, WIDE_GRID)))
takes("int8 sqrt", "SQRT", Build("SQRT", "int8", POSITIVE_GRID).of(SHAPE).giving(SHAPE, grid=_INT8_OUT["SQRT"]))
takes(
    "int8 gelu",
    "GELU",
    Build("GELU", "int8").of(SHAPE).giving(SHAPE, grid=WIDE_GRID).so("GeluOptions", approximate=False),
)
takes("int8 leaky relu", "LEAKY_RELU", Build("LEAKY_RELU", "int8").of(SHAPE).so("LeakyReluOptions", alpha=0.1))
# the CPU negates the integers and forgets the zero point; the accelerator is right
refuses("int8 neg", "NEG", Build("NEG", "int8").of(SHAPE), "cpu_wrong")

# --- operators on two tensors
_PAIRS = ["ADD", "SUB", "DIV", "MAXIMUM", "MINIMUM", "MUL", "SQUARED_DIFFERENCE", "POW"]
for _op in _PAIRS:
    _low = 0.2 if _op in ("DIV", "POW") else -3.0
    takes(_op.lower(), _op, Build(_op).of(SHAPE, SHAPE), low=_low)
    takes(f"{_op.lower()} per channel", _op, Build(_op).of(SHAPE, PER_CHANNEL), low=_low)
    takes(f"{_op.lower()} over channels", _op, Build(_op).of(SHAPE, (1, H, W, 1)), low=_low)
    takes(f"{_op.lower()} constant per channel", _op, Build(_op).of(SHAPE).with_(CHANNEL_VALUES), low=_low)
    takes(f"{_op.lower()} scalar", _op, Build(_op).of(SHAPE).with_(f32(1.7)), low=_low)
    refuses(f"{_op.lower()} of lower rank", _op, Build(_op).of(SHAPE, (1, W, C)), "right", low=_low)
for _op in ("ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM"):
    _out = GRID if _op in ("MAXIMUM", "MINIMUM") else WIDE_GRID
    takes(f"int8 {_op.lower()}", _op, Build(_op, "int8").of(SHAPE, SHAPE).giving(SHAPE, grid=_out))
    takes(f"int8 {_op.lower()} per channel", _op, Build(_op, "int8").of(SHAPE, PER_CHANNEL).giving(SHAPE, grid=_out))
    _graph = Build(_op, "int8").of(SHAPE, (1, W, C)).giving(SHAPE, grid=_out)
    refuses(f"int8 {_op.lower()} of lower rank", _op, _graph, "wrong")
takes("add both ways", "ADD", Build("ADD").of((1, H, 1, C), (1, 1, W, C)))
refuses("mul both ways", "MUL", Build("MUL").of((1, H, 1, C), (1, 1, W, C)), "right")
takes("add with relu", "ADD", Build("ADD").of(SHAPE, SHAPE).so("AddOptions", fusedActivationFunction=RELU))
# the CPU leaves the tanh out; the accelerator is right
_graph = Build("ADD").of(SHAPE, SHAPE).so("AddOptions", fusedActivationFunction=TANH)
refuses("add with tanh", "ADD", _graph, "cpu_wrong")
refuses("five axes", "RELU", Build("RELU").of((1, 2, 3, 4, 5)).giving((1, 2, 3, 4, 5)), "refused")
refuses("batch of two", "RELU", Build("RELU").of((2, H, W, C)).giving((2, H, W, C)), "right")


# --- convolutions and matrix products
def conv(*, stride: int = 1, dilation: int = 1, kernel: int = 3, activation: int = 0, fixed: bool = True) -> Build:
    """A SAME convolution of 6 to 5 channels."""
    weights = conv_weights(5, kernel, C)
    build = Build("CONV_2D").of(SHAPE)
    build = build.with_(weights) if fixed else build.of(weights.shape)
    fields = {"strideW": stride, "strideH": stride, "dilationWFactor": dilation, "dilationHFactor": dilation}
    build.so("Conv2DOptions", padding=SAME, fusedActivationFunction=activation, **fields)
    return build.with_(np.linspace(-1, 1, 5, dtype=np.float32)).giving((1, -(-H // stride), -(-W // stride), 5))


takes("conv", "CONV_2D", conv())
takes("conv stride 2", "CONV_2D", conv(stride=2))
takes("conv dilated", "CONV_2D", conv(dilation=2))
takes("conv 1x1 with relu", "CONV_2D", conv(kernel=1, activation=RELU))
takes("conv with weights computed at run time", "CONV_2D", conv(fixed=False))
refuses("conv with tanh", "CONV_2D", conv(activation=TANH), "cpu_wrong")
refuses("conv with sign bit", "CONV_2D", conv(activation=5), "refused")


def int8_conv() -> bytes:
    """An int8 convolution with int32 bias."""
    rng, graph, fine = np.random.default_rng(0), GraphWriter(), 0.003
    weights = graph.constant(rng.integers(-127, 128, (5, 3, 3, C)).astype(np.int8), grid=Quantization(fine, 0))
    bias = graph.constant(
        rng.integers(-9000, 9000, 5).astype(np.int32), grid=Quantization(float(np.float32(fine * GRID.scale)), 0)
    )
    strides = {"strideW": 1, "strideH": 1, "dilationWFactor": 1, "dilationHFactor": 1}
    options = ("Conv2DOptions", {"padding": SAME, **strides})
    source = graph.input("x", SHAPE, "int8", grid=GRID)
    inputs = [source, weights, bias]
    return graph.finish(graph.op("CONV_2D:3", inputs, (1, H, W, 5), "int8", grid=WIDE_GRID, options=options))


def half_weights() -> bytes:
    """A convolution whose weights are stored in float16."""
    graph, weights = GraphWriter(), conv_weights(5, 3, C)
    stored = graph.constant(weights.astype(np.float16))
    wide = graph.op("DEQUANTIZE:3", [stored], weights.shape)
    strides = {"strideW": 1, "strideH": 1, "dilationWFactor": 1, "dilationHFactor": 1}
    options = ("Conv2DOptions", {"padding": SAME, **strides})
    inputs = [graph.input("x", SHAPE), wide, graph.constant(np.zeros(5, np.float32))]
    return graph.finish(graph.op("CONV_2D:3", inputs, (1, H, W, 5), options=options))


takes("int8 conv", "CONV_2D", int8_conv)
takes("float16 weights", "DEQUANTIZE", half_weights)


def depthwise(*, stride: int = 1, kernel: int = 3, multiplier: int = 1, channels: int = C, fixed: bool = True) -> Build:
    """A SAME depthwise convolution."""
    weights = conv_weights(1, kernel, channels * multiplier)
    build = Build("DEPTHWISE_CONV_2D").of((1, H, W, channels))
    build = build.with_(weights) if fixed else build.of(weights.shape)
    fields = {"strideW": stride, "strideH": stride, "dilationWFactor": 1, "dilationHFactor": 1}
    build.so("DepthwiseConv2DOptions", padding=SAME, depthMultiplier=multiplier, **fields)
    bias = np.linspace(-1, 1, channels * multiplier, dtype=np.float32)
    return build.with_(bias).giving((1, -(-H // stride), -(-W // stride), channels * multiplier))


takes("depthwise", "DEPTHWISE_CONV_2D", depthwise())
takes("depthwise 7x7", "DEPTHWISE_CONV_2D", depthwise(kernel=7))
takes("depthwise stride 2", "DEPTHWISE_CONV_2D", depthwise(stride=2))
takes("depthwise widening one channel", "DEPTHWISE_CONV_2D", depthwise(channels=1, multiplier=3))
refuses("depthwise widening", "DEPTHWISE_CONV_2D", depthwise(multiplier=2), "right")
refuses("depthwise with computed weights", "DEPTHWISE_CONV_2D", depthwise(fixed=False), "right")


def transposed(kernel: int, stride: int, padding: int = SAME, *, fixed: bool = True) -> Build:
    """A transposed convolution of 6 to 5 channels."""
    grow = 0 if padding == SAME else kernel - stride
    shape = (1, H * stride + grow, W * stride + grow, 5)
    weights = conv_weights(5, kernel, C)
    build = Build("TRANSPOSE_CONV").with_(np.array(shape, np.int32))
    build = build.with_(weights) if fixed else build.of(weights.shape)
    build.so("TransposeConvOptions", padding=padding, strideW=stride, strideH=stride)
    return build.of(SHAPE).with_(np.linspace(-1, 1, 5, dtype=np.float32)).giving(shape)


for _kernel, _stride, _padding in (
    (2, 2, SAME),
    (4, 2, SAME),
    (6, 2, SAME),
    (3, 1, SAME),
    (3, 2, VALID),
    (4, 4, VALID),
):
    _name = f"transposed {_kernel} stride {_stride} {'VALID' if _padding else 'SAME'}"
    takes(_name, "TRANSPOSE_CONV", transposed(_kernel, _stride, _padding))
for _kernel, _stride in ((3, 2), (5, 2), (3, 3), (4, 4), (8, 4)):
    _name = f"transposed {_kernel} stride {_stride} SAME"
    refuses(_name, "TRANSPOSE_CONV", transposed(_kernel, _stride), "wrong")
refuses("transposed with computed weights", "TRANSPOSE_CONV", transposed(4, 2, fixed=False), "right")


def dense(shape: tuple[int, ...], out: tuple[int, ...], inner: int, *, keep: bool = False, fixed: bool = True) -> Build:
    """A fully connected layer to five channels."""
    weights = conv_weights(5, 1, inner).reshape(5, inner)
    build = Build("FULLY_CONNECTED").of(shape)
    build = build.with_(weights) if fixed else build.of(weights.shape)
    return build.with_(np.zeros(5, np.float32)).giving(out).so("FullyConnectedOptions", keepNumDims=keep)


takes("dense", "FULLY_CONNECTED", dense((1, 12), (1, 5), 12))
takes("dense over channels", "FULLY_CONNECTED", dense(SHAPE, (1, H, W, 5), C, keep=True))
takes("dense with computed weights", "FULLY_CONNECTED", dense(SHAPE, (1, H, W, 5), C, keep=True, fixed=False))
refuses("dense that flattens", "FULLY_CONNECTED", dense((1, 2, 2, 3), (1, 5), 12), "wrong")


def product(a: tuple[int, ...], b: tuple[int, ...], **flags: bool) -> Build:
    """A matrix product with 7 rows and 5 columns."""
    return Build("BATCH_MATMUL").of(a, b).giving((*a[:-2], 7, 5)).so("BatchMatMulOptions", **flags)


takes("product", "BATCH_MATMUL", product((1, 7, 6), (1, 6, 5)))
takes("product of four axes", "BATCH_MATMUL", product((1, 3, 7, 6), (1, 3, 6, 5)))
takes("product with transposed factor", "BATCH_MATMUL", product((1, 7, 6), (1, 5, 6), adjY=True))
refuses("product with repeated factor", "BATCH_MATMUL", product((1, 3, 7, 6), (1, 1, 6, 5)), "wrong")
refuses("product with matrix", "BATCH_MATMUL", product((1, 3, 7, 6), (6, 5)), "wrong")

# --- reductions and pooling
for _op in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"):
    _keep = {"keepDims": True}
    takes(
        f"{_op.lower()} over pixels",
        _op,
        Build(_op).of(SHAPE).with_(np.array([1, 2], np.int32)).giving(PER_CHANNEL).so("ReducerOptions", **_keep),
    )
    _graph = Build(_op).of(SHAPE).with_([3]).giving((1, H, W, 1)).so("ReducerOptions", **_keep)
    takes(f"{_op.lower()} over channels", _op, _graph)
    _graph = Build(_op).of(SHAPE).with_([0]).giving(SHAPE).so("ReducerOptions", **_keep)
    refuses(f"{_op.lower()} over the batch", _op, _graph, "right")
for _op in ("MEAN", "REDUCE_MAX", "REDUCE_MIN"):
    _graph = Build(_op, "int8").of(SHAPE).with_([1, 2]).giving(PER_CHANNEL).so("ReducerOptions", keepDims=True)
    takes(f"int8 {_op.lower()}", _op, _graph)
# the CPU's int8 sum is far from the sum of the real values; the accelerator is right
_graph = Build("SUM", "int8").of(SHAPE).with_([3]).giving((1, H, W, 1), grid=Quantization(1.0, 0))
refuses("int8 sum", "SUM", _graph.so("ReducerOptions", keepDims=True), "cpu_wrong")


def pool(op: str, dtype: str = "float32", *, stride: int = 2, padding: int = SAME) -> Build:
    """A 3x3 pooling."""
    sides = (-(-H // stride), -(-W // stride)) if padding == SAME else ((H - 3) // stride + 1, (W - 3) // stride + 1)
    fields = {"strideW": stride, "strideH": stride, "filterWidth": 3, "filterHeight": 3}
    return Build(op, dtype).of(SHAPE).giving((1, *sides, C)).so("Pool2DOptions", padding=padding, **fields)


def padded_pool(op: str, dtype: str = "float32", *, shared: bool = False) -> Callable[[], bytes]:
    """A 3x3 pooling behind a PAD; `shared` lets another operator read the padded picture too."""

    def build() -> bytes:
        graph, grid, version = GraphWriter(), GRID if dtype == "int8" else None, 2 if dtype == "int8" else 1
        amounts = graph.constant(np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32))
        source = graph.input("x", (1, 16, 16, 8), dtype, grid=grid)
        padded = graph.op(f"PAD:{version}", [source, amounts], (1, 18, 18, 8), dtype, grid=grid)
        fields = {"padding": VALID, "strideW": 2, "strideH": 2, "filterWidth": 3, "filterHeight": 3}
        options = ("Pool2DOptions", fields)
        pooled = graph.op(f"{op}:{version}", [padded], (1, 8, 8, 8), dtype, grid=grid, options=options)
        return graph.finish(pooled, *([graph.op("TANH", [padded], (1, 18, 18, 8))] if shared else []))

    return build


for _op in ("MAX_POOL_2D", "AVERAGE_POOL_2D"):
    takes(_op.lower(), _op, pool(_op))
    takes(f"{_op.lower()} valid", _op, pool(_op, padding=VALID))
    takes(f"{_op.lower()} stride 1", _op, pool(_op, stride=1))
    takes(f"int8 {_op.lower()}", _op, pool(_op, "int8"))
    takes(f"int8 {_op.lower()} of a padded picture", _op, padded_pool(_op, "int8"))
    takes(f"{_op.lower()} of a padded picture that is read twice", _op, padded_pool(_op, shared=True))
    refuses(f"{_op.lower()} of a padded picture", _op, padded_pool(_op), "wrong", low=-3.0, high=-1.0)

# --- softmax, cumulative sums
takes("softmax", "SOFTMAX", Build("SOFTMAX").of(SHAPE).so("SoftmaxOptions", beta=1.0), low=-8.0, high=8.0)
_graph = Build("SOFTMAX", "int8").of(SHAPE).giving(SHAPE, grid=UNIT_GRID).so("SoftmaxOptions", beta=1.0)
takes("int8 softmax", "SOFTMAX", _graph)
refuses("softmax with temperature", "SOFTMAX", Build("SOFTMAX").of(SHAPE).so("SoftmaxOptions", beta=2.0), "refused")


def cumsum(axis: int, **flags: bool) -> Build:
    """A cumulative sum."""
    return Build("CUMSUM").of(SHAPE).with_(axis).so("CumsumOptions", **flags)


for _axis in (1, 2, 3):
    takes(f"cumsum over axis {_axis}", "CUMSUM", cumsum(_axis))
refuses("cumsum over the batch", "CUMSUM", cumsum(0), "wrong")
refuses("cumsum exclusive", "CUMSUM", cumsum(2, exclusive=True), "wrong")
refuses("cumsum reverse", "CUMSUM", cumsum(2, reverse=True), "wrong")
refuses("cumsum over axis -1", "CUMSUM", cumsum(-1), "crashed")

# --- shapes
takes(
    "concat",
    "CONCATENATION",
    Build("CONCATENATION").of(SHAPE, (1, H, W, 5)).giving((1, H, W, 11)).so("ConcatenationOptions", axis=3),
)
_graph = Build("CONCATENATION", "int8").of(SHAPE, SHAPE).giving((1, H, W, 12)).so("ConcatenationOptions", axis=3)
takes("int8 concat", "CONCATENATION", _graph)
_graph = Build("CONCATENATION").of(SHAPE, SHAPE).giving((2, H, W, C)).so("ConcatenationOptions", axis=0)
refuses("concat along the batch", "CONCATENATION", _graph, "right")
takes("reshape", "RESHAPE", Build("RESHAPE").of(SHAPE).with_([1, H * W, C]).giving((1, H * W, C)))
takes("int8 reshape", "RESHAPE", Build("RESHAPE", "int8").of(SHAPE).with_([1, W, H, C]).giving((1, W, H, C)))
refuses(
    "reshape to five axes",
    "RESHAPE",
    Build("RESHAPE").of(SHAPE).with_([1, H, W, 2, 3]).giving((1, H, W, 2, 3)),
    "refused",
)
takes("transpose", "TRANSPOSE", Build("TRANSPOSE").of(SHAPE).with_([0, 3, 1, 2]).giving((1, C, H, W)))
takes("int8 transpose", "TRANSPOSE", Build("TRANSPOSE", "int8").of(SHAPE).with_([0, 3, 1, 2]).giving((1, C, H, W)))
_SPACE, _DEPTH = (1, 8, 10, 6), (1, 4, 5, 24)
takes(
    "space to depth",
    "SPACE_TO_DEPTH",
    Build("SPACE_TO_DEPTH").of(_SPACE).giving(_DEPTH).so("SpaceToDepthOptions", blockSize=2),
)
takes(
    "depth to space",
    "DEPTH_TO_SPACE",
    Build("DEPTH_TO_SPACE").of(_DEPTH).giving(_SPACE).so("DepthToSpaceOptions", blockSize=2),
)
takes(
    "split",
    "SPLIT",
    Build("SPLIT").with_(3).of(_SPACE).giving((1, 8, 10, 3), (1, 8, 10, 3)).so("SplitOptions", numSplits=2),
)
takes("slice", "SLICE", Build("SLICE").of(SHAPE).with_([0, 2, 3, 1], [1, 4, 5, 4]).giving((1, 4, 5, 4)))
takes("int8 slice", "SLICE", Build("SLICE", "int8").of(SHAPE).with_([0, 2, 3, 1], [1, 4, 5, 4]).giving((1, 4, 5, 4)))
refuses("slice of a matrix", "SLICE", Build("SLICE").of((1, 12)).with_([0, 3], [1, 5]).giving((1, 5)), "right")


def strided(begin: list[int], end: list[int], steps: list[int], shape: tuple[int, ...], **masks: int) -> Build:
    """A strided slice."""
    return Build("STRIDED_SLICE").of(SHAPE).with_(begin, end, steps).giving(shape).so("StridedSliceOptions", **masks)


_ZERO, _ONE, _ALL = [0, 0, 0, 0], [1, 1, 1, 1], [1, H, W, C]
takes("strided slice", "STRIDED_SLICE", strided(_ZERO, _ALL, [1, 2, 2, 1], (1, 4, 5, C)))
refuses("reverse slice", "STRIDED_SLICE", strided([0, 6, 0, 0], [1, 0, W, C], [1, -1, 1, 1], (1, 6, W, C)), "refused")
refuses(
    "slice that drops an axis",
    "STRIDED_SLICE",
    strided([0, 1, 0, 0], [1, 2, W, C], _ONE, (1, W, C), shrinkAxisMask=2),
    "refused",
)

# --- padding
takes("pad", "PAD", Build("PAD").of(SHAPE).with_(HW_PAD).giving(HW_PADDED))
takes("int8 pad", "PAD", Build("PAD", "int8").of(SHAPE).with_(HW_PAD).giving(HW_PADDED))
takes("pad of channels", "PAD", Build("PAD").of(SHAPE).with_([[0, 0], [0, 0], [0, 0], [1, 3]]).giving((1, H, W, C + 4)))
refuses(
    "pad of the first of three axes",
    "PAD",
    Build("PAD").of((1, 7, 6)).with_([[1, 0], [0, 0], [0, 0]]).giving((2, 7, 6)),
    "wrong",
)
refuses(
    "pad of the batch",
    "PAD",
    Build("PAD").of(SHAPE).with_([[1, 0], [0, 0], [0, 0], [0, 0]]).giving((2, H, W, C)),
    "wrong",
)
refuses("pad of a matrix", "PAD", Build("PAD").of((1, 6)).with_([[0, 0], [1, 1]]).giving((1, 8)), "refused")
takes("padv2 with zero", "PADV2", Build("PADV2").of(SHAPE).with_(HW_PAD, f32(0.0)).giving(HW_PADDED))
takes(
    "int8 padv2 with the zero point",
    "PADV2",
    Build("PADV2", "int8").of(SHAPE).with_(HW_PAD, np.int8(5)).giving(HW_PADDED),
)
refuses(
    "padv2 with a value, alone", "PADV2", Build("PADV2").of(SHAPE).with_(HW_PAD, f32(127.5)).giving(HW_PADDED), "right"
)


def padded_conv(value: float, *, deep: bool = False) -> Callable[[], bytes]:
    """A VALID 3x3 convolution, stride 2, behind a PADV2."""

    def build() -> bytes:
        graph = GraphWriter()
        amounts = graph.constant(np.array([[0, 0], [0, 1], [0, 1], [0, 0]], np.int32))
        inputs = [graph.input("x", (1, 16, 16, 3)), amounts, graph.constant(f32(value))]
        padded = graph.op("PADV2", inputs, (1, 17, 17, 3))
        cout, weights = (3, conv_weights(1, 3, 3)) if deep else (8, conv_weights(8, 3, 3))
        fields = {"padding": VALID, "strideW": 2, "strideH": 2, "dilationWFactor": 1, "dilationHFactor": 1}
        name = "DEPTHWISE_CONV_2D" if deep else "CONV_2D"
        options = ("DepthwiseConv2DOptions", {**fields, "depthMultiplier": 1}) if deep else ("Conv2DOptions", fields)
        inputs = [padded, graph.constant(weights), graph.constant(np.zeros(cout, np.float32))]
        return graph.finish(graph.op(name, inputs, (1, 8, 8, cout), options=options))

    return build


takes("padv2 with zero before a conv", "PADV2", padded_conv(0.0), low=0.0, high=255.0)
refuses("padv2 with a value before a conv", "PADV2", padded_conv(127.5), "wrong", low=0.0, high=255.0)
refuses("padv2 with a value before a depthwise", "PADV2", padded_conv(127.5, deep=True), "wrong", low=0.0, high=255.0)

# --- resizing
for _op, _options in (
    ("RESIZE_BILINEAR", "ResizeBilinearOptions"),
    ("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions"),
):
    for _flags in ({}, {"halfPixelCenters": True}, {"alignCorners": True}):
        _name = f"{_op.lower()} {' '.join(_flags)}".strip()
        for _sides in ((14, 20), (21, 23), (3, 5)):
            _graph = Build(_op).of(SHAPE).with_(_sides).giving((1, *_sides, C)).so(_options, **_flags)
            takes(f"{_name} to {_sides[0]}x{_sides[1]}", _op, _graph)
    _graph = Build(_op, "int8").of(SHAPE).with_([14, 20]).giving((1, 14, 20, C)).so(_options, halfPixelCenters=True)
    takes(f"int8 {_op.lower()}", _op, _graph)
    _graph = Build(_op).of(SHAPE).with_([14, 20]).giving((1, 14, 20, C))
    _outcome: Outcome = "refused" if _op == "RESIZE_BILINEAR" else "right"
    refuses(
        f"{_op.lower()} with both flags", _op, _graph.so(_options, alignCorners=True, halfPixelCenters=True), _outcome
    )

# --- quantising, comparing, choosing
takes("quantize", "QUANTIZE", Build("QUANTIZE").of(SHAPE).giving(SHAPE, dtype="int8"))
takes("requantize", "QUANTIZE", Build("QUANTIZE", "int8").of(SHAPE).giving(SHAPE, grid=WIDE_GRID))
takes("dequantize", "DEQUANTIZE", Build("DEQUANTIZE", "int8").of(SHAPE).giving(SHAPE, dtype="float32"))
for _op in ["EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "NOT_EQUAL"]:
    takes(_op.lower(), _op, Build(_op).of(SHAPE, SHAPE).giving(SHAPE, dtype="bool"))
    takes(f"{_op.lower()} constant", _op, Build(_op).of(SHAPE).with_(f32(0.5)).giving(SHAPE, dtype="bool"))
    refuses(f"{_op.lower()} of lower rank", _op, Build(_op).of(SHAPE, (1, W, C)).giving(SHAPE, dtype="bool"), "right")
refuses("equal of integers", "EQUAL", Build("EQUAL", "int32").of(SHAPE, SHAPE).giving(SHAPE, dtype="bool"), "right")
for _op in ("SELECT", "SELECT_V2"):
    takes(_op.lower(), _op, Build(_op).of(SHAPE, dtype="bool").of(SHAPE, SHAPE))
takes("select scalar", "SELECT_V2", Build("SELECT_V2").of(SHAPE, dtype="bool").of(SHAPE).with_(f32(0.5)))
refuses("select per channel", "SELECT_V2", Build("SELECT_V2").of(SHAPE, dtype="bool").of(SHAPE, PER_CHANNEL), "refused")
_ONE_VALUE = np.full((1, 1, 1, 1), 0.5, np.float32)
refuses(
    "select one value of four axes",
    "SELECT_V2",
    Build("SELECT_V2").of(SHAPE, dtype="bool").of(SHAPE).with_(_ONE_VALUE),
    "refused",
)


def cast(source: str, target: str) -> Build:
    """A conversion of numbers."""
    fields = {"inDataType": TYPES[source], "outDataType": TYPES[target]}
    return Build("CAST", source).of(SHAPE).giving(SHAPE, dtype=target).so("CastOptions", **fields)


takes("cast of bool", "CAST", cast("bool", "float32"))
for _source, _target, _does in (
    ("uint8", "float32", "right"),
    ("float32", "int32", "right"),
    ("int64", "float32", "refused"),
):
    refuses(f"cast of {_source} to {_target}", "CAST", cast(_source, _target), _does)

# --- operators that are refused by name


def topk() -> bytes:
    """The three largest of twelve, with their places."""
    graph = GraphWriter()
    values = graph.op("TOPK_V2:2", [graph.input("x", (1, 12)), graph.constant(np.int32(3))], (1, 3))
    return graph.finish(values, graph.also((1, 3), "int32"))


refuses("topk", "TOPK_V2", topk, "refused")
refuses(
    "argmax",
    "ARG_MAX",
    Build("ARG_MAX").of(SHAPE).with_(3).giving(SHAPE[:3], dtype="int32").so("ArgMaxOptions", outputType=2),
    "right",
)
refuses(
    "gather",
    "GATHER",
    Build("GATHER").of(SHAPE).with_([3, 1, 2]).giving((1, 3, W, C)).so("GatherOptions", axis=1),
    "right",
)
refuses("gather nd", "GATHER_ND", Build("GATHER_ND").of(SHAPE).with_([[0, 1, 2], [0, 3, 4]]).giving((2, C)), "refused")
refuses("broadcast to", "BROADCAST_TO", Build("BROADCAST_TO").of(PER_CHANNEL).with_(SHAPE).giving(SHAPE), "refused")
refuses("relu 0 to 1", "RELU_0_TO_1", Build("RELU_0_TO_1").of(SHAPE), "refused")
refuses("an operator without a rule", "LOG_SOFTMAX", Build("LOG_SOFTMAX").of(SHAPE), "refused")
