"""Post-training quantisation, whole: calibrate once, then quantise by any recipe. No files are written here.

network = calibrate(data, graph, contract, images, settings)    # slow: runs the pictures
done = quantize(network, Recipe("int8", (Rule("heat_head", "float"),)))    # fast: a third of a second
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.contract import Contract
from edge_seg.converters.flatbuffer import graph_of
from edge_seg.converters.graph import Graph
from edge_seg.converters.ptq import bias_correction
from edge_seg.converters.ptq.bias_correction import Corrected
from edge_seg.converters.ptq.calibration import Images, Statistics, observe
from edge_seg.converters.ptq.equalize import Equalized, equalized
from edge_seg.converters.ptq.quantize import cast, on_grids
from edge_seg.converters.ptq.ranges import Range, RangeMethod, activation_grids, chosen_ranges
from edge_seg.converters.ptq.recipe import Recipe
from edge_seg.errors import DataError, InputError, nearest
from edge_seg.schemes import SCHEMES, Grid

_UNIFORM = {8: Recipe("int8"), 16: Recipe("int16")}


@dataclass(frozen=True)
class PtqSettings:
    """How a float network becomes integers.

    Attributes:
        ranges: How activation ranges follow from calibration.
        bias_correction: Whether biases take back the mean shift.
        equalize: Whether channels get like ranges first.
        recipe: Precision per layer, for the scheme "mixed".
    """

    ranges: RangeMethod = field(default_factory=RangeMethod)
    bias_correction: bool = False
    equalize: bool = False
    recipe: Recipe | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the settings as plain JSON types, for manifests."""
        recipe = {"recipe": self.recipe.to_json()} if self.recipe else {}
        return {
            "ranges": str(self.ranges),
            "bias_correction": self.bias_correction,
            "equalize": self.equalize,
            **recipe,
        }

    def recipe_for(self, scheme: str) -> Recipe:
        """Returns the precisions of a calibrated scheme.

        Raises:
            InputError: "mixed" without a recipe, or bias correction without an int8 layer.
        """
        if scheme == "mixed" and self.recipe is None:
            raise InputError(
                "The scheme mixed needs a recipe.",
                expected="--recipe FILE, which names layers and their precision",
                got="none",
            )
        recipe = _UNIFORM[SCHEMES[scheme].activation_bits] if scheme != "mixed" else self.recipe or Recipe()
        if self.bias_correction and "int8" not in (recipe.default, *(r.precision for r in recipe.rules)):
            raise InputError(
                f"Bias correction works on int8 layers, and {scheme} has none.",
                expected="w8a8, or a recipe with int8 layers",
                got=scheme,
                todo="leave out --bias-correction",
            )
        return recipe


@dataclass(frozen=True)
class Calibrated:
    """A float network and what its tensors hold on pictures.

    Attributes:
        data: The float file, equalised if that was asked for.
        graph: What it contains.
        contract: Its contract.
        images: The calibration pictures.
        statistics: By tensor index.
        settings: How it is quantised.
        equalization: What equalisation did, or None.
    """

    data: bytes = field(repr=False)
    graph: Graph = field(repr=False)
    contract: Contract = field(repr=False)
    images: Images = field(repr=False)
    statistics: Mapping[int, Statistics] = field(repr=False)
    settings: PtqSettings
    equalization: Equalized | None = None

    @functools.cached_property
    def ranges(self) -> dict[int, Range]:
        """Ranges of the activations, the same for every recipe."""
        return chosen_ranges(self.graph, self.statistics, self.settings.ranges)


@dataclass(frozen=True)
class Quantized:
    """A quantised network.

    Attributes:
        data: The file; its constants may lie outside the flatbuffer.
        grids: Of the float network's activations, by tensor index.
        precisions: Of its operators, in execution order.
        correction: What bias correction did, or None.
    """

    data: bytes = field(repr=False)
    grids: Mapping[int, Grid] = field(repr=False)
    precisions: tuple[str, ...] = field(repr=False)
    correction: Corrected | None = None


def calibrate(
    data: bytes, graph: Graph, contract: Contract, images: Images, settings: PtqSettings | None = None
) -> Calibrated:
    """Runs the float network on pictures.

    Args:
        data: The float file.
        graph: What it contains.
        contract: Its contract.
        images: Letterboxed pictures, uint8 [H, W, 3].
        settings: Ranges, corrections.

    Raises:
        DataError: No pictures, or values that are not finite.
        InputError: The file is not a float network.
    """
    settings = settings or PtqSettings()
    if graph.tensors[graph.inputs[0]].dtype != "float32":
        raise InputError(
            f"{graph.path} is quantised already.", expected="the float file", got=graph.tensors[graph.inputs[0]].dtype
        )
    statistics = observe(data, graph, images)
    if not settings.equalize:
        return Calibrated(data, graph, contract, images, statistics, settings)
    changed = equalized(data, graph, statistics)
    graph = graph_of(changed.data, graph.path)
    statistics = observe(changed.data, graph, images, progress="calibrate again")
    return Calibrated(changed.data, graph, contract, images, statistics, settings, changed)


