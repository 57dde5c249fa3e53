"""Side environments: made whole or not at all, resumed after an interruption, and plain about what went wrong."""

from __future__ import annotations

import errno
import fcntl
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edge_seg.converters import environments
from edge_seg.converters.environments import create
from edge_seg.converters.environments import recipe as recipe_module
from edge_seg.errors import ArtifactError, InputError, MissingHere

NAMES = environments.environment_names()


@pytest.fixture
def envs(tmp_path, monkeypatch):
    """An empty folder for environments."""
    folder = tmp_path / "envs"
    monkeypatch.setenv("EDGE_SEG_ENVS", str(folder))
    return folder


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """Writes recipes of our own; `recipes("alpha", requirements=["one==1.0"])`."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    monkeypatch.setattr(recipe_module, "RECIPES_FOLDER", folder)

    def write(name, **changed):
        values = {"purpose": "a test", "needs": [], "beside_ours": False, "imports": [], "size_mb": 1}
        values |= {"requirements": []} | changed
        (folder / f"{name}.toml").write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in values.items()))
        return environments.load_recipe(name)

    return write


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """Makes wheels by hand and lets pip, the real one, find them and nothing else: no network is used."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")

    def make(name, content=""):
        info = f"{name}-1.0.dist-info"
        files = {
            f"{name}.py": content,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            for path, text in files.items():
                wheel.writestr(path, text)
            wheel.writestr(f"{info}/RECORD", "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"]))

    return make


