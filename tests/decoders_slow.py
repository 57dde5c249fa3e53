"""A contract and a slow MaskConver decoder for tests: one centre, one pixel at a time, in Python numbers."""

import math

import numpy as np

from edge_seg.contract import ClassInfo, Contract, DecoderInfo, InputTensor, ModelInfo, OutputTensor, Preprocess

PARAMS = {
    "top_k": 50,
    "score_threshold": 0.05,
    "score_exponent": 1.0,
    "overlap_threshold": 0.5,
    "min_area_share": 0.0,
    "mask_threshold": 0.0,
    "one_peak_per_stuff_class": False,
    "reassign_rejected": False,
    "class_embedding": "multiply",
    "wavelengths_cells": [],
    "stride_px": 8,
}
CLASSES = tuple(ClassInfo(10 + i, f"c{i}", i < 2, (9 * i, 0, 0)) for i in range(4))  # two things, two stuffs


def contract(input_px=64, classes=CLASSES, **params):
    cells = input_px // PARAMS["stride_px"]
    return Contract(
        ModelInfo("m", "maskconver", "panoptic", input_px, 0, 0, 0, 0, ""),
        InputTensor("image", (1, input_px, input_px, 3)),
        Preprocess((128, 128, 128), (127.5,) * 3, (127.5,) * 3),
        # names differ from roles: the decoder must look outputs up by role
        tuple(OutputTensor(f"out_{r}", r, (1, cells, cells, 1), 8) for r in ("heatmap", "embedding", "mask_features")),
        tuple(classes),
        DecoderInfo("maskconver", {**PARAMS, **params}),
    )


def named(heatmap, embedding, mask_features):
    arrays = {"heatmap": heatmap, "embedding": embedding, "mask_features": mask_features}
    return {f"out_{k}": np.asarray(v, np.float32)[None] for k, v in arrays.items()}


def constants(width, num_classes, rng):
    shapes = {
        "class_embedding.weight": (num_classes, width),
        "fc1.weight": (width, width),
        "fc1.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "fc2.weight": (width, width),
        "fc2.bias": (width,),
    }
    return {k: rng.normal(0.3, 1, s).astype(np.float32) for k, s in shapes.items()}


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def slow_proposals(heat, params, isthing):
    height, width, classes = heat.shape
    found = []
    for c in range(classes):
        best = heat[:, :, c].max()
        for y in range(height):
            for x in range(width):
                v = heat[y, x, c]
                near = heat[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2, c]
                earlier = [(y - 1, x - 1), (y - 1, x), (y - 1, x + 1), (y, x - 1)]
                inside = [(a, b) for a, b in earlier if a >= 0 and 0 <= b < heat.shape[1]]
                if (
                    any(heat[a, b, c] == v for a, b in inside)
                    or v < near.max()
                    or sigmoid(v) <= params["score_threshold"]
                ):
                    continue
                if params["one_peak_per_stuff_class"] and not isthing[c] and v < best:
                    continue
                found.append((-v, y, x, c))
    found.sort()
    if params["one_peak_per_stuff_class"]:
        seen, once = set(), []
        for item in found:
            if isthing[item[3]] or item[3] not in seen:
                once.append(item)
            seen.add(item[3])
        found = once
    return [(y, x, c, sigmoid(-v)) for v, y, x, c in found[: params["top_k"]]]


def slow_mask(y, x, c, raw, k, params):
    e = raw["out_embedding"][0, y, x].astype(float)
    z = (
        e * k["class_embedding.weight"][c]
        if params["class_embedding"] == "multiply"
        else e + k["class_embedding.weight"][c]
    )
    z = k["fc1.weight"].astype(float) @ z + k["fc1.bias"]
    z = (z - z.mean()) / math.sqrt(z.var() + 1e-6) * k["norm.weight"] + k["norm.bias"]
    z = k["fc2.weight"].astype(float) @ np.where(z > 0, z, 0) + k["fc2.bias"]
    return np.array([[float(z @ f) for f in row] for row in raw["out_mask_features"][0].astype(float)])


def slow_enlarge(mask, box, stride_px):
    """Each image pixel's centre goes to the network's input, then to cells; bilinear, clamped."""
    height, width = mask.shape
    out = np.zeros((box.image_h_px, box.image_w_px))
    for row in range(box.image_h_px):
        for column in range(box.image_w_px):
            u, v = box.to_network(column + 0.5, row + 0.5)
            u = min(max(u / stride_px - 0.5, 0), width - 1)
            v = min(max(v / stride_px - 0.5, 0), height - 1)
            x, y = int(u), int(v)
            x1, y1 = min(x + 1, width - 1), min(y + 1, height - 1)
            top = mask[y, x] * (1 - (u - x)) + mask[y, x1] * (u - x)
            bottom = mask[y1, x] * (1 - (u - x)) + mask[y1, x1] * (u - x)
            out[row, column] = top * (1 - (v - y)) + bottom * (v - y)
    return out


def slow_decode(raw, k, params, isthing, box):
    proposals = slow_proposals(raw["out_heatmap"][0], params, isthing)
    masks = [slow_enlarge(slow_mask(y, x, c, raw, k, params), box, params["stride_px"]) for y, x, c, _ in proposals]
    alive = set(range(len(proposals)))
    shape = (box.image_h_px, box.image_w_px)
    strength = [s ** params["score_exponent"] for *_, s in proposals]
    own = [int((m > 0).sum()) for m in masks]
    while True:
        winner = np.full(shape, -1)
        for row in range(shape[0]):
            for column in range(shape[1]):
                scored = [(-strength[q] * sigmoid(masks[q][row, column]), q) for q in sorted(alive)]
                if scored:
                    q = min(scored)[1]
                    if params["mask_threshold"] == 0 or sigmoid(masks[q][row, column]) > params["mask_threshold"]:
                        winner[row, column] = q
        area = [int((winner == q).sum()) for q in range(len(proposals))]
        keep = {
            q
            for q in alive
            if area[q] > params["min_area_share"] * winner.size
            and own[q] > 0
            and area[q] > params["overlap_threshold"] * own[q]
        }
        if keep == alive or not params["reassign_rejected"]:
            break
        alive.remove(min(alive - keep, key=lambda q: (strength[q], q)))
    ids, segments, id_map = {}, [], np.zeros(shape, int)
    for q in sorted(keep):
        *_, c, score = proposals[q]
        key = (c, q if isthing[c] else None)
        if key not in ids:
            ids[key] = len(ids) + 1
            segments.append((ids[key], c, bool(isthing[c]), score))
        id_map[winner == q] = ids[key]
    return id_map, segments
