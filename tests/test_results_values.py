"""Figures in sentences come from documents: by hand, and a mark that leads nowhere is refused."""

import dataclasses

import pytest

from edge_seg.errors import InputError
from edge_seg.studies.results.documents import read_results
from edge_seg.studies.results.values import VALUES, replace_values


def empty(tmp_path, **given):
    return dataclasses.replace(read_results(tmp_path), **given)


def profile(threads, within_n, most):
    return {"threads": threads, "within_n": within_n, "times_n": 12, "steal_pct": {"median": 1.0, "most": most}}


def test_a_marked_figure_is_replaced_and_the_rest_stays(tmp_path):
    found = empty(tmp_path, same_file={"host_busy": {"profiles": [profile(1, 7, 11.2), profile(2, 3, 19.7)]}})
    text = "a <!--value:same_file_busy_2-->old<!--/--> b <!--value:same_file_busy_taken--><!--/-->, 5 of 10"
    done = "a <!--value:same_file_busy_2-->3 of 12<!--/--> b <!--value:same_file_busy_taken-->20 %<!--/-->, 5 of 10"
    assert replace_values(text, found) == done
    assert replace_values(done, found) == done


def test_exact_figures_add_files_up_and_take_the_worst_outputs(tmp_path):
    """By hand: 3 + 9 of 3 + 10 numbers, half of the outputs of the worse file, on at least 4 pictures."""
    one = {"trained_numbers": {"equal": {"weight": 1, "bias": 2}, "total": {"weight": 1, "bias": 2}}}
    two = {"trained_numbers": {"equal": {"weight": 9}, "total": {"weight": 10}}}
    one["integer_mirror"], two["integer_mirror"] = {"equal": 1.0, "pictures": 6}, {"equal": 0.5, "pictures": 4}
    found = empty(tmp_path, exactness={"a": one, "b": two, "other": {"runs": []}})
    names = ("exact_files", "exact_numbers", "exact_outputs", "exact_pictures")
    assert [VALUES[name](found) for name in names] == ["2", "12 of 13", "50 %", "4"]


def test_the_difference_of_the_quickstart_is_between_its_int8_file_and_pytorch(tmp_path):
    def score(scheme, pq, command="edge-seg quickstart"):
        return {"command": command, "scheme": scheme, "pq": pq, "images": 9}

    other = score("torch", 1.0, "edge-seg evaluate")
    found = empty(tmp_path, evaluations=[other, score("torch", 70.0), score("w8a8", 68.74)])
    assert VALUES["quickstart_difference"](found) == "1.3"
    assert VALUES["quickstart_images"](found) == "9"


def test_the_lite_network_is_told_by_its_ratios_and_its_difference(tmp_path):
    def row(network, scheme, ratio):
        return {"network": network, "scheme": scheme, "of_peer": {"Peer": ratio}}

    rows = [row("maskconver_lite_256", "fp32", [0.5, 0.55, 0.6]), row("maskconver_lite_256", "w8a8", [0.9, 0.95, 1.0])]
    speeds = [{"what": "decoder", "rows": []}, {"rows": [row("plain", "fp32", None), *rows]}]
    lite = {"name": "lite", "difference": {"value": -0.25, "ci95": [-1.04, 0.55]}}
    found = empty(tmp_path, speeds=speeds, ablation={"rows": [{"name": "base", "difference": None}, lite]})
    assert VALUES["lite_fp32_of_peer"](found) == "0.55 [0.50, 0.60]"
    assert VALUES["lite_int8_of_peer"](found) == "0.95 [0.90, 1.00]"
    assert VALUES["lite_difference"](found) == "-0.2 [-1.0, +0.6]"


def test_a_name_that_is_no_figure_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(InputError, match=r"(?s)exact_file'.*did you mean exact_files"):
        replace_values("<!--value:exact_file-->5<!--/-->", empty(tmp_path))


@pytest.mark.parametrize("name", sorted(VALUES))
def test_a_figure_whose_document_is_missing_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=f"behind the figure '{name}' is not there"):
        replace_values(f"<!--value:{name}-->5<!--/-->", empty(tmp_path))


def test_a_mark_without_an_end_is_refused(tmp_path):
    with pytest.raises(InputError, match="has no end"):
        replace_values("<!--value:exact_files-->5 and more", empty(tmp_path))


def test_every_figure_stands_in_the_readme(root):
    text = (root / "README.md").read_text(encoding="utf-8")
    assert [name for name in VALUES if f"<!--value:{name}-->" not in text] == []
