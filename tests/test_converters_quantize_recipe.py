"""Recipes: precision per layer by module path, applied strictly, from a file that people edit."""

from __future__ import annotations

import json
import tomllib

import numpy as np
import pytest
from quantize_graphs import PLACE, Net, contract, noise, random_weights, run

from edge_seg.converters.flatbuffer import graph_of
from edge_seg.converters.ptq.post_training import PtqSettings, calibrate, quantize
from edge_seg.converters.ptq.recipe import Recipe, Rule, read_recipe
from edge_seg.errors import ConfigError, InputError

PICTURES = noise(4)


@pytest.fixture(scope="module")
def network():
    """stem -> body.first -> body.second -> two heads."""
    rng, net = np.random.default_rng(0), Net()
    x = net.conv("stem", net.input, random_weights(rng, 8, 3), act="RELU")
    x = net.conv("body.first", x, random_weights(rng, 8, 8), act="RELU")
    x = net.conv("body.second", x, random_weights(rng, 8, 8), act="RELU")
    data, graph = net.finish(
        net.conv("head.a", x, random_weights(rng, 4, 8)), net.conv("head.b", x, random_weights(rng, 4, 8))
    )
    return calibrate(data, graph, contract(), PICTURES)


def _weights(file):
    """Dtypes of activations and weights by module."""
    found = {}
    for op in file.ops:
        if op.name == "CONV_2D":
            found[file.source(op)] = (file.tensors[op.inputs[0]].dtype, file.tensors[op.inputs[1]].dtype)
    return found


FLOAT, INT8, INT16, DYNAMIC = ("float32",) * 2, ("int8",) * 2, ("int16", "int8"), ("float32", "int8")


@pytest.mark.parametrize(
    ("default", "rules", "expected"),
    [
        ("int8", {}, [INT8] * 5),
        ("int8", {"body": "float"}, [INT8, FLOAT, FLOAT, INT8, INT8]),
        ("int8", {"body.second": "int16"}, [INT8, INT8, INT16, INT8, INT8]),
        ("int8", {"head.*": "dynamic"}, [INT8, INT8, INT8, DYNAMIC, DYNAMIC]),
        ("float", {"stem": "int8"}, [INT8, FLOAT, FLOAT, FLOAT, FLOAT]),
        ("int8", {"*": "float", "body.*": "int8"}, [FLOAT, INT8, INT8, FLOAT, FLOAT]),  # the last rule wins
        ("int16", {"head.b": "float"}, [INT16, INT16, INT16, INT16, FLOAT]),
    ],
)
def test_layers_get_the_precision_that_the_recipe_says(network, default, rules, expected):
    recipe = Recipe(default, tuple(Rule(k, v) for k, v in rules.items()))
    done = quantize(network, recipe)
    file = graph_of(done.data, PLACE)
    assert list(_weights(file).values()) == expected
    values = run(done.data, PICTURES[0])  # and it runs
    reference = run(network.data, PICTURES[0])
    for name in ("head.a;", "head.b;"):
        found = next(v for k, v in values.items() if k.startswith(name))
        error = np.abs(found - reference[name]).max() / np.abs(reference[name]).max()
        assert error < 0.1


@pytest.mark.parametrize(
    ("rules", "dtypes"),
    [
        ({}, ["int8", "int8", "int8"]),
        ({"stem": "float"}, ["float32", "int8", "int8"]),
        ({"head": "float"}, ["int8", "float32", "float32"]),
        ({"head.a": "float"}, ["int8", "float32", "float32"]),  # outputs of different precision come out in float
        ({"*": "int16"}, ["int8", "int16", "int16"]),
    ],
)
def test_the_input_is_int8_before_integers_and_outputs_are_what_wrote_them(network, rules, dtypes):
    file = graph_of(quantize(network, Recipe("int8", tuple(Rule(*r) for r in rules.items()))).data, PLACE)
    assert [file.tensors[t].dtype for t in (*file.inputs, *file.outputs)] == dtypes
    if dtypes[0] == "int8":
        tensor = file.tensors[file.inputs[0]]
        assert (tensor.scale, tensor.zero_point) == ((1.0,), (-128,))


def test_a_float_layer_computes_what_the_float_network_computes(network):
    """All but the stem in float: the heads differ by no more than the stem's rounding lets them."""
    reference = run(network.data, PICTURES[0])["head.a;"]
    errors = {}
    for name, rules in {"all": (), "half": (Rule("head", "float"), Rule("body", "float"))}.items():
        values = run(quantize(network, Recipe("int8", rules)).data, PICTURES[0])
        errors[name] = np.square(next(v for k, v in values.items() if k.startswith("head.a")) - reference).mean()
    assert errors["half"] < 0.5 * errors["all"]


@pytest.mark.parametrize(("pattern", "hint"), [("body.frist", "body.first"), ("haed", "head"), ("stem.x", "stem")])
def test_a_pattern_that_names_no_layer_is_refused_with_the_nearest_names(network, pattern, hint):
    with pytest.raises(ConfigError, match=f"names no layer[^$]*{hint}"):
        quantize(network, Recipe("int8", (Rule(pattern, "float"),)))


def test_a_pattern_does_not_match_part_of_a_name(network):
    with pytest.raises(ConfigError, match="names no layer"):
        Recipe("int8", (Rule("bod", "float"),)).precisions(network.graph)


def test_an_unknown_precision_names_its_neighbours():
    with pytest.raises(ConfigError, match="int8"):
        Recipe("int8", (Rule("head", "int9"),))


RECIPE = Recipe("int8", (Rule("head", "float", 'loses 0.4 PQ "in int8"'), Rule("body.*", "int16")))


@pytest.mark.parametrize("ending", ["toml", "json"])
def test_a_recipe_is_read_as_it_was_written(tmp_path, ending):
    path = tmp_path / f"recipe.{ending}"
    path.write_text(RECIPE.to_toml() if ending == "toml" else json.dumps(RECIPE.to_json()))
    assert read_recipe(path) == RECIPE


def test_the_toml_is_what_the_documentation_shows():
    document = tomllib.loads(RECIPE.to_toml())
    assert document["rules"][1] == {"layers": "body.*", "precision": "int16"}
    assert (document["format"], document["default"]) == ("edge_seg.recipe", "int8")


@pytest.mark.parametrize(
    "text",
    [
        "",
        'format = "other"',
        'format = "edge_seg.recipe"\ndefault = "int4"',
        'format = "edge_seg.recipe"\nrule = 1',
        'format = "edge_seg.recipe"\nrules = [3]',
        'format = "edge_seg.recipe"\n[[rules]]\nlayers = "head"',
        'format = "edge_seg.recipe"\n[[rules]]\nlayers = "head"\nprecision = "float"\nwhy = "x"',
        "format = ",
    ],
)
def test_a_recipe_that_is_not_one_is_refused(tmp_path, text):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(ConfigError):
        read_recipe(tmp_path / "r.toml")


@pytest.mark.parametrize("name", ["r.toml", "r.json"])
def test_a_missing_recipe_is_an_input_error(tmp_path, name):
    with pytest.raises(InputError, match=name):
        read_recipe(tmp_path / name)


def test_mixed_without_a_recipe_is_refused():
    with pytest.raises(InputError, match="needs a recipe"):
        PtqSettings().recipe_for("mixed")


def test_bias_correction_without_an_int8_layer_is_refused():
    with pytest.raises(InputError, match="int8 layers"):
        PtqSettings(bias_correction=True).recipe_for("w8a16")
