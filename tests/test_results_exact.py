"""Tables of exactness and of a file against itself, by hand."""

from edge_seg.studies.results import exact


def rows(texts):
    return [line for line in texts[-1].splitlines() if line.startswith("| ")][2:]


def test_numbers_of_a_retrained_file_are_added_up_and_its_outputs_told():
    found = {
        "file": "runs/somewhere/net.tflite",
        "trained_numbers": {"equal": {"weight": 3, "bias": 2}, "total": {"weight": 4, "bias": 2}},
        "integer_mirror": {"equal": 0.995, "max_lsb": 1, "pictures": 10},
    }
    told = exact.trained({"a": found, "other": {"runs": []}})
    assert rows(told) == ["| `net.tflite` | 5 of 6 | 10 | 99.5 % equal, at most 1 apart |"]


def test_every_processor_has_a_line():
    run = {"file": "net.tflite", "pictures": 4, "integers": 12345, "differing": 6, "max_lsb": 2}
    runs = [{**run, "qemu_cpu": "one"}, {**run, "qemu_cpu": "two", "differing": 0}]
    found = {"claim": "here and there", "emulator": "qemu", "command": "it", "runs": runs}
    told = exact.processors({"a": found})
    assert "here and there (qemu; `it`)" in told[0]
    assert rows(told) == [
        "| `net.tflite` | `one` | 4 | 12,345 | 6 | 2 |",
        "| `net.tflite` | `two` | 4 | 12,345 | 0 | 2 |",
    ]


def test_two_interpreters_stand_side_by_side():
    sides = {"first": {"name": "litert", "version": "2"}, "second": {"name": "old", "version": "1"}}
    values = {"value_first": 70.612, "value_second": 70.767, "difference": 0.16, "difference_ci95": [-0.147, 0.5]}
    found = {"file": "net.tflite", "images": 9, "data": "a/photos", "metric": "pq", **sides, **values}
    told = exact.interpreters({"a": found})
    assert rows(told) == [
        "| `net.tflite` | 9 of `photos` | PQ 70.61 in litert 2 | PQ 70.77 in old 1 | +0.16 [-0.15, +0.50] |"
    ]


def test_a_series_of_a_file_against_itself_has_a_line_per_profile():
    profile = {
        "threads": 1,
        "within_n": 9,
        "times_n": 10,
        "within_in_a_row": 4,
        "furthest_pct": 3.14,
        "within_pct": 2.0,
    }
    profile |= {"alarms_n": 1, "alarms_stated": 0.5, "steal_pct": {"median": 2.4, "most": 19.6}}
    told = exact.same_file({"busy": {"profiles": [profile, {**profile, "threads": 2}]}})
    assert "within 2 % of 1" in told[0]
    line = "9 of 10 | 4 | 3.1 % | 1 (0.5 stated) | 2 %, at most 20 %"
    assert rows(told) == [f"| busy | 1 | {line} |", f"| busy | 2 | {line} |"]


def test_without_documents_there_is_nothing():
    assert [*exact.trained({}), *exact.processors({}), *exact.interpreters({})] == []
    assert exact.same_file({}) == []
