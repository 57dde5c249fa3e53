"""Every registered body on integer grids: no file of a body is edited for it, and nothing lies off the grid."""

import copy
import functools

import pytest
import torch
from torch import nn

from edge_seg.errors import ArtifactError, InputError
from edge_seg.layers import ops
from edge_seg.layers.split import is_depthwise_7x7
from edge_seg.models.base import MODELS
from edge_seg.quantization.convolutions import QuantConv2d, QuantNormalize
from edge_seg.quantization.grids import ActivationGrid, RangeOptions, update_ranges
from edge_seg.quantization.integers import ExportConv, ExportGrid, integer_form
from edge_seg.quantization.prepare import deferred_convolutions, grids_of, is_prepared, prepare, unobserved
from edge_seg.training.distributed import World

PUBLISHED = ("blendmask_rt_mnv2", "blendmask_rt_mnv2_gn_m7", "blendmask_base_mnv2", "solov2_light_mnv2")
"""As their papers have them: nearest resizes and GroupNorm, which int8 kernels do not have."""
NAMES = [name for name in MODELS.names() if name not in PUBLISHED]
PX = 64


def pictures(count=2):
    torch.manual_seed(5)
    return torch.rand(count, 3, PX, PX).mul(255).round()


@functools.cache
def float_network(name):
    torch.manual_seed(3)
    network = MODELS[name](num_classes=5, input_px=PX)
    network.train()
    with torch.no_grad():
        for _ in range(4):  # BatchNorm statistics that fit the weights
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = 0.5
            network.body(pictures(4))
    return network.eval()


@functools.cache
def prepared(name):
    """A network that has observed one batch."""
    network = prepare(copy.deepcopy(float_network(name)), RangeOptions(observe_steps=1)).train()
    network.body(pictures())
    update_ranges(network, World(torch.device("cpu")))
    return network.eval()