class FakeTools:
    """Stands in for `venv` and `pip`: makes the folders they make, and counts."""

    def __init__(self, monkeypatch):
        self.installed, self.fail, self.imports_fail = [], {}, False
        monkeypatch.setattr(create, "_run", self)

    def __call__(self, command):
        if "venv" in command:
            python = Path(command[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True)
            python.symlink_to(sys.executable)
        elif "pip" in command:
            return self.install(Path(command[0]).parent.parent, command[-1])
        elif self.imports_fail:
            return subprocess.CompletedProcess(command, 1, "", "ImportError: libGL.so.1: cannot open shared object")
        return subprocess.CompletedProcess(command, 0, "", "")

    def install(self, folder, requirement):
        name, _, version = requirement.partition("==")
        failure = self.fail.pop(requirement, None)
        if isinstance(failure, BaseException):
            raise failure
        info = environments.site_packages(folder) / f"{name}-{version}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        if failure:
            return subprocess.CompletedProcess([], 1, "", failure)
        (info / "INSTALLER").write_text("pip\n")
        self.installed.append(requirement)
        return subprocess.CompletedProcess([], 0, "", "")


@pytest.fixture
def tools(monkeypatch):
    return FakeTools(monkeypatch)


def _shown(folder):
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []


def test_there_is_one_recipe_for_each_tool_that_cannot_live_beside_ours():
    assert {"onnx", "onnx2tf", "tflite_runtime"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_pins_every_package_once(name):
    requirements = environments.load_recipe(name).requirements
    packages = [r.partition("==")[0] for r in requirements]
    assert len(set(packages)) == len(packages) > 0


def test_onnx2tf_pins_what_makes_an_environment_of_its_own_necessary():
    pins = dict(r.split("==") for r in environments.load_recipe("onnx2tf").requirements)
    assert (pins["onnx2tf"], pins["numpy"], pins["tensorflow"]) == ("1.29.24", "1.26.4", "2.19.0")
    assert environments.load_recipe("onnx2tf").needs == ("onnx",)


def test_a_recipe_of_other_versions_has_another_digest(recipes):
    one, two = recipes("alpha", requirements=["one==1.0"]), recipes("beta", requirements=["one==1.1"])
    assert one.digest != two.digest
    assert one.digest == recipes("gamma", requirements=["one==1.0"], purpose="other words").digest


@pytest.mark.parametrize(
    "changed", [{"requirements": ["one>=1.0"]}, {"requirements": ["--index=x"]}, {"size_mb": "1"}, {"extra": 1}]
)
def test_a_recipe_that_is_loose_or_has_other_keys_is_refused(recipes, changed):
    with pytest.raises(ArtifactError, match=r"alpha\.toml"):
        recipes("alpha", **changed)


def test_an_unknown_environment_names_its_neighbours(envs):
    with pytest.raises(InputError, match="did you mean onnx2tf"):
        environments.setup_environment("onnx2ft")
    assert not envs.exists()


def test_an_environment_that_is_not_set_up_says_how_to_get_it(envs):
    with pytest.raises(MissingHere, match="edge-seg doctor --setup tflite_runtime") as caught:
        environments.find_environment("tflite_runtime")
    assert caught.value.exit_code == 3


def test_environments_lie_in_the_users_cache_where_nothing_else_is_said(monkeypatch):
    monkeypatch.delenv("EDGE_SEG_ENVS")
    monkeypatch.setenv("HOME", "/somewhere")
    assert environments.environments_folder() == Path("/somewhere/.cache/edge_seg/envs")


@pytest.fixture(autouse=True)
def _some_folder(monkeypatch, tmp_path):
    """No test may touch the user's own environments."""
    monkeypatch.setenv("EDGE_SEG_ENVS", str(tmp_path / "envs"))


@pytest.mark.slow
def test_pip_installs_what_it_can_find_and_the_next_call_goes_on_until_it_imports(envs, recipes, wheels, tmp_path):
    wheels("one", "import two\nVALUE = two.VALUE + 1\n")
    recipes("alpha", requirements=["one==1.0", "two==1.0"], imports=["one"])
    with pytest.raises(MissingHere, match=r"pip cannot install two==1\.0") as caught:
        environments.setup_environment("alpha")
    assert "check the network" in caught.value.todo
    assert _shown(envs) == []
    wheels("one", "raise ImportError('installed twice')\n")
    wheels("two", "VALUE = 41\n")
    folder = environments.setup_environment("alpha")
    assert folder == envs / "alpha" == environments.find_environment("alpha")
    script = tmp_path / "script.py"
    script.write_text("import sys, one\nopen(sys.argv[1], 'w').write(f'{one.VALUE} {sys.prefix}')\n")
    environments.run_in_environment("alpha", script, ["said"], folder=tmp_path, what="no", todo="no")
    assert (tmp_path / "said").read_text() == f"42 {folder}"


def test_an_empty_environment_is_made_whole_and_made_once(envs, recipes, tools, monkeypatch):
    recipes("alpha")
    folder = environments.setup_environment("alpha")
    stamp = json.loads((folder / "environment.json").read_text())
    assert stamp["digest"] == environments.load_recipe("alpha").digest
    assert [p for p in envs.iterdir() if p.name.endswith(".part")] == []
    monkeypatch.setattr(create, "_run", None)  # whatever would be run now fails
    assert environments.setup_environment("alpha") == folder


def test_what_an_environment_needs_is_set_up_first(envs, recipes, tools):
    recipes("alpha", requirements=["one==1.0"])
    recipes("beta", requirements=["two==1.0"], needs=["alpha"])
    environments.setup_environment("beta")
    assert tools.installed == ["one==1.0", "two==1.0"]
    assert _shown(envs) == ["alpha", "beta"]


def test_an_environment_whose_need_is_missing_is_not_found(envs, recipes, tools):
    recipes("alpha")
    recipes("beta", needs=["alpha"])
    environments.setup_environment("beta")
    (envs / "alpha" / "environment.json").unlink()
    with pytest.raises(MissingHere, match="'alpha' is not set up") as caught:
        environments.find_environment("beta")
    assert caught.value.todo == "edge-seg doctor --setup beta"


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), "ERROR: HTTPSConnectionPool: Max retries exceeded"])
def test_an_interruption_is_resumed_behind_the_last_whole_package(envs, recipes, tools, failure):
    recipes("alpha", requirements=["one==1.0", "two==1.0", "three==1.0"])
    tools.fail["two==1.0"] = failure
    with pytest.raises((KeyboardInterrupt, MissingHere)):
        environments.setup_environment("alpha")
    assert _shown(envs) == []
    with pytest.raises(MissingHere, match="not set up"):
        environments.find_environment("alpha")
    environments.setup_environment("alpha")
    assert tools.installed == ["one==1.0", "two==1.0", "three==1.0"]


def test_a_package_whose_files_are_not_all_there_is_installed_again(envs, recipes, tools):
    recipes("alpha", requirements=["one==1.0"])
    tools.fail["one==1.0"] = "ERROR: killed"  # leaves METADATA behind, as a cut-off pip does
    with pytest.raises(MissingHere):
        environments.setup_environment("alpha")
    environments.setup_environment("alpha")
    assert tools.installed == ["one==1.0"]


def test_pips_own_spelling_of_a_name_counts_as_installed(envs, recipes, tools):
    recipes("alpha", requirements=["Some_Thing==1.0", "two==1.0"])
    tools.fail["two==1.0"] = "ERROR: cut off"
    with pytest.raises(MissingHere):
        environments.setup_environment("alpha")
    part = next(envs.glob(".alpha.*.part"))
    info = environments.site_packages(part) / "Some_Thing-1.0.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some.thing\nVersion: 1.0\n")
    environments.setup_environment("alpha")
    assert tools.installed == ["Some_Thing==1.0", "two==1.0"]


