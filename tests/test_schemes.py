"""The table of schemes and grids, against cases worked out by hand and against ai-edge-quantizer."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from edge_seg.schemes import (
    FIXED_GRIDS,
    INPUT_GRID,
    JOINS_GRIDS,
    KEEPS_GRID,
    KIND_OF_OP,
    SCHEMES,
    SMALLEST_SCALE,
    Grid,
    activation_grid,
    bias_scales,
    weight_scales,
)


def test_the_table_is_read_without_numpy():
    code = "import sys, edge_seg.schemes; assert 'numpy' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_scheme_of_the_command_line_is_in_the_table():
    assert set(SCHEMES) == {"fp32", "fp16", "w8_dynamic", "w8a8", "w8a16", "mixed", "qat_w8a8"}
    assert {n for n, s in SCHEMES.items() if s.needs_calibration} == {"w8a8", "w8a16", "mixed"}


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero_point"),
    [(0, 255, 1.0, -128), (0, 6, 6 / 255, -128), (-1, 1.55, 0.01, -28), (-2.55, 0, 0.01, 127), (3, 5.1, 0.02, -128)],
)
def test_the_grid_of_a_range_worked_out_by_hand(low, high, scale, zero_point):
    grid = activation_grid(low, high)
    assert grid.scale == float(np.float32(scale))
    assert grid.zero_point == zero_point


def test_zero_is_a_grid_point_of_every_range():
    rng = np.random.default_rng(0)
    for low, high in rng.normal(0, 10, (200, 2)):
        grid = activation_grid(min(low, high), max(low, high))
        assert grid.real(grid.integers(np.zeros(1)))[0] == 0
        assert grid.range[0] <= 0 <= grid.range[1]


def test_int16_is_symmetric_without_a_zero_point():
    grid = activation_grid(-1, 3.2767, bits=16)
    assert (grid.zero_point, grid.low, grid.high) == (0, -32767, 32767)
    assert grid.scale == float(np.float32(1e-4))


def test_an_empty_range_has_the_smallest_scale_and_not_zero():
    assert activation_grid(0, 0).scale == float(np.float32(SMALLEST_SCALE))


def test_integers_are_clamped_and_ties_go_to_even():
    grid = Grid(1.0, 0)
    assert grid.integers(np.array([0.5, 1.5, 2.5, -0.5, 500, -500])).tolist() == [0, 2, 2, 0, 127, -128]


def test_the_input_takes_bytes_less_128():
    assert INPUT_GRID.integers(np.array([0, 1, 128, 255])).tolist() == [-128, -127, 0, 127]


@pytest.mark.parametrize("bits", [8, 16])
def test_activation_grids_are_those_of_ai_edge_quantizer(bits):
    from ai_edge_quantizer.algorithms.uniform_quantize.uniform_quantize_tensor import tensor_zp_scale_from_min_max
    from ai_edge_quantizer.qtyping import QuantGranularity

    rng = np.random.default_rng(bits)
    for low, high in np.sort(rng.normal(0, 30, (300, 2)), axis=1):
        grid = activation_grid(low, high, bits=bits)
        arrays = np.array([low]), np.array([high])
        zero, scale = tensor_zp_scale_from_min_max(*arrays, bits, bits == 16, QuantGranularity.TENSORWISE)
        assert grid.scale == float(np.float32(scale[0]))
        assert grid.zero_point == int(zero[0])


def test_weight_scales_are_those_of_ai_edge_quantizer_but_for_channels_of_zeros():
    from ai_edge_quantizer.algorithms.uniform_quantize.uniform_quantize_tensor import tensor_zp_scale_from_min_max
    from ai_edge_quantizer.qtyping import QuantGranularity

    weights = np.random.default_rng(0).normal(0, 1, (16, 3, 3, 8)).astype(np.float32)
    weights[5] = 0
    low, high = (f(weights.reshape(16, -1), 1) for f in (np.min, np.max))
    _, scale = tensor_zp_scale_from_min_max(low, high, 8, True, QuantGranularity.CHANNELWISE)
    ours = weight_scales(weights)
    alive = np.arange(16) != 5
    assert np.array_equal(ours[alive], scale.astype(np.float32)[alive])
    assert ours[5] == np.float32(SMALLEST_SCALE)


def test_a_bias_lies_on_the_product_of_both_scales():
    assert np.array_equal(bias_scales(0.5, np.float32([0.25, 3])), np.float32([0.125, 1.5]))


def test_every_operator_with_a_rule_has_a_rule_that_exists():
    assert set(KIND_OF_OP.values()) <= KEEPS_GRID | JOINS_GRIDS | set(FIXED_GRIDS)