def quantize(network: Calibrated, recipe: Recipe) -> Quantized:
    """Quantises a calibrated network; call it as often as there are recipes to try.

    Args:
        network: From `calibrate`.
        recipe: Precision of every layer.

    Raises:
        ConfigError: A rule names no layer.
        InputError: The tool refuses the network.
    """
    graph = network.graph
    precisions = recipe.precisions(graph)
    bits = {t: 8 for t in network.statistics}
    bits |= {t: 16 for op, p in zip(graph.ops, precisions, strict=True) if p == "int16" for t in op.outputs}
    grids = activation_grids(graph, network.ranges, bits)
    data = on_grids(network.data, graph, network.contract, recipe, grids)
    _check_biases(data, graph)
    if not network.settings.bias_correction:
        return Quantized(data, grids, precisions)
    correction = bias_correction.corrected(network.data, data, network.images)
    return Quantized(correction.data, grids, precisions, correction)


def quantized(data: bytes, graph: Graph, contract: Contract, *, scheme: str, calibration: Images | None) -> bytes:
    """Quantises a float32 .tflite with default settings.

    Args:
        data: The float file.
        graph: What `data` contains.
        contract: Names of input and outputs.
        scheme: Any scheme that is made from a float network without a recipe.
        calibration: Letterboxed pictures, uint8 [H, W, 3], for calibrated schemes; others ignore it.

    Returns:
        The quantised file, its constants still outside the flatbuffer.

    Raises:
        InputError: Unknown scheme, no calibration where it is needed, or a network the tool refuses.
        MissingHere: ai-edge-quantizer is not installed.
    """
    known = [s.name for s in SCHEMES.values() if s.kind in ("dynamic", "static") or s.name == "fp16"]
    if scheme not in known:
        raise InputError(f"There is no scheme {scheme!r}.", got=scheme, todo=nearest(scheme, known))
    if not SCHEMES[scheme].needs_calibration:
        return cast(data, contract, scheme=scheme)
    if not calibration:
        raise needs_pictures(scheme)
    settings = PtqSettings()
    return quantize(calibrate(data, graph, contract, calibration, settings), settings.recipe_for(scheme)).data


def needs_pictures(scheme: str) -> InputError:
    """Returns the error for a calibrated scheme without pictures."""
    return InputError(
        f"The scheme {scheme} needs calibration pictures.",
        expected="--calibration DATA",
        got="none",
        todo="give a data set, or choose w8_dynamic, which needs none",
    )


def calibration_images(images: Iterable[NDArray[np.uint8]] | None, contract: Contract) -> Images | None:
    """Checks pictures for calibration.

    Args:
        images: Letterboxed pictures, uint8 [H, W, 3], or None.
        contract: Says which size they must have.

    Raises:
        DataError: There are none, or one has another shape or dtype.
    """
    if images is None:
        return None
    checked = list(images)
    wanted = tuple(contract.input.shape[1:])
    for place, image in enumerate(checked):
        if image.shape != wanted or image.dtype != np.uint8:
            raise DataError(
                f"Calibration picture {place} does not fit the network's input.",
                expected=f"uint8 {list(wanted)}",
                got=f"{image.dtype} {list(image.shape)}",
            )
    if not checked:
        raise DataError("There are no calibration pictures.", expected="at least one; 64 or more is usual")
    return checked


def _check_biases(data: bytes, source: Graph) -> None:
    """Refuses a bias that int32 cannot hold: the tool clamps it silently, and the layer computes something else."""
    graph = graph_of(data, source.path)
    ends = np.iinfo(np.int32)
    for op in graph.ops:
        for t in op.inputs:
            if t >= 0 and graph.tensors[t].constant and graph.tensors[t].dtype == "int32" and graph.tensors[t].scale:
                values = graph.constant(t)
                if (values == ends.max).any() or (values == ends.min).any():
                    raise InputError(
                        f"A bias of {graph.source(op)} does not fit its integer grid.",
                        expected="|bias| below 2^31 * input scale * weight scale",
                        got="weights that are tiny beside their bias",
                        todo="keep this layer in float with --scheme mixed, or retrain it with weight decay",
                    )
