"""Raw outputs that look like a trained MaskConver's, made from true id maps; no network, no training.

Mask features code the segment under each cell (so that masks are soft at borders) plus noise. Every segment has a
centre in its fullest cell; further centres lie anywhere, with lower scores, so that segments have several. All have
some of another segment's embedding mixed in.
"""

import math

import numpy as np
from decoders_slow import contract, named

GAIN = 9.0


def class_coded(sample, classes, count, *, cells, seed=0, noise=0.02, **params):
    """Returns (contract, constants, raw) of a picture with `count` centres; the input is square, 8 px a cell."""
    rng = np.random.default_rng([7, seed])
    shares = cell_shares(sample, cells)
    features = shares + rng.normal(0, noise, shares.shape)
    heat = np.full((cells, cells, len(classes)), -6.0) + rng.normal(0, 0.3, (cells, cells, len(classes)))
    embedding = np.zeros_like(features)
    for rank, (y, x, n) in enumerate(centres(shares[:, :, :-1], count, rng)):
        heat[y, x, sample.segments[n].class_index] = 3 - 5 * rank / max(count, 1)
        embedding[y, x] = 0
        embedding[y, x, n] = 1
        embedding[y, x, rng.integers(len(sample.segments))] += rng.uniform(0, 0.3)
    defaults = {"top_k": count, "score_threshold": 0.1, "score_exponent": 0.3, "mask_threshold": 0.5}
    made = contract(8 * cells, classes, **{**defaults, **params})
    return made, unit_kernels(shares.shape[-1], len(classes)), named(heat, embedding, features)


def centres(shares, count, rng):
    """At most `count` cells and segments; cells of even row and column, so that no two are neighbours."""
    even = shares[::2, ::2]
    best = np.stack(np.unravel_index(even.reshape(-1, even.shape[-1]).argmax(0), even.shape[:2]), -1)
    anywhere = rng.permutation(np.stack(np.meshgrid(*map(np.arange, even.shape[:2]), indexing="ij"), -1).reshape(-1, 2))
    chosen = {(int(y), int(x)): n for n, (y, x) in reversed(list(enumerate(best)))}
    for y, x in anywhere:
        chosen.setdefault((int(y), int(x)), int(even[y, x].argmax()))
    return [(2 * y, 2 * x, n) for (y, x), n in list(chosen.items())[:count]]


def cell_shares(sample, cells):
    """Share of every cell that each segment covers, and last what none covers, [cells, cells, segments + 1]."""
    height, width = sample.id_map_hw_i32.shape
    y = np.arange(height) * cells // height
    x = np.arange(width) * cells // width
    cell = (y[:, None] * cells + x).ravel()
    area = np.bincount(cell, minlength=cells * cells)
    shares = [
        np.bincount(cell, weights=(sample.id_map_hw_i32 == s.id).ravel(), minlength=cells * cells) / np.maximum(area, 1)
        for s in sample.segments
    ]
    return np.stack([*shares, 1 - np.sum(shares, axis=0)], -1).reshape(cells, cells, -1)


def unit_kernels(width, num_classes):
    """Constants that turn an embedding n into the kernel: +GAIN on channel n, -GAIN on the others, by and large."""
    eye, ones = np.eye(width), np.ones(width)
    k = {
        "class_embedding.weight": np.ones((num_classes, width)),
        "fc1.weight": eye,
        "fc1.bias": 0 * ones,
        "norm.weight": ones,
        "norm.bias": 0 * ones,
        "fc2.weight": eye * 2 * GAIN / math.sqrt(max(width - 1, 1)),
        "fc2.bias": -GAIN * ones,
    }
    return {name: np.asarray(v, np.float32) for name, v in k.items()}