@pytest.mark.parametrize("name", NAMES)
def test_every_convolution_but_the_decoders_is_on_a_grid(name):
    network, source = prepared(name), float_network(name)
    plain = {p for p, m in network.body.named_modules() if type(m) is nn.Conv2d}
    assert plain == deferred_convolutions(source)
    assert plain  # the lazy last layers of this family
    assert not [p for p, m in network.body.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert not [p for p, m in network.body.named_modules() if isinstance(m, nn.Conv2d) and is_depthwise_7x7(m)]


@pytest.mark.parametrize("name", NAMES)
def test_every_operation_reads_from_grids_only(name):
    body = prepared(name).body
    modules = dict(body.named_modules())
    computing = (QuantConv2d, QuantNormalize, ops.Add, ops.Concat, ops.GlobalMean, ops.Upsample, ops.ResizeLike)
    computing += (ops.Resize,)
    seen = set()
    for node in body.graph.nodes:
        if node.op == "call_module" and isinstance(modules[node.target], computing):
            seen.add(type(modules[node.target]))
            assert all(isinstance(modules.get(n.target), ActivationGrid) for n in node.all_input_nodes), node.name
    assert {QuantConv2d, ops.Add} <= seen
    one_number = len(set(float_network(name).mean_rgb)) == 1
    assert (QuantNormalize in seen) is not one_number
    if name.startswith("maskconver"):
        of_aspp = {ops.Concat, ops.GlobalMean, ops.ResizeLike} if float_network(name).options.aspp == "none" else set()
        assert seen == set(computing) - {ops.Resize, QuantNormalize} - of_aspp


@pytest.mark.parametrize("name", NAMES)
def test_concatenations_and_resizes_share_the_grid_of_their_neighbours(name):
    body = prepared(name).body
    modules = dict(body.named_modules())
    for node in body.graph.nodes:
        if node.op == "call_module" and isinstance(modules[node.target], ops.Concat):
            (user,) = node.users
            assert {n.target for n in node.all_input_nodes} == {user.target}
        if node.op == "call_module" and isinstance(modules[node.target], ops.Upsample | ops.ResizeLike):
            (user,) = node.users
            assert node.args[0].target == user.target


@pytest.mark.parametrize("name", NAMES)
def test_with_rounding_switched_off_it_is_the_float_network(name):
    """The rewrites (4x4 kernels, split 7x7, folded BatchNorm) are exact; only the grids change numbers."""
    source = copy.deepcopy(float_network(name)).double()
    network = prepare(copy.deepcopy(source), RangeOptions()).eval()
    for module in network.body.modules():
        if isinstance(module, QuantConv2d | QuantNormalize):
            module.grid = nn.Identity()
    with torch.inference_mode():
        wanted, found = source.body(pictures().double()), network.body(pictures().double())
    for key, values in wanted.items():
        torch.testing.assert_close(found[key], values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_second_picture_lies_on_the_grids_of_the_outputs(name):
    network = prepared(name)
    with torch.inference_mode():
        raw = network.export_graph().body(pictures(3)[2:])
    body = network.body
    for key, values in raw.items():
        (output,) = [n for n in body.graph.nodes if n.op == "output"]
        node = output.args[0][key]
        while not isinstance(body.get_submodule(node.target), ActivationGrid):
            node = node.args[0]  # the last layer that the decoder runs
        grid = body.get_submodule(node.target).grid()
        steps = values / grid.scale
        assert (steps - steps.round()).abs().max() < 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_parameters_keep_their_paths(name):
    """Weight decay, learning rates and checkpoints go by path and kind."""
    kept = {p for p, _ in prepared(name).named_parameters()}
    for path, module in float_network(name).body.named_modules():
        if isinstance(module, nn.Conv2d) and not is_depthwise_7x7(module):
            assert f"body.{path}.weight" in kept


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_of_the_exported_form_computes_what_was_trained(name):
    """Layer by layer on the trained network's own tensors: over the whole depth, rare flips of rounding avalanche."""
    body = prepared(name).export_graph().body.eval()
    form = dict(integer_form(body).named_modules())
    assert not [m for m in form.values() if isinstance(m, ActivationGrid | QuantConv2d)]
    compared = []

    def compare(path):
        def hook(module, inputs, output):
            exported = form[path]
            found = exported(*inputs)
            if isinstance(exported, ExportGrid):
                assert torch.equal(found, output), path
            else:  # the bias is rounded to its grid; everything else is the same
                step = (exported.bias - module.folded()[1]).abs().max()
                assert (found - output).abs().max() <= step + 2e-5 * output.abs().max(), path
            compared.append(type(exported))

        return hook

    for path, module in body.named_modules():
        if isinstance(form.get(path), ExportGrid | ExportConv):
            module.register_forward_hook(compare(path))
    with torch.inference_mode():
        body(pictures())
    assert set(compared) == {ExportGrid, ExportConv}
    assert len(compared) > 100


def test_weights_and_biases_are_snapped_to_their_grids():
    form = integer_form(prepared("maskconver_lite_256").export_graph().body.eval())
    modules = dict(form.named_modules())
    for node in form.graph.nodes:
        conv = modules.get(node.target)
        if isinstance(conv, ExportConv):
            integers = conv.weight / conv.scales.reshape(-1, 1, 1, 1)
            assert (integers - integers.round()).abs().max() < 1e-3
            assert integers.abs().max() <= 127.001
            steps = conv.bias.double() / (modules[node.args[0].target].grid.scale * conv.scales.double())
            assert (steps - steps.round()).abs().max() < 0.1


def test_a_float_body_has_no_integer_form():
    body = float_network(NAMES[0]).body
    assert not is_prepared(body)
    assert integer_form(body) is body


def test_a_network_that_has_seen_nothing_is_not_exported():
    network = prepare(copy.deepcopy(float_network("maskconver_lite_256")), RangeOptions())
    blank = unobserved(network)
    assert len(blank) == len(grids_of(network)) - 2  # those of the picture and of its sum with the mean are known
    centered = grids_of(network)["body.grids.normalize_add"].grid()
    assert (centered.scale, centered.zero_point) == (1.0, 0)  # every byte an integer of its own
    with pytest.raises(ArtifactError, match="no range yet"):
        integer_form(network.export_graph().body.eval())


def test_learned_steps_are_parameters_without_decay():
    from edge_seg.training.optim import parameter_groups
    from edge_seg.training.settings import OptimSettings

    network = prepare(copy.deepcopy(float_network("maskconver_lite_256")), RangeOptions(ranges="learned"))
    steps = [p for n, p in network.named_parameters() if n.endswith("log_step")]
    assert len(steps) > 100
    decaying = [p for g in parameter_groups(network, OptimSettings()) if g["weight_decay"] for p in g["params"]]
    assert not [1 for p in steps if any(p is d for d in decaying)]


class Gelu(nn.Module):
    """A body with an activation that has no int8 kernel."""

    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 1), nn.GELU()

    def forward(self, x):
        return {"map": self.act(self.conv(x))}


class Reshaping(Gelu):
    """A body with a bare function call."""

    def forward(self, x):
        return {"map": torch.relu(self.conv(x))}


@pytest.mark.parametrize(("body", "what"), [(Gelu(), "act"), (Reshaping(), "relu")])
def test_an_operation_without_a_rule_is_named(body, what):
    network = copy.deepcopy(float_network("maskconver_lite_256"))
    graph = network.export_graph()
    network.export_graph = lambda **_: graph
    network.body = body
    with pytest.raises(InputError, match=f"no int8 rule for {what}"):
        prepare(network, RangeOptions())
