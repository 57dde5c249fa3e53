"""The stress network computes the same in float and keeps few steps in int8."""

import copy

import pytest
import torch
from click.testing import CliRunner
from test_quantization_prepare import float_network, pictures

from edge_seg.errors import InputError
from edge_seg.quantization.grids import RangeOptions, update_ranges
from edge_seg.quantization.prepare import prepare
from edge_seg.studies.stress import main, widen
from edge_seg.training.distributed import World

NAME = "maskconver_lite_256"


def on_grids(network):
    network = prepare(copy.deepcopy(network), RangeOptions(observe_steps=1)).train()
    with torch.no_grad():
        network.body(pictures())
    update_ranges(network, World(torch.device("cpu")))
    return network.eval()


def error(network, wanted):
    with torch.inference_mode():
        found = network.body(pictures())
    return max(float((found[k] - wanted[k]).square().mean() / wanted[k].var()) for k in wanted)


def test_in_float_it_is_the_same_network_and_on_grids_it_is_worse():
    source = copy.deepcopy(float_network(NAME)).double()
    stressed = copy.deepcopy(source)
    assert widen(stressed, 64.0, 0.1) > 5
    with torch.inference_mode():
        wanted = source.body(pictures().double())
        found = stressed.body(pictures().double())
    for key, values in wanted.items():
        torch.testing.assert_close(found[key], values, rtol=1e-9, atol=1e-9)
    plain, hard = copy.deepcopy(float_network(NAME)), copy.deepcopy(float_network(NAME))
    widen(hard, 64.0, 0.1)
    with torch.inference_mode():
        wanted = plain.body(pictures())
    assert error(on_grids(hard), wanted) > 1.5 * error(on_grids(plain), wanted)


@pytest.mark.parametrize(("factor", "share"), [(0.0, 0.1), (2.0, 0.0), (2.0, 1.0)])
def test_a_stress_that_does_not_fit_is_refused(factor, share):
    with pytest.raises(InputError, match="does not fit"):
        widen(copy.deepcopy(float_network(NAME)), factor, share)


def test_the_command_says_what_is_missing(tmp_path):
    done = CliRunner().invoke(main, [str(tmp_path / "none.safetensors"), str(tmp_path / "out.safetensors")])
    assert done.exit_code == 2
    assert "There is no checkpoint" in done.output
    assert not (tmp_path / "out.safetensors").exists()
