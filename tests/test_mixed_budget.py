"""The budget's expression, the search for the fewest float layers, and the choice among what meets it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edge_seg.commands.mixed_budget import Wish, _Judge
from edge_seg.commands.mixed_choice import Candidate, advice_on, cheapest
from edge_seg.commands.mixed_network import Calibration, figure
from edge_seg.contract import ClassInfo
from edge_seg.converters.mixed.budget import Budget, Search
from edge_seg.converters.ptq.post_training import PtqSettings
from edge_seg.data.sample import Segment
from edge_seg.errors import CheckFailed, InputError
from edge_seg.evaluation.panoptic_quality import PanopticQuality

ORDER = [f"layer{i}" for i in range(20)]


@pytest.mark.parametrize(
    ("text", "fp32", "threshold"),
    [("pq>=0.99*fp32", 60.0, 59.4), (" pq >= .5 * fp32 ", 60.0, 30.0), ("pq_th>=42.5", 60.0, 42.5)],
)
def test_a_budget_is_a_share_of_fp32_or_a_number(text, fp32, threshold):
    assert Budget.parse(text, ("pq", "pq_th")).threshold(fp32) == pytest.approx(threshold)


@pytest.mark.parametrize(
    "text", ["", "pq", "pq>0.9*fp32", "pq>=", "pq>=abc", "pq>=0.9*fp16", "pq>=-1", "pq>=1e2", "0.9*fp32<=pq", "pq>=1 2"]
)
def test_a_broken_expression_is_told_its_form(text):
    with pytest.raises(InputError, match=r"METRIC>=SHARE\*fp32"):
        Budget.parse(text, ("pq",))


@pytest.mark.parametrize(
    ("text", "words"), [("miou>=0.9*fp32", "no metric"), ("pq>=1.01*fp32", "out of range"), ("pq>=0", "out of range")]
)
def test_a_metric_or_a_number_that_there_is_not_is_refused(text, words):
    with pytest.raises(InputError, match=words):
        Budget.parse(text, ("pq",))


def search(needed, *, order=ORDER, threshold=50.0):
    """A network that scores 60 less 20 for each needed layer in int8."""
    asked = []

    def score(floats):
        asked.append(floats)
        return 60.0 - 20.0 * len(set(needed) - set(floats))

    return Search(order, score, threshold), asked


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13, 20])
def test_the_fewest_of_the_first_layers_are_found(count):
    found, asked = search(ORDER[:count])
    assert found.run()[0].floats == tuple(ORDER[:count])
    assert len(asked) <= 14 + min(count, 8)
    assert len(asked) == len(set(asked))


def test_nothing_is_asked_of_layers_where_all_in_int8_holds():
    found, asked = search([])
    assert [t.floats for t in found.run()] == [()]
    assert asked == [()]


def test_layers_that_are_not_needed_return_to_int8():
    found, _ = search(["layer1", "layer4"])
    assert found.run()[0].floats == ("layer1", "layer4")


def test_a_smaller_number_that_holds_below_one_that_fails_is_found():
    found = Search(ORDER, lambda floats: 60.0 if len(floats) == 5 or len(floats) >= 7 else 40.0, 50.0)
    assert len(found.run()[0].floats) == 5


def test_a_threshold_that_nothing_meets_names_the_best():
    found, _ = search([], threshold=61.0)
    with pytest.raises(CheckFailed, match=r"at best 60\.000, with 0 of 20 layers"):
        found.run()


def candidate(name, low, high, *, size=100, floats=("a",), holds=True):
    return Candidate(name, tuple(floats), 60.0, holds, size, 1, (low + high) / 2, (low, high))


def test_the_fastest_is_the_cheapest():
    assert cheapest([candidate("slow", 9, 10), candidate("fast", 5, 6, size=999)]).name == "fast"


def test_among_equally_fast_ones_the_smallest_file_is_the_cheapest():
    assert cheapest([candidate("big", 5.0, 6.0, size=999), candidate("small", 5.5, 6.5, size=10)]).name == "small"


def test_it_is_said_plainly_where_fp32_is_faster_than_every_mixed_network():
    fp32 = candidate("fp32", 3, 4, floats=())
    int8 = candidate("int8", 1, 2, floats=(), holds=False)
    mixed = candidate("mixed", 8, 9)
    said = advice_on([fp32, int8, mixed])
    assert "fp32 beats every mixed network: 3.50 ms, 8.50 ms. It meets the budget" in said[0]
    assert "int8 beats every mixed network" in said[1]
    assert said[1].endswith("It misses the budget.")
    assert advice_on([candidate("fp32", 20, 21, floats=()), mixed]) == ()


def test_a_faster_median_whose_interval_overlaps_is_called_as_fast():
    said = advice_on([candidate("fp32", 3, 9, floats=()), candidate("mixed", 5, 9)])
    assert "fp32 is as fast, within the noise, as every mixed network" in said[0]


class Judged(_Judge):
    """A judge whose metric gives known qualities: `hits` of ten pictures right in float and in int8."""

    def __init__(self, hits_fp32, hits_int8, limit=10):
        budget = Budget.parse("pq>=1.0*fp32", ("pq",))
        self.wish = Wish(budget, "", limit, Calibration("", 1), "litert", PtqSettings())
        self.metric = SimpleNamespace(name="pq")
        self.float_file = Path("fp32")
        self._qualities = {Path("fp32"): quality(hits_fp32), Path("int8"): quality(hits_int8)}
        self.fp32 = self.threshold = figure(self._qualities[Path("fp32")], "pq")


def quality(hits):
    """PQ over ten pictures of 2 x 2 pixels with one segment each, found in those where `hits` is true."""
    found = PanopticQuality((ClassInfo(1, "thing", True, (0, 0, 0)),))
    segment, full, empty = Segment(1, 0), np.ones((2, 2), np.int32), np.zeros((2, 2), np.int32)
    for hit in hits:
        found.update(full if hit else empty, (segment,) if hit else (), full, (segment,))
    return found


def test_a_miss_that_the_pictures_cannot_tell_from_meeting_is_doubted():
    one_lost_one_won = Judged([1] * 8 + [0, 0], [0, 0] + [1] * 5 + [0, 1, 1])
    assert "raise --limit" in one_lost_one_won.doubt(Path("int8"))[0]
    assert Judged([1] * 10, [0] * 9 + [1]).doubt(Path("int8")) == ()
    assert Judged([1] * 5 + [0] * 5, [1] * 6 + [0] * 4).doubt(Path("int8")) == ()
