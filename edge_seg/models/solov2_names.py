"""Tensor names of published SOLOv2 networks, one for one, for `solov2_light_mnv2`.

Two projects publish SOLOv2; both name the same tensors. Their licences allow non-commercial use only: what is made
from their weights keeps that licence, and none come with this project. The classes keep their order: the category
channel c of either project is class c here; only the labels in annotations differ (`LABEL_OF_FIRST_CLASS`).

"solo" has no MobileNet of its own: its backbone is expected in the layout of "adelaidet", under its own prefix. Pixels
of "adelaidet" are blue, green, red, minus a mean, not divided; the map turns and scales the stem's kernel, so that the
two compute the same from red, green, blue divided by a deviation.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from edge_seg.errors import ArtifactError, InputError
from edge_seg.models.foreign import FOREIGN, Foreign
from edge_seg.models.solov2 import Solov2

Project = Literal["adelaidet", "solo"]

LABEL_OF_FIRST_CLASS: Mapping[Project, int] = {"adelaidet": 0, "solo": 1}
"""Label of the category channel 0 in the project's annotations; in "solo" the label 0 is the background."""

_LICENCE = "non-commercial use only"
_PYRAMID_LEVELS = (2, 3, 4, 5)
_NORM = ("weight", "bias")
_COUNTER = "num_batches_tracked"
_BATCH_NORM = (*_NORM, "running_mean", "running_var", _COUNTER)
_BACKBONE: Mapping[Project, str] = {"adelaidet": "backbone.bottom_up", "solo": "backbone"}
_NOT_NEEDED = ("pixel_mean", "pixel_std", "backbone.bottom_up.classifier.", "backbone.classifier.")
_STEM = "body.backbone.conv_stem.weight"


def published_names(network: Solov2, project: Project) -> dict[str, str]:
    """Returns the project's name of every tensor of a network, by our name.

    Args:
        network: `solov2_light_mnv2` with `p6 = "max_pool"`: a published pyramid has no weights for level 6.
        project: Whose names.

    Raises:
        InputError: Another network.
    """
    options = network.options
    if options.separable or (options.norm, options.p6, options.pixels) != ("gn", "max_pool", "published"):
        raise InputError(
            f"{network.name} has no published counterpart.",
            expected='solov2_light_mnv2 with p6 = "max_pool"',
            got=f"separable {options.separable}, norm {options.norm!r}, p6 {options.p6!r}, pixels {options.pixels!r}",
            todo="build the network with these options",
        )
    names = {**_backbone(network, project), **_pyramid(project), **_branches(options.convs, project)}
    return {f"body.{own}": theirs for own, theirs in {**names, **_mask_branch(project)}.items()}


def from_published(network: Solov2, tensors: Mapping[str, Tensor], project: Project) -> dict[str, Tensor]:
    """Returns a whole state for `network.load_state_dict` from a project's tensors.

    Every tensor is used once and none is left over, but pixel statistics and a classification tail; only counters of
    batches may be missing.

    Args:
        network: The network; it is not changed.
        tensors: A published state, by the project's names.
        project: Whose names.

    Raises:
        InputError: The network has no published counterpart.
        ArtifactError: A tensor is missing or surplus, or a shape differs.
    """
    names, own = published_names(network, project), network.state_dict()
    given = {k: v for k, v in tensors.items() if not k.startswith(_NOT_NEEDED)}
    missing = sorted(t for t in names.values() if t not in given and not t.endswith(_COUNTER))
    surplus = sorted(set(given) - set(names.values()))
    wrong = [t for o, t in names.items() if t in given and given[t].shape != own[o].shape]
    if missing or surplus or wrong:
        raise ArtifactError(
            f"The tensors do not fit {network.name}.",
            expected=f"the {len(names)} names of {project!r} for this network",
            got=f"missing {missing[:3]}, surplus {surplus[:3]}, other shape {wrong[:3]}",
            todo="use the network and the number of classes the weights were trained with",
        )
    state = {o: given[t].to(own[o].dtype).clone() if t in given else own[o].clone() for o, t in names.items()}
    if project == "adelaidet":
        state[_STEM] = state[_STEM].flip(1) * torch.tensor(network.std_rgb).reshape(1, 3, 1, 1)
    return state


def _register(project: Project) -> None:
    FOREIGN.register(f"{project}/solov2")(
        Foreign(_LICENCE, partial(published_names, project=project), partial(from_published, project=project))
    )


