"""Panoptic quality against cases worked out by hand, the definition in plain loops, and torchmetrics."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from edge_seg.contract import ClassInfo
from edge_seg.data.sample import Segment
from edge_seg.errors import InputError
from edge_seg.evaluation.bootstrap import interval, paired_bootstrap
from edge_seg.evaluation.panoptic_quality import PanopticQuality

CAT, DOG, SKY = 0, 1, 2
CLASSES = (
    ClassInfo(1, "cat", True, (255, 0, 0)),
    ClassInfo(2, "dog", True, (0, 255, 0)),
    ClassInfo(3, "sky", False, (0, 0, 255)),
)


def score(pred, pred_classes, true, true_classes, crowds=()):
    """Scores one picture; classes are given as {id: class index}."""
    quality = PanopticQuality(CLASSES)
    true_segments = [Segment(i, c, i in crowds) for i, c in true_classes.items()]
    quality.update(np.array(pred), [Segment(i, c) for i, c in pred_classes.items()], np.array(true), true_segments)
    return quality


def counts(quality, class_index):
    row = quality.compute().per_class[class_index]
    return row.tp, row.fp, row.fn


def square(x0, width=4, size=12):
    image = np.zeros((size, size), int)
    image[2:6, x0 : x0 + width] = 1
    return image


def test_a_perfect_prediction_scores_100():
    ids = [[1, 1, 2], [3, 3, 2]]
    result = score(ids, {1: CAT, 2: CAT, 3: SKY}, ids, {1: CAT, 2: CAT, 3: SKY}).compute()
    assert (result.pq, result.sq, result.rq, result.pq_th, result.pq_st) == (100.0,) * 5
    assert result.images == 1
    assert [row.tp for row in result.per_class] == [2, 0, 1]


def with_sky(mask):
    return np.where(mask > 0, 1, 2)


def test_a_shift_by_one_of_four_pixels_has_an_iou_of_three_fifths():
    """12 of 20 pixels in common; the sky around has 144 - 20 in common out of 144 - 12."""
    quality = score(with_sky(square(3)), {1: CAT, 2: SKY}, with_sky(square(2)), {1: CAT, 2: SKY})
    cat, _, sky = quality.compute().per_class
    assert cat.pq == pytest.approx(60.0)
    assert sky.pq == pytest.approx(100.0 * 124 / 132)
    assert quality.compute().pq == pytest.approx((60.0 + 100.0 * 124 / 132) / 2)


def test_a_shift_by_two_of_four_pixels_is_a_miss_and_a_false_alarm():
    """8 of 24 pixels in common."""
    quality = score(with_sky(square(4)), {1: CAT, 2: SKY}, with_sky(square(2)), {1: CAT, 2: SKY})
    assert counts(quality, CAT) == (0, 1, 1)
    assert quality.compute().pq_th == 0.0


def test_an_iou_of_exactly_one_half_is_no_match():
    quality = score([[1, 1, 1, 2]], {1: CAT, 2: SKY}, [[2, 1, 1, 1]], {1: CAT, 2: SKY})
    assert counts(quality, CAT) == (0, 1, 1)


def test_sq_is_the_mean_iou_of_matches_and_rq_the_f1_of_finding():
    """One match with IoU 2/3, one miss, two false alarms: SQ 2/3, RQ 1 / 2.5."""
    pred, true = [[1, 1, 3, 4, 9, 9]], [[1, 1, 1, 9, 2, 9]]
    quality = score(pred, {1: CAT, 3: CAT, 4: CAT, 9: SKY}, true, {1: CAT, 2: CAT, 9: SKY})
    cat = quality.compute().per_class[CAT]
    assert (cat.tp, cat.fp, cat.fn) == (1, 2, 1)
    assert (cat.sq, cat.rq) == (pytest.approx(200 / 3), pytest.approx(40.0))
    assert cat.pq == pytest.approx(cat.sq * cat.rq / 100)
    assert cat.iou_sum == pytest.approx(2 / 3)


def test_what_a_prediction_paints_on_void_is_left_out_of_the_union():
    quality = score([[1, 1, 1, 1]], {1: CAT}, [[5, 5, 0, 0]], {5: CAT})
    assert quality.compute().pq == 100.0


def test_void_in_the_prediction_is_not_left_out():
    quality = score([[1, 1, 1, 0]], {1: CAT}, [[5, 5, 5, 5]], {5: CAT})
    assert quality.compute().pq == 75.0


def test_a_false_alarm_on_void_is_forgiven_only_when_more_than_half_of_it_lies_there():
    forgiven = score([[1, 1, 1, 2]], {1: CAT, 2: SKY}, [[0, 0, 7, 7]], {7: SKY})
    counted = score([[1, 1, 2, 2]], {1: CAT, 2: SKY}, [[0, 7, 7, 7]], {7: SKY})
    assert counts(forgiven, CAT) == (0, 0, 0)
    assert counts(counted, CAT) == (0, 1, 0)


def test_a_crowd_is_neither_matched_nor_missed_and_forgives_its_own_class_only():
    true, truth = [[4, 4, 4, 7]], {4: CAT, 7: SKY}
    same = score([[1, 1, 1, 2]], {1: CAT, 2: SKY}, true, truth, crowds={4})
    other = score([[1, 1, 1, 2]], {1: DOG, 2: SKY}, true, truth, crowds={4})
    nothing = score([[0, 0, 0, 2]], {2: SKY}, true, truth, crowds={4})
    assert counts(same, CAT) == counts(other, CAT) == counts(nothing, CAT) == (0, 0, 0)
    assert counts(other, DOG) == (0, 1, 0)


def test_void_and_crowds_of_the_class_forgive_together():
    """Two of four pixels on void and one on a crowd: 3/4. Neither alone is more than half."""
    quality = score([[1, 1, 1, 1, 2]], {1: CAT, 2: SKY}, [[0, 0, 4, 7, 7]], {4: CAT, 7: SKY}, crowds={4})
    assert counts(quality, CAT) == (0, 0, 0)


def test_two_crowds_of_a_class_forgive_together():
    quality = score([[1, 1, 1, 2]], {1: CAT, 2: SKY}, [[4, 5, 7, 7]], {4: CAT, 5: CAT, 7: SKY}, crowds={4, 5})
    assert counts(quality, CAT) == (0, 0, 0)


def test_the_right_mask_with_the_wrong_class_costs_both_classes():
    quality = score([[1, 1, 2]], {1: DOG, 2: SKY}, [[1, 1, 2]], {1: CAT, 2: SKY})
    assert counts(quality, CAT) == (0, 0, 1)
    assert counts(quality, DOG) == (0, 1, 0)
    assert quality.compute().pq == pytest.approx(100 / 3)


def test_an_empty_prediction_misses_everything():
    quality = score([[0, 0, 0]], {}, [[1, 1, 2]], {1: CAT, 2: SKY})
    assert [counts(quality, c) for c in (CAT, DOG, SKY)] == [(0, 0, 1), (0, 0, 0), (0, 0, 1)]
    assert quality.compute().pq == 0.0


def test_an_empty_truth_forgives_everything_and_leaves_nothing_to_average():
    result = score([[1, 1, 2]], {1: CAT, 2: SKY}, [[0, 0, 0]], {}).compute()
    assert math.isnan(result.pq)
    assert result.to_json()["pq"] is None
    json.dumps(result.to_json(), allow_nan=False)


def test_classes_that_never_occur_are_left_out_of_the_averages():
    result = score([[1, 2]], {1: CAT, 2: SKY}, [[1, 2]], {1: CAT, 2: SKY}).compute()
    assert result.pq == result.pq_th == 100.0
    assert math.isnan(result.per_class[DOG].pq)
    assert result.to_json()["per_class"][DOG]["pq"] is None


def test_ids_of_any_size_give_the_same_score():
    small = score([[1, 1, 2]], {1: CAT, 2: SKY}, [[1, 2, 2]], {1: CAT, 2: SKY}).statistics
    large = score([[9, 9, 1 << 30]], {9: CAT, 1 << 30: SKY}, [[1 << 24, 3, 3]], {1 << 24: CAT, 3: SKY}).statistics
    assert np.array_equal(small, large)


@pytest.mark.parametrize(
    ("pred", "pred_classes", "true", "true_classes", "message"),
    [
        ([[1, 1]], {1: CAT}, [[1, 1, 1]], {1: CAT}, "different sizes"),
        ([1, 1], {1: CAT}, [1, 1], {1: CAT}, "different sizes"),
        ([[1, 3]], {1: CAT}, [[1, 1]], {1: CAT}, "prediction's id map has ids without a segment"),
        ([[1, 1]], {1: CAT}, [[1, -1]], {1: CAT}, "truth's id map has ids without a segment"),
        ([[1, 1]], {1: CAT, 2: CAT}, [[1, 1]], {1: CAT}, "prediction lists a segment without pixels"),
        ([[1, 1]], {1: CAT}, [[1, 1]], {1: CAT, 2: CAT}, "truth lists a segment without pixels"),
        ([[1, 1]], {1: 3}, [[1, 1]], {1: CAT}, "class index out of range"),
        ([[1, 0]], {1: CAT, 0: CAT}, [[1, 1]], {1: CAT}, "segment ids are not valid"),
    ],
)
def test_inconsistent_input_is_refused(pred, pred_classes, true, true_classes, message):
    with pytest.raises(InputError, match=message):
        score(pred, pred_classes, true, true_classes)


def test_a_repeated_segment_is_refused():
    quality = PanopticQuality(CLASSES)
    with pytest.raises(InputError, match="segment ids are not valid"):
        quality.update(np.ones((1, 1), int), [Segment(1, 0)] * 2, np.ones((1, 1), int), [Segment(1, 0)])


def test_nothing_cannot_be_scored():
    for action in (lambda q: q.compute(), lambda q: interval(q, seed=0)):
        with pytest.raises(InputError, match="nothing to score"):
            action(PanopticQuality(CLASSES))


def random_pair(seed, *, crowd=False, pred_void=True):
    """A truth of random rectangles and a prediction that is a damaged copy of it."""
    rng = np.random.default_rng(seed)
    true = np.zeros((24, 30), int)
    true[:, :] = 1 if rng.random() < 0.5 else 0
    for id_ in range(2, 9):
        y, x, h, w = rng.integers(0, 18), rng.integers(0, 24), rng.integers(3, 10), rng.integers(3, 12)
        true[y : y + h, x : x + w] = 0 if rng.random() < 0.15 else id_
    pred = np.roll(true, rng.integers(-2, 3, 2), (0, 1))
    pred[pred == 0] = 0 if pred_void else 20
    pred[rng.integers(0, 20) :, rng.integers(0, 24) :] = 21
    labels = {i: int(rng.integers(0, 2)) for i in range(2, 9)} | {1: SKY, 20: SKY, 21: CAT}
    if not pred_void:
        pred[pred == 20] = 1
    true_segments = [Segment(i, labels[i], crowd and bool(rng.random() < 0.3)) for i in np.unique(true).tolist() if i]
    noisy = {i: CAT if c != SKY and rng.random() < 0.15 else c for i, c in labels.items()}
    return pred, [Segment(i, noisy[i]) for i in np.unique(pred).tolist() if i], true, true_segments


def by_definition(pred, pred_segments, true, true_segments):
    """The rules of arXiv 1801.00868 (sections 4.1, 4.2) with sets of pixels and plain loops."""

    def pixels(ids, segment):
        return set(np.flatnonzero(ids == segment.id).tolist())

    void = set(np.flatnonzero(true == 0).tolist())
    rows, used = np.zeros((len(CLASSES), 4)), set()
    for t in (s for s in true_segments if not s.iscrowd):
        hit = False
        for p in (s for s in pred_segments if s.class_index == t.class_index):
            a, b = pixels(pred, p) - void, pixels(true, t)
            if len(a & b) / len(a | b) > 0.5:
                rows[t.class_index] += [len(a & b) / len(a | b), 1, 0, 0]
                used.add(p.id)
                hit = True
        rows[t.class_index, 3] += not hit
    for p in (s for s in pred_segments if s.id not in used):
        crowds = [pixels(true, t) for t in true_segments if t.iscrowd and t.class_index == p.class_index]
        ignored = pixels(pred, p) & void.union(*crowds)
        rows[p.class_index, 2] += len(ignored) <= 0.5 * len(pixels(pred, p))
    return rows


@pytest.mark.parametrize("crowd", [False, True])
def test_random_pictures_agree_with_the_definition_in_plain_loops(crowd):
    quality = PanopticQuality(CLASSES)
    pairs = [random_pair(seed, crowd=crowd) for seed in range(60)]
    for pair in pairs:
        quality.update(*pair)
    expected = np.stack([by_definition(*pair) for pair in pairs])
    assert expected.sum((0, 1)).min() > 20
    np.testing.assert_allclose(quality.statistics, expected, atol=1e-12)


def test_random_pictures_agree_with_torchmetrics():
    """torchmetrics also leaves the prediction's void out of the union, so these predictions have none."""
    torch = pytest.importorskip("torch")
    detection = pytest.importorskip("torchmetrics.detection")
    quality = PanopticQuality(CLASSES)
    reference = detection.PanopticQuality({0, 1}, {2}, return_sq_and_rq=True, return_per_class=True)
    for seed in range(40):
        pred, pred_segments, true, true_segments = random_pair(seed, pred_void=False)
        pred = np.where(pred == 0, 1, pred)
        if 1 not in {s.id for s in pred_segments} and (pred == 1).any():
            pred_segments = [*pred_segments, Segment(1, SKY)]
        quality.update(pred, pred_segments, true, true_segments)
        reference.update(torchmetrics_pair(torch, pred, pred_segments), torchmetrics_pair(torch, true, true_segments))
    rows = quality.compute().per_class
    ours = np.array([[row.pq, row.sq, row.rq] for row in rows])
    theirs = 100.0 * reference.compute().numpy().reshape(3, 3)
    assert min(row.tp for row in rows) > 5
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def torchmetrics_pair(torch, ids, segments):
    """[1, H, W, 2]: class (99 is void) and instance."""
    class_of = {0: 99} | {s.id: s.class_index for s in segments}
    classes = np.vectorize(class_of.get)(ids)
    return torch.from_numpy(np.stack([classes, np.where(classes == SKY, 0, ids)], -1)[None])


