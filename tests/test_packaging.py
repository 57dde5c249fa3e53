"""Packaging, the Makefile and the documents: what they promise is there."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

from edge_seg import cli

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {"edge_seg": ROOT / "edge_seg", "edge_seg.converters": ROOT / "converters"}
SOURCES["edge_seg.benchmarks"] = ROOT / "benchmarks"
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "THIRD_PARTY.md", "results/README.md", "results/TABLES.md")

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed here")


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def lines(section: str, key: str) -> list[str]:
    return [line.strip() for line in setup_cfg()[section][key].splitlines() if line.strip()]


def requirements() -> list[str]:
    return lines("options", "install_requires") + lines("options.extras_require", "dev")


def packages_on_disk() -> dict[str, Path]:
    found = {}
    for name, folder in SOURCES.items():
        for init in folder.rglob("__init__.py"):
            found[".".join([name, *init.parent.relative_to(folder).parts])] = init.parent
    return found


def test_every_package_on_disk_is_installed_and_no_other():
    assert sorted(lines("options", "packages")) == sorted(packages_on_disk())


def test_every_file_that_is_not_python_is_installed_with_its_package():
    patterns = {k: v.replace("\n", ",").split(",") for k, v in setup_cfg()["options.package_data"].items()}
    missed = [
        str(path.relative_to(ROOT))
        for name, folder in packages_on_disk().items()
        for path in folder.iterdir()
        if path.is_file() and path.suffix not in (".py", ".pyc")
        if not any(fnmatch(path.name, p.strip()) for p in patterns.get(name, []))
    ]
    assert missed == []


@pytest.mark.parametrize("requirement", requirements())
def test_every_dependency_is_pinned_to_what_is_installed(requirement):
    name, _, version = requirement.partition("==")
    assert re.fullmatch(r"\d+(\.\d+)+", version), f"{requirement} is not pinned to one version"
    installed = importlib.metadata.version(name).partition("+")[0]  # "+cpu" is the same version of torch
    assert installed == version


def test_the_versions_the_project_is_built_on_are_the_ones_decided():
    pins = dict(r.split("==") for r in requirements())
    assert pins["torch"] == "2.13.0"
    assert pins["litert-torch"].startswith("0.10.")
    assert pins["ai-edge-litert"].startswith("2.3.")
    assert pins["ai-edge-quantizer"].startswith("0.10.")
    assert not {"torchvision", "timm", "tensorflow"} & set(pins)


def test_the_suite_does_not_see_packages_from_outside_the_environment():
    if sys.prefix == sys.base_prefix:
        pytest.skip("not run in a virtual environment")
    config = (Path(sys.prefix) / "pyvenv.cfg").read_text()
    assert "include-system-site-packages = false" in config


def test_the_packages_are_importable_from_anywhere_and_only_under_one_name(tmp_path):
    code = (
        "import importlib.util as u, edge_seg.converters, edge_seg.benchmarks.profiles\n"
        "print(u.find_spec('converters'), u.find_spec('benchmarks'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["None", "None"]


def test_a_wheel_holds_one_top_level_name_and_everything_it_needs(tmp_path):
    if setuptools_major() < 77:
        pytest.skip("building a wheel offline needs setuptools 77 or newer in the environment")
    copy = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in ("edge_seg", "converters", "benchmarks"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "THIRD_PARTY.md"):
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-c", "from setuptools import build_meta as b; print(b.build_wheel('.'))"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(copy.glob("*.whl"))) as wheel:
        names = wheel.namelist()
    tops = {n.split("/")[0] for n in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"edge_seg"}
    for name, folder in packages_on_disk().items():
        inside = name.replace(".", "/")
        expected = {f"{inside}/{p.name}" for p in folder.iterdir() if p.is_file() and p.suffix != ".pyc"}
        assert expected <= set(names)
    assert any(n.endswith("licenses/LICENSE") for n in names)


def setuptools_major() -> int:
    try:
        return int(importlib.metadata.version("setuptools").partition(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return 0


def dry_run(*arguments: str) -> str:
    done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_make
@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (("quickstart", "ARGS=--data FOLDER"), ".venv/bin/edge-seg quickstart --data FOLDER"),
        (("test",), ".venv/bin/python -m pytest -q"),
        (("lint",), ".venv/bin/ruff check ."),
        (("types",), ".venv/bin/mypy -p edge_seg"),
        (("results",), "-m edge_seg.studies.results.page README.md results"),
    ],
)
def test_each_target_runs_its_command_in_the_environment(arguments, command):
    assert command in dry_run(*arguments)


@needs_make
@pytest.mark.parametrize("target", ["quickstart", "test", "lint", "types", "install"])
def test_a_changed_setup_cfg_installs_again_before_anything_else(target):
    commands = dry_run(target, "-W", "setup.cfg", "PYTHON=some-python")
    assert '"some-python" -m venv .venv' in commands
    assert ".venv/bin/python -m pip install --quiet --editable '.[dev]'" in commands


@needs_make
def test_help_lists_every_target_of_the_makefile():
    text = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split())
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = set(re.findall(r"^  make (\w+)", done.stdout, re.MULTILINE))
    assert listed == targets
    assert {"install", "quickstart", "test", "lint", "types", "bench", "clean", "help"} <= targets


@needs_make
def test_another_python_version_is_refused_with_a_way_out(tmp_path):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    for name in ("Makefile", "setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    command = ["make", "install", f"PYTHON={fake}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "needs Python 3.11" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_no_package_index_is_named_anywhere():
    for name in ("Makefile", ".ci/run", "setup.cfg", "pyproject.toml"):
        text = (ROOT / name).read_text()
        assert "index-url" not in text
        assert "http" not in text


def test_the_check_of_a_change_is_strict_and_ends_with_the_tests():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text().splitlines()
    assert text[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in text
    commands = [line for line in text if line.startswith("make ")]
    assert commands[-1] == "make test"
    assert {"make lint", "make types"} < set(commands)
    assert "||" not in "\n".join(text)


def test_the_licence_is_complete_and_named_in_the_metadata():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    for number in range(1, 10):
        assert re.search(rf"^   {number}\. [A-Z]", text, re.MULTILINE), f"section {number} is missing"
    assert "END OF TERMS AND CONDITIONS" in text
    assert setup_cfg()["metadata"]["license"] == "Apache-2.0"


@pytest.mark.parametrize("requirement", requirements())
def test_every_dependency_is_named_with_its_licence(requirement):
    rows = [line for line in (ROOT / "THIRD_PARTY.md").read_text().splitlines() if line.startswith("|")]
    name = requirement.partition("==")[0]
    assert any(re.search(rf"\b{re.escape(name)}\b", row.split("|")[1]) for row in rows)


def test_the_table_of_verbs_is_that_of_the_program():
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## Verbs")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)`", text, re.MULTILINE) == list(dict.fromkeys(readme_order()))


def readme_order() -> list[str]:
    order = "models train qat import export convert sensitivity verify bisect check evaluate predict golden benchmark"
    later = "sustain profiles devices fleet compare gate report doctor quickstart"
    verbs = [*order.split(), *later.split()]
    return [*verbs, *sorted(set(cli.cli.commands) - set(verbs))]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_commands_of_the_documents_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    folder = (ROOT / name).parent
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert [link for link in links if not link.startswith("http") and not (folder / link).exists()] == []
    targets = set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split())
    named = {word for line in re.findall(r"\bmake ([a-z][a-z ]*)", code_of(text)) for word in line.split()[:1]}
    assert named <= targets


def code_of(text: str) -> str:
    """Returns what stands in code blocks and between backticks."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))


def test_the_changelog_has_a_section_for_what_is_not_released():
    assert "\n## Unreleased\n" in (ROOT / "CHANGELOG.md").read_text()


def test_contributing_names_registries_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    names = set(re.findall(r"@([A-Z]+)\.register", text))
    defined = {
        target.id
        for folder in SOURCES.values()
        for path in folder.rglob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.AnnAssign) and isinstance(target := node.target, ast.Name)
        if "Registry" in ast.unparse(node.annotation)
    }
    assert names == defined
