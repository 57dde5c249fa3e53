"""The program itself: help, start-up, exit codes, one JSON document on stdout."""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from edge_seg import __version__, cli
from edge_seg.errors import CheckFailed, EdgeSegError, InputError, MissingHere

VERBS = {
    *("models", "train", "export", "convert", "verify", "check", "evaluate", "predict", "golden", "benchmark"),
    *("profiles", "report", "doctor", "quickstart"),
}
PROGRAM = Path(sys.executable).with_name("edge-seg")


def test_the_program_has_the_verbs_of_the_first_version():
    assert set(cli.cli.commands) >= VERBS


@pytest.mark.parametrize("verb", sorted(cli.cli.commands))
def test_the_help_of_every_verb_works_and_shows_an_example_of_it(edge_seg, verb):
    for flag in ("--help", "-h"):
        done = edge_seg(verb, flag)
        text = " ".join(done.out.split())
        assert done.code == 0
        assert f"Example: edge-seg {verb}" in text
        assert done.err == ""


@pytest.mark.parametrize("verb", sorted(cli.cli.commands))
def test_every_verb_can_print_json(verb):
    assert "--json" in [o for p in cli.cli.commands[verb].params for o in p.opts]


@pytest.mark.parametrize("verb", sorted(cli.cli.commands))
def test_the_options_of_an_example_exist(verb):
    command = cli.cli.commands[verb]
    example = " ".join((command.help or "").split()).partition("Example: ")[2].split(". ")[0].rstrip(".")
    options = {o for p in command.params for o in p.opts}
    assert {word for word in example.split() if word.startswith("--")} <= options


def test_examples_name_recipes_that_exist(root):
    words = " ".join(c.help or "" for c in cli.cli.commands.values()).split()
    recipes = [w for w in words if w.startswith("edge_seg/configs/")]
    assert recipes
    assert all((root / name).is_file() for name in recipes)


def test_the_version_is_that_of_the_package(edge_seg):
    done = edge_seg("--version")
    assert done.code == 0
    assert __version__ in done.out


def test_the_command_line_imports_nothing_heavy():
    code = (
        "import sys\nimport edge_seg.cli\n"
        "print([m for m in ('torch', 'numpy', 'litert_torch', 'PIL', 'plotly', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


@pytest.mark.skipif(not PROGRAM.exists(), reason="the package is not installed with its program")
def test_help_starts_within_twelve_times_an_empty_python():
    # Torch alone would be beyond it; a ratio of interleaved runs does not depend on the machine's load or speed.
    pairs = [(seconds([str(PROGRAM), "--help"]), seconds([sys.executable, "-c", "pass"])) for _ in range(5)]
    help_s, empty_s = (statistics.median(column) for column in zip(*pairs, strict=True))
    assert help_s / empty_s < 12


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CheckFailed("It differs.", todo="look"), 1),
        (InputError("It is wrong.", todo="correct it"), 2),
        (MissingHere("It is not here.", todo="install it"), 3),
        (EdgeSegError("It broke."), 2),
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
        (click.UsageError("No."), 2),
    ],
)
def test_each_error_has_its_exit_code_and_its_message_goes_to_stderr(edge_seg, monkeypatch, error, code):
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli.cli.commands["profiles"], "callback", fail)
    done = edge_seg("profiles")
    assert done.code == code
    assert done.out == ""
    assert "Traceback" not in done.err
    if isinstance(error, EdgeSegError):
        assert done.err == f"error: {error}\n"
    if code == 130:
        assert done.err.splitlines()[-1].startswith("interrupted")


def test_an_error_of_the_program_itself_is_not_dressed_up_as_bad_input(edge_seg, monkeypatch):
    def fail(**_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli.cli.commands["profiles"], "callback", fail)
    with pytest.raises(ZeroDivisionError):
        edge_seg("profiles")


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-verb",),
        ("train",),
        ("models", "--no-such-option"),
        ("models", "--num-classes", "many"),
        ("export", "a.safetensors"),
        ("predict", "a.tflite", "--out", "x"),
        (),
    ],
)
def test_wrong_usage_ends_with_two(edge_seg, arguments):
    done = edge_seg(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert "Usage" in done.err


@pytest.mark.skipif(not hasattr(signal, "SIGINT"), reason="needs POSIX signals")
def test_a_real_interrupt_ends_with_130_and_no_traceback():
    code = (
        "import os, signal, sys\nfrom edge_seg import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job inherits an ignored one
        "def wait(**_):\n    os.kill(os.getpid(), signal.SIGINT)\n    import time; time.sleep(5)\n"
        "cli.cli.commands['profiles'].callback = wait\n"
        "sys.argv = ['edge-seg', 'profiles']\ncli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert "interrupted" in done.stderr