def collect(seeds, *, damage=False, first_id=0):
    quality = PanopticQuality(CLASSES)
    for number, seed in enumerate(seeds):
        pred, pred_segments, true, true_segments = random_pair(seed)
        if damage:
            pred_segments = [Segment(s.id, (s.class_index + 1) % 3) for s in pred_segments]
        quality.update(pred, pred_segments, true, true_segments, image_id=first_id + number)
    return quality


def test_merging_parts_equals_scoring_all_at_once():
    whole, left, right = collect(range(10)), collect(range(4)), collect(range(4, 10), first_id=4)
    left.merge(right)
    assert left.compute() == whole.compute()
    assert left.image_ids == whole.image_ids


def test_parts_with_other_classes_cannot_be_merged():
    with pytest.raises(InputError, match="class lists differ"):
        collect(range(2)).merge(PanopticQuality(CLASSES[:2]))


def test_the_interval_holds_the_value_repeats_with_the_seed_and_narrows_with_more_pictures():
    few, many = collect(range(8)), collect(range(80))
    one, again = interval(few, seed=1), interval(few, seed=1)
    wide, narrow = interval(few, seed=2), interval(many, seed=2)
    assert one == again != wide
    assert wide.low < wide.value < wide.high
    assert wide.value == few.compute().pq
    assert narrow.high - narrow.low < 0.6 * (wide.high - wide.low)


