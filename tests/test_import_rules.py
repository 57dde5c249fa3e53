"""The shape of the code, held by its syntax trees: who imports whom, sizes, documentation."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"edge_seg": ROOT / "edge_seg", "edge_seg.converters": ROOT / "converters"}
FOLDERS["edge_seg.benchmarks"] = ROOT / "benchmarks"

FOUNDATION = {"__init__", "artifact", "config", "contract", "errors", "letterbox", "registry", "schemes"}
# What a layer may import at module level besides itself and the foundation.
ARROWS = {
    "data": set(),
    "decoders": {"data"},
    "evaluation": {"data", "decoders"},
    "layers": {"data", "decoders", "evaluation"},
    "backbones": {"data", "decoders", "evaluation", "layers"},
    "models": {"data", "decoders", "evaluation", "layers", "backbones"},
    "quantization": {"data", "decoders", "evaluation", "layers", "backbones", "models"},
    "training": {"data", "decoders", "evaluation", "layers", "backbones", "models", "quantization"},
    "export": {"data", "decoders", "evaluation", "layers", "backbones", "models", "training", "quantization"},
    "configs": set(),
    "converters": {"decoders", "evaluation"},
    "benchmarks": {"decoders", "evaluation"},
}
# The command line and the modules that only it (and what it calls) imports: they may import everything.
COMMANDS = {"cli", "commands", "__main__", "steps", "quickstart", "doctor", "model_file", "studies"}
# Layers that must not import these even inside a function.
NEVER = {
    "converters": {"backbones", "layers", "models", "quantization", "training", "export"},
    "benchmarks": {"backbones", "layers", "models", "quantization", "training", "export"},
    "decoders": {"backbones", "layers", "models", "quantization", "training", "export"},
    "data": {"backbones", "layers", "models", "quantization", "training", "export"},
}
NO_TORCH = ("data", "decoders", "evaluation", "converters", "benchmarks")
FOUNDATION_MAY_USE = {"numpy", "PIL"}  # lazily, in letterbox and artifact
HEAVY = ("litert_torch", "ai_edge_quantizer", "ai_edge_litert.interpreter", "tflite_runtime")

FUNCTION_LINES = 80
FILE_LINES = 400
MODEL_FILE_LINES = 600
PARAMETERS = 6


@dataclass(frozen=True)
class Import:
    """One import: who, what, where, and whether it happens when the module is imported."""

    importer: str
    target: str
    line: int
    at_import_time: bool


@cache
def modules() -> dict[str, Path]:
    """Returns every module of our packages by its import name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join([package, *parts]).removesuffix(".__init__")
            found[name] = path
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports_in(module: str, source: ast.Module) -> Iterator[Import]:
    """Yields the imports of a module; blocks under `if TYPE_CHECKING` are left out."""
    stack: list[tuple[ast.AST, bool]] = [(source, True)]
    while stack:
        node, at_import_time = stack.pop()
        if isinstance(node, ast.Import):
            yield from (Import(module, a.name, node.lineno, at_import_time) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively"
            for alias in node.names:
                yield Import(module, f"{node.module}.{alias.name}", node.lineno, at_import_time)
        children = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            children = list(node.orelse)
        inner = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        stack += [(child, at_import_time and not inner) for child in children]


@cache
def all_imports() -> tuple[Import, ...]:
    return tuple(i for name, path in modules().items() for i in imports_in(name, tree(path)))


def layer(name: str) -> str:
    """Returns the layer of a dotted name of ours: its folder, or "foundation", or "commands"."""
    parts = name.split(".")
    second = parts[1] if len(parts) > 1 else "__init__"
    if second in ARROWS:
        return second
    if second in COMMANDS:
        return "commands"
    # `from edge_seg import __version__` names an attribute of the package itself
    known = second in FOUNDATION or f"edge_seg.{second}" not in modules()
    return "foundation" if known else second


def is_within(target: str, package: str) -> bool:
    return target == package or target.startswith(package + ".")


def wrong_arrow(one: Import) -> bool:
    source, target = layer(one.importer), layer(one.target)
    if source in ("commands", target) or target == "foundation":
        return False
    if source == "foundation":
        return True
    return target not in ARROWS.get(source, set())


def listed(rows: list[str]) -> str:
    return "\n".join(["", *rows])


def where(one: Import) -> str:
    return f"{one.importer}:{one.line} imports {one.target}"


def test_every_module_belongs_to_a_layer():
    known = {"foundation", "commands", *ARROWS}
    unknown = [name for name in modules() if layer(name) not in known]
    assert not unknown, f"say in this test which layer these belong to: {unknown}"


def test_imports_at_module_level_point_one_way():
    ours = [i for i in all_imports() if i.at_import_time and is_within(i.target, "edge_seg")]
    wrong = [where(i) for i in ours if wrong_arrow(i)]
    assert len(ours) > 100
    assert not wrong, listed(wrong)


def test_converters_benchmarks_decoders_and_data_never_import_networks_not_even_lazily():
    wrong = [
        where(i)
        for i in all_imports()
        if is_within(i.target, "edge_seg") and layer(i.target) in NEVER.get(layer(i.importer), set())
    ]
    assert not wrong, listed(wrong)


def test_layers_without_torch_do_not_import_it_at_module_level():
    wrong = [
        where(i)
        for i in all_imports()
        if i.at_import_time and is_within(i.target, "torch") and layer(i.importer) in (*NO_TORCH, "foundation")
    ]
    assert not wrong, listed(wrong)


def test_the_foundation_is_standard_library_at_module_level():
    wrong = []
    for one in all_imports():
        top = one.target.split(".")[0]
        if layer(one.importer) != "foundation" or top == "edge_seg" or top in sys.stdlib_module_names:
            continue
        if one.at_import_time or top not in FOUNDATION_MAY_USE:
            wrong.append(where(one))
    assert not wrong, listed(wrong)


def test_each_heavy_tool_is_imported_lazily_and_in_one_file():
    wrong = []
    for tool in HEAVY:
        users = [i for i in all_imports() if is_within(i.target, tool)]
        wrong += [where(i) for i in users if i.at_import_time]
        files = {i.importer for i in users}
        wrong += [f"{tool} is imported in {sorted(files)}"] if len(files) > 1 else []
    assert not wrong, listed(wrong)


def test_no_module_imports_a_package_that_setup_cfg_does_not_require():
    text = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    required = text.split("install_requires =")[1].split("\n\n")[0]
    names = {line.split("==")[0].strip().replace("-", "_") for line in required.splitlines() if "==" in line}
    names = {"PIL" if n == "pillow" else n for n in names} | {"edge_seg", "tflite_runtime", "google", "onnx2tf"}
    wrong = [
        where(i)
        for i in all_imports()
        if (top := i.target.split(".")[0]) not in names and top not in sys.stdlib_module_names
    ]
    assert not wrong, listed(wrong)


@pytest.mark.parametrize("name", NO_TORCH)
def test_every_module_of_a_layer_without_torch_imports_without_it(name):
    chosen = [m for m in modules() if layer(m) == name]
    code = (
        f"import importlib, sys\nfor m in {chosen!r}:\n    importlib.import_module(m)\n"
        "heavy = {'torch', 'litert_torch', 'ai_edge_quantizer', 'tensorflow', 'jax', 'plotly', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    """Yields (qualified name, function, whether it is public: no underscore, not inside another function)."""
    stack: list[tuple[ast.AST, str, bool]] = [(tree(path), "", True)]
    while stack:
        node, prefix, public = stack.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                stack.append((child, f"{prefix}{child.name}.", public and not child.name.startswith("_")))
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{prefix}{child.name}", child, public and not child.name.startswith("_")
                stack.append((child, f"{prefix}{child.name}.", False))
            else:
                stack.append((child, prefix, public))


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def test_functions_and_files_stay_inside_their_sizes():
    wrong = []
    for name, path in modules().items():
        limit = MODEL_FILE_LINES if layer(name) == "models" else FILE_LINES
        count = len(path.read_text(encoding="utf-8").splitlines())
        wrong += [f"{name} has {count} lines, at most {limit}"] if count > limit else []
        wrong += [
            f"{name}.{qualified} has {lines_of(f)} lines, at most {FUNCTION_LINES}"
            for qualified, f, _ in functions(path)
            if lines_of(f) > FUNCTION_LINES
        ]
    assert not wrong, listed(wrong)


def is_verb(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """A verb of the command line has one parameter per option."""
    return any("command" in ast.unparse(d) for d in function.decorator_list)


def test_functions_have_at_most_six_parameters_before_the_keyword_only_ones():
    wrong = []
    for name, path in modules().items():
        for qualified, function, _ in functions(path):
            positional = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
            own = [a for a in positional if a not in ("self", "cls")]
            if len(own) > PARAMETERS and not is_verb(function):
                wrong.append(f"{name}.{qualified} has {len(own)} positional parameters")
    assert not wrong, listed(wrong)


def test_public_modules_classes_and_functions_are_documented():
    wrong = []
    for name, path in modules().items():
        wrong += [] if ast.get_docstring(tree(path)) else [f"{name} (module)"]
        wrong += [
            f"{name}.{node.name} (class)"
            for node in tree(path).body
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node)
        ]
        wrong += [f"{name}.{q}" for q, f, public in functions(path) if public and not ast.get_docstring(f)]
    assert not wrong, listed(wrong)


def test_no_except_is_bare():
    wrong = []
    for name, path in modules().items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                wrong.append(f"{name}:{node.lineno} has a bare except")
    assert not wrong, listed(wrong)


def test_no_assert_guards_user_input():
    wrong = [
        f"{name}:{node.lineno}"
        for name, path in modules().items()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Assert)
    ]
    assert not wrong, listed(wrong)


# The rules above are only worth something if they would fire; each gets a case that breaks it.


@pytest.mark.parametrize(
    ("importer", "target"),
    [
        ("edge_seg.decoders.maskconver", "edge_seg.models.base"),
        ("edge_seg.data.loader", "edge_seg.training.loop"),
        ("edge_seg.evaluation.evaluate", "edge_seg.models.base"),
        ("edge_seg.converters.verify", "edge_seg.training.loop"),
        ("edge_seg.benchmarks.bench", "edge_seg.export"),
        ("edge_seg.contract", "edge_seg.data.source"),
        ("edge_seg.models.base", "edge_seg.cli"),
        ("edge_seg.models.base", "edge_seg.training.loop"),
    ],
)
def test_an_arrow_that_points_the_wrong_way_is_seen(importer, target):
    assert wrong_arrow(Import(importer, target, 1, at_import_time=True))


def test_lazy_imports_and_type_checking_blocks_are_told_from_imports_at_module_level():
    source = ast.parse(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import torch\n"
        "else:\n    import json\n"
        "try:\n    import numpy\nexcept ImportError:\n    pass\n"
        "class A:\n    import os\n"
        "def f():\n    from litert_torch import convert\n"
    )
    found = {i.target: i.at_import_time for i in imports_in("edge_seg.x", source)}
    assert found == {
        "typing.TYPE_CHECKING": True,
        "json": True,
        "numpy": True,
        "os": True,
        "litert_torch.convert": False,
    }
