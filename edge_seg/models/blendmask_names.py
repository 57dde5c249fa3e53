"""Names of AdelaiDet's BlendMask checkpoints, mapped onto `BlendMask` in its published form, strictly.

Their licence allows non-commercial use only: what is made from such a checkpoint keeps that licence.
The published network sees pixels in the order blue, green, red; ours red, green, blue. The map turns the stem's
kernel, so that the two compute the same. Mean and deviation are the body's own (`pixels = "published"`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from edge_seg.errors import ArtifactError, InputError
from edge_seg.models.blendmask import BlendMask
from edge_seg.models.foreign import FOREIGN, Foreign

LICENCE = "AdelaiDet: for non-commercial purposes only; ask its authors for commercial use"
STEM = "body.backbone.conv_stem.weight"
_HEAD = "proposal_generator.fcos_head"
_COUNTERS = "num_batches_tracked"
_NOT_NEEDED = ("pixel_mean", "pixel_std", "backbone.bottom_up.classifier.", f"{_HEAD}.scales.")
_OLD_NAMES = {f"{_HEAD}.centerness.": f"{_HEAD}.ctrness."}
_FIRST_BLOCK = {"conv_dw": 0, "bn1": 1, "conv_pw": 3, "bn2": 4}
_OTHER_BLOCK = {"conv_pw": 0, "bn1": 1, "conv_dw": 3, "bn2": 4, "conv_pwl": 6, "bn3": 7}


def from_adelaidet(state: Mapping[str, Tensor], network: BlendMask) -> dict[str, Tensor]:
    """Returns a state for `network.load_state_dict`, made from the tensors of a published checkpoint.

    Args:
        state: Tensors by published name. Old names of the centerness layer are taken as well; pixel statistics,
            a classification tail, unused level scales and, for a network without one, the semantic head are passed
            over.
        network: A network in its published form, of the same layout.

    Raises:
        InputError: The network is not in its published form.
        ArtifactError: Tensors are missing, have no place in the network, or another shape.
    """
    names = published_names(network)
    found = _with_new_names(state)
    passed_over = _NOT_NEEDED if network.semantic is not None else (*_NOT_NEEDED, "basis_module.seg_head.")
    missing = sorted(n for n in names.values() if n not in found and not n.endswith(_COUNTERS))
    surplus = sorted(n for n in set(found) - set(names.values()) if not n.startswith(passed_over))
    if missing or surplus:
        raise ArtifactError(
            "The checkpoint does not fit this BlendMask network.",
            expected=f"its {len(names)} tensors",
            got=f"missing {missing[:3] or 'none'} ({len(missing)}), without a place {surplus[:3] or 'none'} "
            f"({len(surplus)})",
            todo="choose the variant of the checkpoint's levels, towers and norm",
        )
    own = network.state_dict()
    made = {name: _fitting(found, theirs, own[name]) for name, theirs in names.items()}
    made[STEM] = made[STEM].flip(1)
    return made


def published_names(network: BlendMask) -> dict[str, str]:
    """Returns the published name of every tensor of a network; raises InputError for a mobile form."""
    if network.options.form != "published" or network.options.pixels != "published":
        raise InputError(
            f"{network.name} has no published counterpart.",
            expected='form and pixels "published"',
            got=f"{network.options.form}, {network.options.pixels}",
            todo="take blendmask_rt_mnv2 or another published variant",
        )
    modules = dict(_pairs(network))
    names: dict[str, str] = {}
    for name in network.state_dict():
        path, _, leaf = name.rpartition(".")
        names[name] = f"{modules[path]}.{leaf}"
    return names


def _pairs(network: BlendMask) -> Iterator[tuple[str, str]]:
    """Yields own and published path of every module that holds tensors."""
    yield from _backbone(network.body.backbone)
    for level in network.body.fpn.lateral:
        yield f"body.fpn.lateral.{level}.conv", f"backbone.fpn_lateral{level}"
        yield f"body.fpn.output.{level}.conv", f"backbone.fpn_output{level}"
    yield from (("body.fpn.extra.6", "backbone.top_block.p6"), ("body.fpn.extra.7.1", "backbone.top_block.p7"))
    for own, theirs in (("shared", "share_tower"), ("class_tower", "cls_tower"), ("box_tower", "bbox_tower")):
        yield from _tower(network, own, theirs)
    predictions = {"class_predict": "cls_logits", "box_predict": "bbox_pred", "center_predict": "ctrness"}
    yield from ((f"body.head.{own}", f"{_HEAD}.{theirs}") for own, theirs in predictions.items())
    yield "body.head.attention", "top_layer"
    yield from _basis(network.options.basis_convs)
    yield from _unit("semantic.0", "basis_module.seg_head", 0)
    yield from _unit("semantic.1", "basis_module.seg_head", 3)
    yield "semantic.2", "basis_module.seg_head.6"


def _backbone(backbone: nn.Module) -> Iterator[tuple[str, str]]:
    own, theirs = "body.backbone", "backbone.bottom_up.features"
    yield from ((f"{own}.conv_stem", f"{theirs}.0.0"), (f"{own}.bn1", f"{theirs}.0.1"))
    number = 0
    for stage, blocks in enumerate(backbone.get_submodule("blocks").children()):
        for row, _ in enumerate(blocks.children()):
            number += 1
            for part, place in (_FIRST_BLOCK if number == 1 else _OTHER_BLOCK).items():
                yield f"{own}.blocks.{stage}.{row}.{part}", f"{theirs}.{number}.conv.{place}"


def _tower(network: BlendMask, own: str, theirs: str) -> Iterator[tuple[str, str]]:
    for number, conv in enumerate(network.body.get_submodule(f"head.{own}.convs").children()):
        path, norm = f"body.head.{own}.convs.{number}", f"{_HEAD}.{theirs}.{3 * number + 1}"
        yield f"{path}.conv", f"{_HEAD}.{theirs}.{3 * number}"
        count = len(list(conv.get_submodule("norms").children()))
        for level in range(count):
            yield f"{path}.norms.{level}", f"{norm}.{level}" if count > 1 else norm


def _basis(convs: int) -> Iterator[tuple[str, str]]:
    for number in range(3):
        yield from _unit(f"body.basis.refine.{number}", f"basis_module.refine.{number}", 0)
    for number in range(convs):
        yield from _unit(f"body.basis.convs.{number}", f"basis_module.tower.{number}", 0)
    yield from _unit("body.basis.last", f"basis_module.tower.{convs + 1}", 0)  # between them lies the enlargement
    yield "body.basis.predict", f"basis_module.tower.{convs + 2}"


def _unit(own: str, theirs: str, first: int) -> Iterator[tuple[str, str]]:
    yield f"{own}.conv", f"{theirs}.{first}"
    yield f"{own}.norm", f"{theirs}.{first + 1}"


def _with_new_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        old = next((o for o in _OLD_NAMES if name.startswith(o)), "")
        renamed[_OLD_NAMES[old] + name[len(old) :] if old else name] = value
    return renamed


def _fitting(found: Mapping[str, Tensor], name: str, own: Tensor) -> Tensor:
    if name not in found:  # a frozen BatchNorm counts no batches
        return own.clone()
    if found[name].shape != own.shape:
        raise ArtifactError(
            f"The checkpoint's tensor {name!r} has another shape.",
            expected=str(tuple(own.shape)),
            got=str(tuple(found[name].shape)),
            todo="choose the variant of the same number of classes, bases and attention size",
        )
    return found[name].to(own.dtype).clone()


FOREIGN.register("adelaidet/blendmask")(
    Foreign(LICENCE, published_names, lambda network, tensors: from_adelaidet(tensors, network))
)
