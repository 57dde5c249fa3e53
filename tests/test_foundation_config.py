"""Strict TOML configurations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from edge_seg.config import apply_overrides, from_mapping, load_toml
from edge_seg.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    lr: float
    steps: int = 10


@dataclass(frozen=True)
class Outer:
    inner: Inner
    name: str = "a"
    flag: bool = False
    kind: Literal["x", "y"] = "x"
    pair: tuple[int, int] = (1, 2)
    many: tuple[float, ...] = ()
    maybe: int | None = None
    free: dict[str, Any] = field(default_factory=dict)


def build(**document: Any) -> Outer:
    return from_mapping(Outer, {"inner": {"lr": 0.5}, **document})


def test_a_complete_document_is_built_with_nested_values_and_defaults():
    made = from_mapping(
        Outer,
        {
            "inner": {"lr": 1, "steps": 3},
            "flag": True,
            "kind": "y",
            "pair": [3, 4],
            "many": [1, 2.5],
            "maybe": 7,
            "free": {"a": 1},
        },
    )
    assert made == Outer(Inner(1.0, 3), "a", True, "y", (3, 4), (1.0, 2.5), 7, {"a": 1})
    assert isinstance(made.inner.lr, float)
    assert isinstance(made.many[0], float)


@pytest.mark.parametrize(
    ("document", "key", "hint"),
    [
        ({"inner": {"lr": 1.0, "stepz": 1}}, "'inner.stepz'", "steps"),
        ({"inner": {"lr": 1.0}, "nmae": "b"}, "'nmae'", "name"),
        ({"inner": {"lr": 1.0}, "zzz": 1}, "'zzz'", "valid names: flag, free, inner"),
    ],
)
def test_an_unknown_key_stops_and_names_the_nearest_valid_one(document, key, hint):
    with pytest.raises(ConfigError) as caught:
        from_mapping(Outer, document)
    assert key in caught.value.what
    assert hint in caught.value.todo


@pytest.mark.parametrize(
    ("document", "key"), [({}, "'inner'"), ({"inner": {}}, "'inner.lr'"), ({"inner": {"steps": 1}}, "'inner.lr'")]
)
def test_a_missing_key_is_named_with_its_section(document, key):
    with pytest.raises(ConfigError, match="is missing") as caught:
        from_mapping(Outer, document)
    assert key in caught.value.what


@pytest.mark.parametrize(
    ("document", "key"),
    [
        ({"inner": {"lr": "fast"}}, "'inner.lr'"),
        ({"inner": {"lr": True}}, "'inner.lr'"),
        ({"inner": {"lr": 0.1, "steps": 1.5}}, "'inner.steps'"),
        ({"inner": {"lr": 0.1, "steps": True}}, "'inner.steps'"),
        ({"inner": {"lr": 0.1}, "flag": 1}, "'flag'"),
        ({"inner": {"lr": 0.1}, "name": 1}, "'name'"),
        ({"inner": {"lr": 0.1}, "kind": "z"}, "'kind'"),
        ({"inner": {"lr": 0.1}, "pair": [1]}, "'pair'"),
        ({"inner": {"lr": 0.1}, "pair": 3}, "'pair'"),
        ({"inner": {"lr": 0.1}, "pair": [1, "b"]}, "'pair[1]'"),
        ({"inner": {"lr": 0.1}, "many": ["b"]}, "'many[0]'"),
        ({"inner": {"lr": 0.1}, "maybe": "b"}, "'maybe'"),
        ({"inner": {"lr": 0.1}, "free": 3}, "'free'"),
    ],
)
def test_a_value_of_another_type_stops_and_names_its_key(document, key):
    with pytest.raises(ConfigError) as caught:
        from_mapping(Outer, document)
    assert key in caught.value.what
    assert caught.value.expected
    assert caught.value.got


def test_a_value_where_a_section_belongs_is_an_error():
    with pytest.raises(ConfigError, match="inner is not a section"):
        from_mapping(Outer, {"inner": 3})


def test_overrides_are_read_as_toml_and_as_text_where_they_are_none():
    document = {"inner": {"lr": 0.5, "steps": 1}}
    texts = ["inner.steps=7", "inner.lr = 1e-3", "name=hello world", "flag=true", 'kind="y"', "pair=[5, 6]"]
    made = from_mapping(Outer, apply_overrides(document, texts))
    assert made == Outer(Inner(0.001, 7), "hello world", True, "y", (5, 6))


def test_overrides_leave_the_document_as_it_was():
    document = {"inner": {"lr": 0.5}}
    apply_overrides(document, ["inner.lr=2.0", "name=b"])
    assert document == {"inner": {"lr": 0.5}}


def test_the_last_of_two_overrides_wins_and_sections_are_made():
    assert apply_overrides({}, ["a.b.c=1", "a.b.c=2"]) == {"a": {"b": {"c": 2}}}


def test_an_override_may_contain_further_equal_signs():
    assert apply_overrides({}, ["path=a=b"]) == {"path": "a=b"}


@pytest.mark.parametrize("text", ["lr", "", "=3", "inner..lr=3", ".lr=3"])
def test_an_override_without_a_key_or_a_value_is_an_error(text):
    with pytest.raises(ConfigError, match="Cannot read the override"):
        apply_overrides({}, [text])


def test_an_override_into_a_value_that_is_no_section_is_an_error():
    with pytest.raises(ConfigError, match=r"name\.first"):
        apply_overrides({"name": "a"}, ["name.first=3"])


def test_an_override_of_an_unknown_key_is_caught_when_the_document_is_read():
    with pytest.raises(ConfigError, match=r"inner\.learning_rate"):
        from_mapping(Outer, apply_overrides({"inner": {"lr": 0.1}}, ["inner.learning_rate=3"]))


def test_a_missing_file_and_a_file_that_is_not_toml_are_told_apart(tmp_path):
    with pytest.raises(ConfigError, match="There is no configuration"):
        load_toml(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_text("lr = \n")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_toml(tmp_path / "b.toml")
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_toml(tmp_path / "c.toml")


def test_a_folder_where_a_configuration_is_expected_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_toml(tmp_path)


def test_every_recipe_of_the_package_is_complete_and_says_what_it_is(root):
    from edge_seg.contract import ClassInfo
    from edge_seg.models.base import MODELS
    from edge_seg.training.settings import load_settings

    recipes = sorted((root / "edge_seg" / "configs").glob("*.toml"))
    assert recipes
    for path in recipes:
        settings = load_settings(path)
        network = MODELS[settings.model.name](num_classes=4, input_px=settings.model.input_px)
        classes = [ClassInfo(n, f"class {n}", True, (0, 0, 0)) for n in range(4)]
        network.decoder_params(settings.decoder)
        assert network.criterion(settings.criterion, classes) is not None
        header = path.read_text().split("\n\n")[0].split("\nseed")[0]
        assert all(line.startswith("#") for line in header.splitlines())
        for word in ("Cost:", "Command:"):
            assert word in header, f"{path.name} has no {word} in its header"
