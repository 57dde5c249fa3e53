"""Contracts, made raw outputs, and decoders written step by step with torch, for tests of the instance families."""

import numpy as np
import torch
from torch.nn.functional import grid_sample, interpolate, max_pool2d

from edge_seg.contract import ClassInfo, Contract, DecoderInfo, InputTensor, ModelInfo, OutputTensor, Preprocess
from edge_seg.studies.instance_decoder_speed import PARAMS

BLEND_LEVELS = (3, 4, 5)
GRIDS, GRID_STRIDES_PX = (12, 10, 8, 6, 4), (8, 8, 16, 32, 32)


def contract_of(family, outputs, classes, input_px, **params):
    """Outputs: name -> (role, level, stride_px, array)."""
    return Contract(
        ModelInfo("made", family, "instance", input_px, 0, 0, 0, 0, ""),
        InputTensor("image", (1, input_px, input_px, 3)),
        Preprocess((128, 128, 128), (127.5,) * 3, (127.5,) * 3),
        tuple(OutputTensor(n, role, a.shape, stride, level=level) for n, (role, level, stride, a) in outputs.items()),
        tuple(ClassInfo(i + 1, f"class {i}", True, (0, 0, 0)) for i in range(classes)),
        DecoderInfo(family, {**PARAMS[family], **params}),
    )


def raw_of(outputs):
    return {name: np.asarray(array, np.float32) for name, (_, _, _, array) in outputs.items()}


def blendmask_outputs(input_px, classes, *, width, bases=4, levels=BLEND_LEVELS):
    """Raw outputs of a BlendMask that sees nothing."""
    outputs = {}
    for level in levels:
        side = input_px // 2**level
        for name, role, channels, value in (
            ("class", "class_logit", classes, -9),
            ("box", "box_ltrb", 4, 0),
            ("center", "centerness", 1, 0),
            ("attention", "attention", width, 0),
        ):
            array = np.full((1, side, side, channels), value, np.float32)
            outputs[f"{name}_p{level}"] = (role, level, 2**level, array)
    side = input_px // 4
    outputs["bases"] = ("bases", 0, 4, np.zeros((1, side, side, bases), np.float32))
    return outputs


def solov2_outputs(input_px, classes, *, width, features):
    """Raw outputs of a SOLOv2 that sees nothing."""
    outputs = {}
    for level, side in enumerate(GRIDS):
        heat = np.full((1, side, side, classes), -9, np.float32)
        outputs[f"category_{level}"] = ("category", level, GRID_STRIDES_PX[level], heat)
        kernel = np.zeros((1, side, side, width), np.float32)
        outputs[f"kernel_{level}"] = ("kernel", level, GRID_STRIDES_PX[level], kernel)
    side = input_px // 4
    outputs["mask_features"] = ("mask_features", 0, 4, np.zeros((1, side, side, features), np.float32))
    return outputs


def tensor(array_hwc):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array_hwc, -1, 0)))


def slow_paste(probability, xyxy_px, box):
    """Probability of each pixel of the image from a mask in a box of the network's input, 0 outside the box; [H, W]."""
    content_w, content_h = box.content_wh_px
    x = (torch.arange(box.image_w_px, dtype=torch.float64) + 0.5) * content_w / box.image_w_px
    y = (torch.arange(box.image_h_px, dtype=torch.float64) + 0.5) * content_h / box.image_h_px
    x0, y0, x1, y1 = (float(v) for v in xyxy_px)
    x, y = (x - x0) / (x1 - x0) * 2 - 1, (y - y0) / (y1 - y0) * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
    mask = torch.as_tensor(probability, dtype=torch.float64)[None, None]
    pasted = grid_sample(mask, grid, mode="bilinear", padding_mode="border", align_corners=False)[0, 0]
    pasted[((y < -1) | (y >= 1))[:, None] | ((x < -1) | (x >= 1))] = 0
    return pasted.numpy()


def slow_map(probability, box):
    """Probability of each pixel of the image from a map of the whole input: enlarge, cut, resize; [H, W]."""
    content_w, content_h = box.content_wh_px
    mask = torch.as_tensor(probability, dtype=torch.float64)[None, None]
    large = interpolate(mask, size=(box.input_h_px, box.input_w_px), mode="bilinear", align_corners=False)
    cut = large[:, :, :content_h, :content_w]
    size = (box.image_h_px, box.image_w_px)
    return interpolate(cut, size=size, mode="bilinear", align_corners=False)[0, 0].numpy()


