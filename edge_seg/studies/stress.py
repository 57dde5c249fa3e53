"""A network that is hard to quantise, made from a trained one: `python -m edge_seg.studies.stress CHECKPOINT OUT`.

Channels behind a ReLU are widened and the next convolution takes the factor back: in float the network is the same to
rounding, but a grid per tensor is now as wide as the widest channel, and the others keep few steps. Real networks come
to this by themselves (arXiv 1906.04721, section 3); here the amount is known.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import torch
from torch import fx, nn

from edge_seg.errors import EdgeSegError, InputError
from edge_seg.models.base import Network
from edge_seg.training.checkpoint import load_checkpoint, save_checkpoint


def widen(network: Network, factor: float, share: float, seed: int = 0) -> int:
    """Widens channels between convolutions with BatchNorm and ReLU and the convolution behind them, in place.

    Args:
        network: A float network.
        factor: How much wider a chosen channel becomes.
        share: Share of the channels of a layer that are chosen, at least one.
        seed: Decides which.

    Returns:
        The number of layers that were changed.

    Raises:
        InputError: The network has no such layer, or factor or share do not fit.
    """
    if factor <= 0 or not 0 < share < 1:
        raise InputError("The stress does not fit.", expected="factor > 0, share in (0, 1)", got=f"{factor}, {share}")
    generator = torch.Generator().manual_seed(seed)
    pairs = _pairs(network.body)
    for norm, conv in pairs:
        channels = norm.num_features
        chosen = torch.randperm(channels, generator=generator)[: max(1, round(share * channels))]
        _rescale(norm, conv, chosen, factor)
    if not pairs:
        raise InputError(f"{network.name} has no convolution behind a ReLU.", expected="BatchNorm, ReLU, convolution")
    return len(pairs)


@torch.no_grad()
def _rescale(norm: nn.BatchNorm2d, conv: nn.Conv2d, chosen: torch.Tensor, factor: float) -> None:
    norm.weight[chosen] *= factor
    norm.bias[chosen] *= factor
    if conv.groups == 1:
        conv.weight[:, chosen] /= factor
    else:
        conv.weight[chosen] /= factor


def _pairs(body: nn.Module) -> list[tuple[nn.BatchNorm2d, nn.Conv2d]]:
    """Returns each BatchNorm whose ReLU feeds one convolution only, dense or depthwise, with that convolution."""
    module = fx.GraphModule(body, fx.Tracer().trace(body))
    found = []
    for node in module.graph.nodes:
        norm, relu, conv = _followers(module, node)
        if type(relu) is not nn.ReLU or not isinstance(norm, nn.BatchNorm2d):
            continue
        if isinstance(conv, nn.Conv2d) and conv.groups in (1, conv.in_channels):
            found.append((norm, conv))
    return found


def _followers(module: fx.GraphModule, node: fx.Node) -> list[nn.Module]:
    """Returns the modules of a node and of the two behind it, as long as each has one user."""
    chain: list[nn.Module] = []
    while node.op == "call_module" and len(chain) < 3:
        chain.append(module.get_submodule(str(node.target)))
        if len(node.users) != 1:
            break
        node = next(iter(node.users))
    return chain + [nn.Identity()] * (3 - len(chain))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--factor", default=32.0, show_default=True, help="How much wider a chosen channel becomes.")
@click.option("--share", default=0.05, show_default=True, help="Share of a layer's channels.")
@click.option("--seed", default=0, show_default=True)
def main(checkpoint: Path, out: Path, factor: float, share: float, seed: int) -> None:
    """Writes OUT, a float checkpoint that computes the same and quantises badly."""
    try:
        source = load_checkpoint(checkpoint)
        layers = widen(source.network, factor, share, seed)
        save_checkpoint(
            out,
            source.network.state_dict(),
            settings=source.settings,
            classes=source.classes,
            step=source.step,
        )
    except EdgeSegError as error:
        click.echo(str(error), err=True)
        sys.exit(error.exit_code)
    click.echo(f"{out}: {layers} layers with channels {factor:g} times as wide")


if __name__ == "__main__":
    main()