@pytest.mark.parametrize(
    "failure", ["OSError: [Errno 28] No space left on device", OSError(errno.ENOSPC, "No space left on device")]
)
def test_a_full_disk_is_named_and_leaves_nothing_that_looks_made(envs, recipes, tools, failure):
    recipes("alpha", requirements=["one==1.0"])
    tools.fail["one==1.0"] = failure
    with pytest.raises(InputError, match="No space left") as caught:
        environments.setup_environment("alpha")
    assert "EDGE_SEG_ENVS" in caught.value.todo
    assert _shown(envs) == []


def test_too_little_space_is_seen_before_anything_is_downloaded(envs, recipes, tools):
    recipes("alpha", requirements=["one==1.0"], size_mb=10**12)
    with pytest.raises(InputError, match=r"takes about 10+ MB"):
        environments.setup_environment("alpha")
    assert tools.installed == []
    assert _shown(envs) == []


def test_a_folder_that_cannot_be_written_is_an_input_error(tmp_path, recipes, tools, monkeypatch):
    recipes("alpha")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGE_SEG_ENVS", str(tmp_path / "file" / "envs"))
    with pytest.raises(InputError, match="Cannot write"):
        environments.setup_environment("alpha")


def test_packages_that_do_not_import_are_not_published(envs, recipes, tools):
    recipes("alpha", requirements=["one==1.0"], imports=["one"])
    tools.imports_fail = True
    with pytest.raises(MissingHere, match="libGL"):
        environments.setup_environment("alpha")
    assert _shown(envs) == []


def test_an_environment_of_older_versions_is_not_used_and_is_replaced(envs, recipes, tools):
    recipes("alpha", requirements=["one==1.0"])
    environments.setup_environment("alpha")
    recipes("alpha", requirements=["one==2.0"])
    with pytest.raises(MissingHere, match="of other versions"):
        environments.find_environment("alpha")
    folder = environments.setup_environment("alpha")
    assert [p.name for p in environments.site_packages(folder).iterdir()] == ["one-2.0.dist-info"]
    assert sorted(p.name for p in envs.iterdir()) == [".alpha.lock", "alpha"]


def test_a_second_process_does_not_set_up_the_same_environment(envs, recipes, tools):
    recipes("alpha")
    envs.mkdir()
    with (envs / ".alpha.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="Another process"):
            environments.setup_environment("alpha")
    environments.setup_environment("alpha")


def test_a_script_that_fails_is_an_input_error_with_its_last_words(envs, recipes, tools, tmp_path):
    recipes("alpha")
    environments.setup_environment("alpha")
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit('operator Foo is not known')\n")
    with pytest.raises(InputError, match="operator Foo is not known") as caught:
        environments.run_in_environment("alpha", script, [], folder=tmp_path, what="It failed", todo="do this")
    assert (caught.value.what, caught.value.todo) == ("It failed.", "do this")


def test_a_script_sees_neither_pythonpath_nor_the_modules_beside_it(envs, recipes, tools, tmp_path, monkeypatch):
    recipes("alpha")
    environments.setup_environment("alpha")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "elsewhere"))
    (tmp_path / "quiet.py").write_text("")
    script = tmp_path / "script.py"
    script.write_text("import sys\nopen('path', 'w').write('\\n'.join(sys.path))\n")
    environments.run_in_environment("alpha", script, [], folder=tmp_path, what="no", todo="no")
    assert str(tmp_path) not in (tmp_path / "path").read_text().replace(str(envs), "")


def test_a_script_of_an_environment_beside_ours_gets_its_packages_and_our_interpreter(envs, recipes, tools, tmp_path):
    recipes("alpha", beside_ours=True)
    folder = environments.setup_environment("alpha")
    script = tmp_path / "script.py"
    script.write_text("import sys\nopen('said', 'w').write('\\n'.join([sys.prefix, *sys.argv[1:]]))\n")
    environments.run_in_environment("alpha", script, ["more"], folder=tmp_path, what="no", todo="no")
    assert (tmp_path / "said").read_text().split() == [sys.prefix, str(environments.site_packages(folder)), "more"]


def test_an_environment_whose_interpreter_is_gone_is_not_found(envs, recipes, tools):
    recipes("alpha")
    (environments.setup_environment("alpha") / "bin" / "python").unlink()
    with pytest.raises(MissingHere, match="not set up"):
        environments.find_environment("alpha")


def test_doctor_sets_up_by_name_and_answers_in_json(edge_seg, envs, recipes, tools):
    recipes("alpha")
    done = edge_seg("doctor", "--setup", "alpha", "--json")
    assert (done.code, done.json()) == (0, {"environment": "alpha", "folder": str(envs / "alpha")})


def test_doctor_refuses_an_unknown_name(edge_seg, envs):
    done = edge_seg("doctor", "--setup", "onnx2ft")
    assert done.code == 2
    assert "did you mean onnx2tf" in done.err