_register("adelaidet")
_register("solo")


def _tensors(own: str, theirs: str, suffixes: tuple[str, ...]) -> dict[str, str]:
    return {f"{own}.{suffix}": f"{theirs}.{suffix}" for suffix in suffixes}


def _unit(conv: str, norm: str, theirs: str, project: Project) -> dict[str, str]:
    """A convolution without bias and its GroupNorm, where the two are siblings in the project."""
    inner = ("conv", "gn") if project == "solo" else ("0", "1")
    return {
        **_tensors(conv, f"{theirs}.{inner[0]}", ("weight",)),
        **_tensors(norm, f"{theirs}.{inner[1]}", _NORM),
    }


def _pyramid(project: Project) -> dict[str, str]:
    names: dict[str, str] = {}
    for index, level in enumerate(_PYRAMID_LEVELS):
        lateral, output = (
            (f"neck.lateral_convs.{index}.conv", f"neck.fpn_convs.{index}.conv")
            if project == "solo"
            else (f"backbone.fpn_lateral{level}", f"backbone.fpn_output{level}")
        )
        names |= _tensors(f"fpn.lateral.{level}.conv", lateral, _NORM)
        names |= _tensors(f"fpn.output.{level}.conv", output, _NORM)
    return names


def _branches(convs: int, project: Project) -> dict[str, str]:
    names: dict[str, str] = {}
    for branch, theirs in (("category", "cate"), ("kernel", "kernel")):
        for i in range(convs):
            conv, norm = f"{branch}.convs.{i}.mix.conv", f"{branch}.convs.{i}.mix.norms.0"
            if project == "solo":
                names |= _unit(conv, norm, f"bbox_head.{theirs}_convs.{i}", project)
            else:
                names |= _tensors(conv, f"ins_head.{theirs}_tower.{3 * i}", ("weight",))
                names |= _tensors(norm, f"ins_head.{theirs}_tower.{3 * i + 1}", _NORM)
        predict = f"bbox_head.solo_{theirs}" if project == "solo" else f"ins_head.{theirs}_pred"
        names |= _tensors(f"{branch}.predict", predict, _NORM)
    return names


def _mask_branch(project: Project) -> dict[str, str]:
    head = "mask_feat_head" if project == "solo" else "mask_head"
    names: dict[str, str] = {}
    for index, level in enumerate(_PYRAMID_LEVELS):
        for j in range(max(1, index)):
            theirs = f"{head}.convs_all_levels.{index}.conv{j}"
            own = f"mask.level.{level}.{2 * j}" if level < _PYRAMID_LEVELS[-1] else f"mask.rest.{2 * j - 1}"
            conv, norm = f"{own}.conv", f"{own}.norm"
            if level == _PYRAMID_LEVELS[-1] and j == 0:
                conv, norm = "mask.coarsest.mix.conv", "mask.coarsest.mix.norms.0"
            names |= _unit(conv, norm, theirs, project)
    last = f"{head}.conv_pred" + (".0" if project == "solo" else "")
    return names | _unit("mask.predict.conv", "mask.predict.norm", last, project)


def _backbone(network: Solov2, project: Project) -> dict[str, str]:
    """Every block is features.i.conv.{0, 1, 3, 4, 6, 7}: convolution, norm, (activation), convolution, ..."""
    start = f"{_BACKBONE[project]}.features"
    names = {
        **_tensors("backbone.conv_stem", f"{start}.0.0", ("weight",)),
        **_tensors("backbone.bn1", f"{start}.0.1", _BATCH_NORM),
    }
    blocks = network.body.backbone.get_submodule("blocks")
    paths = [f"{stage}.{block}" for stage, row in blocks.named_children() for block, _ in row.named_children()]
    for number, path in enumerate(paths, start=1):
        first = number == 1
        layers = (("conv_dw", "bn1"), ("conv_pw", "bn2"))
        rest = (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3"))
        for place, (conv, norm) in enumerate(layers if first else rest):
            own = f"backbone.blocks.{path}"
            names |= _tensors(f"{own}.{conv}", f"{start}.{number}.conv.{3 * place}", ("weight",))
            names |= _tensors(f"{own}.{norm}", f"{start}.{number}.conv.{3 * place + 1}", _BATCH_NORM)
    return names
