"""Mask AP against pycocotools, boundary AP by hand, and what intervals, parts and sizes do."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from edge_seg.contract import ClassInfo
from edge_seg.decoders.base import Instance, InstanceResult
from edge_seg.decoders.run_lengths import RunLengths
from edge_seg.errors import InputError
from edge_seg.evaluation.average_precision import FIGURES, AveragePrecision, TrueObject, boundary
from edge_seg.evaluation.bootstrap import interval, paired_bootstrap, paired_ratio

CLASSES = [ClassInfo(i + 1, f"class {i}", True, (0, 0, 0)) for i in range(3)]
SIZE_HW = (200, 260)
NO_BOX = (0.0, 0.0, 0.0, 0.0)


def disc(rng):
    y, x, r = rng.integers(0, SIZE_HW[0]), rng.integers(0, SIZE_HW[1]), rng.integers(3, 60)
    rows, columns = np.ogrid[: SIZE_HW[0], : SIZE_HW[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 < r * r


def scene(rng):
    """Discs of three sizes, some of them crowds; found once, twice or never, some with a wrong class, some invented."""
    truth, found = [], []
    for _ in range(rng.integers(0, 6)):
        mask, index = disc(rng), int(rng.integers(0, 3))
        truth.append(TrueObject(index, bool(rng.random() < 0.15), RunLengths.from_mask(mask)))
        for _ in range(rng.integers(0, 3)):
            moved = np.roll(mask, rng.integers(-6, 7, 2), (0, 1))
            index = index if rng.random() < 0.8 else int(rng.integers(0, 3))
            found.append(Instance(index, round(float(rng.random()), 2), NO_BOX, RunLengths.from_mask(moved)))
    for _ in range(rng.integers(0, 4)):
        found.append(Instance(int(rng.integers(0, 3)), round(float(rng.random()), 2), NO_BOX, run_lengths(disc(rng))))
    return truth, InstanceResult(SIZE_HW, tuple(sorted(found, key=lambda i: -i.score)))


def run_lengths(mask):
    return RunLengths.from_mask(mask)


def scenes(count, seed=0):
    rng = np.random.default_rng(seed)
    return [scene(rng) for _ in range(count)]


def collect(pictures):
    score = AveragePrecision(CLASSES)
    for number, (truth, result) in enumerate(pictures):
        score.update(result, truth, image_id=number)
    return score


def coco_stats(pictures):
    """AP, AP50, AP75, AP of small, medium, large by pycocotools."""
    images = [{"id": n + 1, "height": SIZE_HW[0], "width": SIZE_HW[1]} for n in range(len(pictures))]
    annotations, results = [], []
    for n, (truth, result) in enumerate(pictures):
        for o in truth:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": n + 1,
                    "category_id": o.class_index,
                    "iscrowd": int(o.iscrowd),
                    "area": o.mask.area_px,
                    "bbox": list(o.mask.bbox_xywh_px),
                    "segmentation": o.mask.to_coco(),
                }
            )
        results += [
            {"image_id": n + 1, "category_id": i.class_index, "score": i.score, "segmentation": i.mask.to_coco()}
            for i in result.instances
        ]
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": index} for index in range(3)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(results), "segm")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return 100 * judge.stats[:6]


@pytest.mark.parametrize("seed", range(3))
def test_ap_is_pycocotools_to_the_last_digit(seed):
    pictures = scenes(30, seed)
    figures = collect(pictures).figures()
    mine = [figures[name] for name in ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l")]
    assert mine == pytest.approx(coco_stats(pictures).tolist(), abs=1e-10)
    assert 5 < figures["ap"] < 60


@pytest.mark.parametrize(
    ("seed", "boundary_ap"), [(0, 2.6635102608005163), (1, 2.0913091309130913), (2, 0.48126165401686066)]
)
def test_boundary_ap_is_that_of_faster_coco_eval(seed, boundary_ap):
    """Recorded from faster-coco-eval 1.8.0, iouType "boundary", on the same scenes."""
    assert collect(scenes(20, seed)).figures()["boundary_ap"] == pytest.approx(boundary_ap, abs=1e-9)


def test_a_class_without_objects_is_left_out_and_nothing_found_is_zero():
    disc_mask = np.zeros(SIZE_HW, bool)
    disc_mask[20:60, 30:90] = True
    truth = [TrueObject(1, False, RunLengths.from_mask(disc_mask))]
    score = collect([(truth, InstanceResult(SIZE_HW, ()))])
    assert score.figures()["ap"] == 0.0
    assert np.isnan(score.figures()["ap_s"])
    rows = score.per_class()
    assert [row["ap"] for row in rows] == [None, 0.0, None]
    assert [row["objects"] for row in rows] == [0, 1, 0]


def test_the_boundary_of_a_square_is_its_rim_and_the_pictures_edge_counts():
    square = np.zeros((30, 40), bool)
    square[0:10, 5:15] = True  # touches the upper edge
    rim = square.copy()
    rim[2:8, 7:13] = False
    assert np.array_equal(boundary(RunLengths.from_mask(square), 2).mask(), rim)
    thin = np.zeros((30, 40), bool)
    thin[3, 4:20] = True
    assert np.array_equal(boundary(RunLengths.from_mask(thin), 5).mask(), thin)


def test_boundary_ap_counts_the_rim_where_mask_ap_counts_the_area():
    """A 120 x 120 square moved by 4 pixels: IoU 0.935; its rim is 6 px wide and shares much less."""
    square = np.zeros((240, 180), bool)  # diagonal 300, so the boundary is 6 px wide
    square[20:140, 20:140] = True
    moved = np.roll(square, 4, axis=1)
    size = (240, 180)
    score = AveragePrecision(CLASSES)
    found = Instance(0, 0.9, NO_BOX, RunLengths.from_mask(moved))
    score.update(InstanceResult(size, (found,)), [TrueObject(0, False, RunLengths.from_mask(square))])
    figures = score.figures()
    assert figures["ap"] == pytest.approx(90.0)  # 0.936 passes 0.5 to 0.9, nine of ten thresholds
    rim_a = rim(square)
    rim_b = rim(moved)
    iou = (rim_a & rim_b).sum() / (rim_a | rim_b).sum()
    assert figures["boundary_ap"] == pytest.approx(10.0 * sum(iou >= t for t in np.linspace(0.5, 0.95, 10)))
    assert figures["boundary_ap"] < figures["ap"]


def rim(mask):
    """By definition: pixels of the mask within 6 px (as a square) of a pixel outside it."""
    grown = np.pad(~mask, 6, constant_values=True)
    near = np.zeros_like(mask)
    for dy in range(13):
        for dx in range(13):
            near |= grown[dy : dy + mask.shape[0], dx : dx + mask.shape[1]]
    return mask & near


@pytest.mark.parametrize("name", FIGURES)
def test_resampling_each_picture_once_gives_the_value_and_the_interval_holds_it(name):
    score = collect(scenes(25)).figure(name)
    once = score.resampled(np.ones((1, 25), np.int64))
    assert once[0] == pytest.approx(score.value(), abs=1e-10)
    found = interval(score, seed=0, n=200)
    assert found.low < found.value < found.high


def test_a_figure_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="ap60"):
        collect(scenes(2)).figure("ap60")


def test_resampling_equals_scoring_the_drawn_pictures():
    pictures = scenes(8)
    weights = np.array([[3, 0, 1, 0, 0, 2, 1, 1]])
    drawn = [p for p, n in zip(pictures, weights[0], strict=True) for _ in range(n)]
    assert collect(pictures).resampled(weights)[0] == pytest.approx(collect(drawn).value(), abs=0.2)


def test_pairs_are_compared_on_the_same_pictures():
    pictures = scenes(25)
    good = collect(pictures)
    worse = collect([(t, InstanceResult(SIZE_HW, r.instances[: len(r.instances) // 2])) for t, r in pictures])
    same, lost = paired_bootstrap(good, good, seed=0, n=100), paired_bootstrap(good, worse, seed=0, n=100)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    assert lost.high < 0
    share = paired_ratio(good, [worse, good, good], seed=0, n=100)
    assert (share.value, share.low, share.high) == (1.0, 1.0, 1.0)
    with pytest.raises(InputError, match="same pictures"):
        paired_bootstrap(good, collect(pictures[:5]), seed=0)


def test_interleaved_parts_are_the_whole():
    pictures = scenes(9)
    whole = collect(pictures)
    parts = [AveragePrecision(CLASSES) for _ in range(2)]
    for number, (truth, result) in enumerate(pictures):
        parts[number % 2].update(result, truth, image_id=number)
    joined = AveragePrecision.interleaved(parts)
    assert joined.figures() == whole.figures()
    assert joined.image_ids == whole.image_ids
    with pytest.raises(InputError, match="belong together"):
        AveragePrecision.interleaved([parts[1], parts[0]])


def test_what_does_not_fit_is_refused():
    score = AveragePrecision(CLASSES)
    with pytest.raises(InputError, match="nothing to score"):
        score.figures()
    mask = RunLengths.from_mask(np.ones((4, 4), bool))
    with pytest.raises(InputError, match="different sizes"):
        score.update(InstanceResult((5, 5), ()), [TrueObject(0, False, mask)])
    with pytest.raises(InputError, match="out of range"):
        score.update(InstanceResult((4, 4), (Instance(3, 0.5, NO_BOX, mask),)), [])
