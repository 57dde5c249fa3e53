"""Errors and registries: messages that say what to do, names found by folder."""

from __future__ import annotations

import sys

import pytest

from edge_seg import errors
from edge_seg.errors import CheckFailed, ConfigError, EdgeSegError, InputError, MissingHere, nearest
from edge_seg.registry import Registry


def test_a_message_says_what_is_wrong_what_was_expected_what_was_found_and_what_to_do():
    error = InputError("It is wrong.", expected="right", got="wrong", todo="make it right")
    assert str(error).splitlines() == [
        "It is wrong.",
        "  expected: right",
        "  got:      wrong",
        "  next:     make it right",
    ]


def test_a_message_leaves_out_what_is_not_known():
    assert str(EdgeSegError("It is wrong.")) == "It is wrong."


@pytest.mark.parametrize(("kind", "code"), [(CheckFailed, 1), (InputError, 2), (ConfigError, 2), (MissingHere, 3)])
def test_each_class_of_error_has_the_exit_code_of_the_command_line(kind, code):
    assert kind("x").exit_code == code


def test_every_error_is_in_one_tree():
    kinds = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, Exception)]
    assert len(kinds) >= 7
    assert all(issubclass(k, EdgeSegError) for k in kinds)


def test_the_nearest_names_are_proposed_and_all_names_where_none_is_near():
    assert nearest("w8a9", ("fp32", "fp16", "w8a8")) == "did you mean w8a8?"
    assert nearest("zzzz", ("b", "a")) == "valid names: a, b"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A package whose modules register things, importable for one test."""
    package = tmp_path / "shapes_for_a_test"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from edge_seg.registry import Registry\nSHAPES = Registry('shape', 'shapes_for_a_test')\n"
    )
    (package / "round.py").write_text(
        "from shapes_for_a_test import SHAPES\n@SHAPES.register('circle')\ndef circle():\n    return 0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield package
    for name in [m for m in sys.modules if m.startswith("shapes_for_a_test")]:
        del sys.modules[name]


def test_a_new_file_in_the_folder_is_enough_to_add_a_name(folder):
    (folder / "angular.py").write_text(
        "from shapes_for_a_test import SHAPES\n@SHAPES.register('square')\ndef square():\n    return 4\n"
    )
    from shapes_for_a_test import SHAPES  # type: ignore[import-not-found]

    assert SHAPES.names() == ["circle", "square"]
    assert list(SHAPES) == ["circle", "square"]
    assert SHAPES["square"]() == 4


def test_an_unknown_name_is_an_input_error_with_the_nearest_names(folder):
    from shapes_for_a_test import SHAPES

    with pytest.raises(InputError) as caught:
        SHAPES["circel"]
    assert "no shape called 'circel'" in caught.value.what
    assert "circle" in caught.value.todo


def test_two_entries_of_one_name_are_an_error(folder):
    (folder / "second.py").write_text("from shapes_for_a_test import SHAPES\nSHAPES.register('circle')(len)\n")
    from shapes_for_a_test import SHAPES

    with pytest.raises(ValueError, match="two shapes are called 'circle'"):
        SHAPES.names()


def test_a_broken_file_is_not_hidden_by_the_next_look_up(folder):
    (folder / "broken.py").write_text("raise RuntimeError('broken file')\n")
    from shapes_for_a_test import SHAPES

    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken file"):
            SHAPES.names()


def test_a_decorator_returns_what_it_decorates():
    registry: Registry[object] = Registry("thing", "edge_seg.configs")
    thing = object()
    assert registry.register("a")(thing) is thing
    assert registry["a"] is thing