def test_a_resample_is_scored_like_the_pictures_it_holds(monkeypatch):
    """With one picture drawn thrice, the interval is that picture's own PQ."""
    quality = collect(range(3))
    alone = collect([1]).compute().pq
    monkeypatch.setattr(
        np.random, "default_rng", lambda seed: SimpleNamespace(multinomial=lambda n, p, size: np.array([[0, 3, 0]]))
    )
    found = interval(quality, seed=0, n=1)
    assert (found.low, found.high) == (pytest.approx(alone), pytest.approx(alone))


def test_the_difference_to_itself_is_zero_and_to_a_damaged_copy_is_not():
    good, bad = collect(range(20)), collect(range(20), damage=True)
    same, worse = paired_bootstrap(good, good, seed=0), paired_bootstrap(good, bad, seed=0)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    assert worse.value == pytest.approx(bad.compute().pq - good.compute().pq)
    assert worse.low < worse.value < worse.high < 0.0


def test_scores_of_other_pictures_are_not_compared():
    with pytest.raises(InputError, match="same pictures"):
        paired_bootstrap(collect(range(3)), collect(range(4)), seed=0)
    with pytest.raises(InputError, match="same pictures"):
        paired_bootstrap(collect(range(3)), collect(range(3), first_id=1), seed=0)
