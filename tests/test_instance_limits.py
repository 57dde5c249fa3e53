"""The study of what limits an instance network: what it corrects, and how it draws true masks on a network's grid."""

import json

import numpy as np
import pytest

from edge_seg.contract import ClassInfo
from edge_seg.decoders.base import Instance, InstanceResult
from edge_seg.decoders.run_lengths import RunLengths
from edge_seg.evaluation.average_precision import AveragePrecision, TrueObject, mask_iou
from edge_seg.letterbox import Letterbox
from edge_seg.studies.instance_limits import corrected, on_box_grid, on_map_grid, text
from edge_seg.studies.results.page import results_markdown

SIZE_HW = (120, 90)
CLASSES = tuple(ClassInfo(i + 1, f"class {i}", True, (0, 0, 0)) for i in range(2))
NO_BOX = (0.0, 0.0, 0.0, 0.0)


def rectangle(top, left, bottom, right):
    mask = np.zeros(SIZE_HW, bool)
    mask[top:bottom, left:right] = True
    return RunLengths.from_mask(mask)


def found(*instances):
    return InstanceResult(SIZE_HW, tuple(Instance(c, s, NO_BOX, m) for c, s, m in instances))


TRUTH = [
    TrueObject(0, False, rectangle(10, 10, 50, 40)),
    TrueObject(1, False, rectangle(60, 10, 110, 60)),
    TrueObject(1, True, rectangle(0, 60, 40, 90)),
]


def average_precision(result):
    score = AveragePrecision(CLASSES)
    score.update(result, TRUTH)
    return score.value()


def test_masks_are_corrected_where_class_and_place_are_right():
    near = rectangle(12, 10, 50, 40)
    result = corrected(found((0, 0.9, near), (0, 0.8, rectangle(60, 12, 110, 60))), TRUTH, masks=True)
    assert np.array_equal(result.instances[0].mask.counts, TRUTH[0].mask.counts)
    assert result.instances[1].mask.bbox_xywh_px == (12, 60, 48, 50), "another class stays as it is"
    assert [i.class_index for i in result.instances] == [0, 0]


def test_classes_are_corrected_where_the_place_is_right():
    result = corrected(found((1, 0.9, rectangle(12, 10, 50, 40)), (0, 0.8, rectangle(0, 0, 5, 5))), TRUTH, classes=True)
    assert [i.class_index for i in result.instances] == [0, 0]
    assert result.instances[0].mask.bbox_xywh_px == (10, 12, 30, 38)


def test_what_lies_on_nothing_or_on_a_crowd_stays():
    given = found((0, 0.9, rectangle(0, 60, 40, 90)), (1, 0.8, rectangle(115, 80, 120, 90)))
    assert corrected(given, TRUTH, classes=True, masks=True) == given
    assert corrected(given, [], classes=True, masks=True) == given
    assert corrected(found(), TRUTH, masks=True) == found()


def test_corrections_bring_a_prediction_of_the_right_places_to_full_marks():
    wrong = found((1, 0.9, rectangle(14, 10, 50, 40)), (0, 0.8, rectangle(60, 15, 110, 60)))
    assert average_precision(wrong) == 0.0
    assert average_precision(corrected(wrong, TRUTH, classes=True)) < 100.0
    assert average_precision(corrected(wrong, TRUTH, classes=True, masks=True)) == pytest.approx(100.0)


@pytest.mark.parametrize("image_wh", [(640, 427), (300, 500), (333, 301)])
@pytest.mark.parametrize("draw", [lambda m, b: on_box_grid(m, b, 28), lambda m, b: on_map_grid(m, b, 4)])
def test_a_disc_comes_back_from_the_grid_where_it_was(image_wh, draw):
    width, height = image_wh
    rows, columns = np.ogrid[:height, :width]
    disc = (rows - 0.45 * height) ** 2 + (columns - 0.6 * width) ** 2 < (0.3 * height) ** 2
    back = draw(disc, Letterbox(width, height, 320, 320))
    iou = mask_iou([RunLengths.from_mask(back)], [RunLengths.from_mask(disc)])[0, 0]
    assert 0.97 < iou < 1.0
    assert draw(np.roll(disc, 9, 1), Letterbox(width, height, 320, 320)).sum() == pytest.approx(back.sum(), rel=0.02)


def test_an_object_between_the_cells_is_lost():
    dot = np.zeros(SIZE_HW, bool)
    dot[50, 50] = True
    assert not on_map_grid(dot, Letterbox(SIZE_HW[1], SIZE_HW[0], 64, 64), 4).any()
    assert on_box_grid(dot, Letterbox(SIZE_HW[1], SIZE_HW[0], 64, 64), 28).sum() == 1


def test_the_table_has_a_line_for_each_version():
    rows = [{"title": "as they are", "ap": 1.0, "ap50": 2.0, "boundary_ap": 3.0}]
    shown = text({"network": "n", "images": 4, "data": "d", "rows": rows}).splitlines()
    assert len(shown) == 3
    assert shown[2].split() == ["as", "they", "are", "1.00", "2.00", "3.00"]


def test_the_readme_shows_it(tmp_path):
    figures = {"ap": 1.0, "ap50": 2.0, "boundary_ap": 3.0}
    ends = {f"{name}_ci95": [value - 0.5, value + 0.5] for name, value in figures.items()}
    document = {"network": "n", "images": 4, "data": "/somewhere/animals", "command": "it"}
    document["rows"] = [{"title": "true masks", **figures, **ends}]
    (tmp_path / "limits").mkdir()
    (tmp_path / "limits" / "a.json").write_text(json.dumps(document))
    shown = results_markdown(tmp_path)
    assert "`n` on `animals` (4 pictures)" in shown
    assert "| true masks | 1.00 [0.5, 1.5] | 2.00 [1.5, 2.5] | 3.00 [2.5, 3.5] |" in shown