def slow_solov2(raw, params, kernels, box):
    """Scores, classes and pixel probabilities by the published order, one step after the other; no lazy layer.

    Args:
        raw: Raw outputs.
        params: The decoder's parameters.
        kernels: Level -> [S, S, E].
        box: Geometry.
    """
    found = []
    for level in range(5):
        heat = torch.sigmoid(tensor(raw[f"category_{level}"][0]))[None]
        peak = (max_pool2d(heat, 2, stride=1, padding=1)[:, :, :-1, :-1] == heat) & (heat > params["score_threshold"])
        for _, c, y, x in torch.nonzero(peak).tolist():
            found.append((float(heat[0, c, y, x]), c, kernels[level][y, x], GRID_STRIDES_PX[level]))
    features = torch.from_numpy(raw["mask_features"][0])
    masks = [torch.sigmoid(features @ torch.from_numpy(kernel)) for _, _, kernel, _ in found]
    rows = []
    for (score, c, _, stride), mask in zip(found, masks, strict=True):
        binary = mask > params["mask_threshold"]
        if binary.sum() > stride:
            rows.append((score * float(mask[binary].mean()), c, mask.numpy(), binary.numpy()))
    rows.sort(key=lambda row: -row[0])
    decayed = [(score * slow_decay(rows, j, params), c, mask) for j, (score, c, mask, _) in enumerate(rows)]
    kept = sorted((row for row in decayed if row[0] >= params["update_threshold"]), key=lambda row: -row[0])
    return [(score, c, slow_map(mask, box)) for score, c, mask in kept[: params["max_instances"]]]


def slow_iou(rows, i, j, params):
    if params["class_aware"] and rows[i][1] != rows[j][1]:
        return 0.0
    return (rows[i][3] & rows[j][3]).sum() / (rows[i][3] | rows[j][3]).sum()


def slow_decay(rows, j, params):
    decay = 1.0
    for i in range(j):
        iou, rivalled = slow_iou(rows, i, j, params), max([slow_iou(rows, k, i, params) for k in range(i)], default=0)
        if params["nms"] == "gaussian":
            decay = min(decay, np.exp(-params["nms_sigma"] * (iou**2 - rivalled**2)))
        else:
            decay = min(decay, (1 - iou) / max(1 - rivalled, 1e-6))
    return decay


def slow_blendmask(raw, params, attention, box, iou_of):
    """Scores, classes, boxes and pixel probabilities by the published order; no lazy layer, R and M of the parameters.

    Args:
        raw: Raw outputs.
        params: The decoder's parameters.
        attention: Level -> [h, w, K * M * M].
        box: Geometry.
        iou_of: Intersection over union of two boxes.
    """
    found = []
    for level in BLEND_LEVELS:
        stride = 2**level
        heat = 1 / (1 + np.exp(-raw[f"class_p{level}"][0].astype(np.float64)))
        center = 1 / (1 + np.exp(-raw[f"center_p{level}"][0].astype(np.float64)))
        judged = heat * center if params["threshold_with_centerness"] else heat
        for y, x, c in np.argwhere(judged > params["score_threshold"]).tolist():
            left, top, right, bottom = raw[f"box_p{level}"][0, y, x].astype(float) * stride
            px, py = x * stride + stride // 2, y * stride + stride // 2
            score = heat[y, x, c] * center[y, x, 0]
            score = np.sqrt(score) if params["score"] == "sqrt" else score
            found.append((score, c, (px - left, py - top, px + right, py + bottom), attention[level][y, x]))
    found.sort(key=lambda row: -row[0])
    kept = []
    for row in found[: params["pre_nms_top_k"]]:
        rivals = [k for k in kept if k[1] == row[1] or not params["class_aware"]]
        if all(iou_of(k[2], row[2]) <= params["nms_iou"] for k in rivals):
            kept.append(row)
    return [(s, c, b, slow_blend(raw, b, a, params, box)) for s, c, b, a in kept[: params["max_instances"]]]


def slow_blend(raw, xyxy_px, attention, params, box):
    size, bases = params["mask_size"], params["bases"]
    x0, y0, x1, y1 = (v / 4 for v in xyxy_px)
    maps = tensor(raw["bases"][0]).double()
    step = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    height, width = maps.shape[1:]
    x, y = x0 + step * (x1 - x0), y0 + step * (y1 - y0)
    grid = torch.stack(torch.meshgrid(x / width * 2 - 1, y / height * 2 - 1, indexing="xy"), dim=-1)[None]
    crops = grid_sample(maps[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
    # grid_sample's border rule is ROIAlign's up to one cell beyond the outermost centres; farther away is 0
    crops[:, :, (x < -0.5) | (x > width + 0.5)] = 0
    crops[:, (y < -0.5) | (y > height + 0.5)] = 0
    weights = torch.from_numpy(attention.astype(np.float64)).reshape(1, bases, *[params["attention_size"]] * 2)
    weights = interpolate(weights, size=(size, size), mode="bilinear", align_corners=False)[0].softmax(dim=0)
    return slow_paste(torch.sigmoid((crops * weights).sum(dim=0)), xyxy_px, box)


def plain_iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union else 0.0


def near_threshold(mask, probability, threshold, tolerance=2e-4):
    """Whether a mask equals probability > threshold but where that is a matter of rounding."""
    return not ((mask != (probability > threshold)) & (np.abs(probability - threshold) > tolerance)).any()
