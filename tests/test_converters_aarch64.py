"""The same file on a phone's kind of processor: equal integers, and plain words where there is no such processor.

Commands that only pretend to be an aarch64 Python run everywhere. What needs the real one, an emulator for example,
is skipped where `EDGE_SEG_AARCH64` names none; `edge-seg doctor` says how to get it.
"""

from __future__ import annotations

import functools
import json
import shlex
import sys

import numpy as np
import pytest
from mirror_networks import everything_file, everything_folder
from test_converters_tinynet import SIDE, converted_files, exported_folder, smooth_pictures

from edge_seg import doctor
from edge_seg.converters import emulated
from edge_seg.converters.emulated import VARIABLE, EmulatedRunner, emulator, emulator_version, probe
from edge_seg.converters.interpreter import TfliteRunner
from edge_seg.converters.machines import compare_machines
from edge_seg.converters.verify import verify
from edge_seg.errors import ArtifactError, EdgeSegError, InputError, MissingHere

PRETEND = """\
import json, os, platform, runpy, sys
assert "PYTHONPATH" not in os.environ
platform.machine = lambda: {machine!r}
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
job = json.load(open(sys.argv[1]))
{afterwards}
"""
FLIP_ONE = """
import numpy as np
arrays = dict(np.load(job["outputs"]))
first = arrays[str(job["indices"][0])]
first[0].flat[7] ^= 1
np.savez(job["outputs"], **arrays)
"""
DROP_A_PICTURE = """
import numpy as np
np.savez(job["outputs"], **{k: v[1:] for k, v in dict(np.load(job["outputs"])).items()})
"""
CHANGE_FACTS = """
facts = json.load(open(job["facts"])) | {changed!r}
json.dump(facts, open(job["facts"], "w"))
"""


def changed_facts(**changed):
    return CHANGE_FACTS.format(changed=changed)


@pytest.fixture
def set_command(tmp_path, monkeypatch):
    """Writes a Python program and names it in EDGE_SEG_AARCH64."""

    def write(program):
        path = tmp_path / "pretend to be.py"  # with a blank: the variable is a command with quotes
        path.write_text(program)
        monkeypatch.setenv(VARIABLE, shlex.join([sys.executable, str(path)]))

    return write


@pytest.fixture
def pretend(set_command, monkeypatch):
    """This very interpreter, which says that it is another machine and then spoils something."""

    def write(afterwards="", machine="aarch64"):
        monkeypatch.setenv("PYTHONPATH", "/nowhere")
        set_command(PRETEND.format(machine=machine, afterwards=afterwards))

    return write


def w8a8():
    return converted_files()["w8a8"].file


def test_where_nothing_is_named_the_error_says_how_to_get_one(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(MissingHere, match=r"(?s)EDGE_SEG_AARCH64 is not set.*qemu-user 10"):
        EmulatedRunner(w8a8())


def test_a_program_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv(VARIABLE, "no-such-qemu -L root python3")
    with pytest.raises(MissingHere, match="no-such-qemu"):
        emulator()


def test_open_quotes_are_bad_input(monkeypatch):
    monkeypatch.setenv(VARIABLE, 'qemu-aarch64 "root')
    with pytest.raises(InputError, match="No closing quotation"):
        emulator()


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import sys; sys.exit('No module named numpy')", "exit code 1: No module named numpy"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "signal 11"),
        ("pass", "does not run Python scripts"),
        ("import json, sys; open(json.load(open(sys.argv[2]))['facts'], 'w').write('[]')", "does not run Python"),
    ],
)
def test_a_command_that_does_not_do_its_work_is_missing_here(set_command, program, said):
    set_command(program)
    with pytest.raises(MissingHere, match=said):
        probe()


def test_a_file_that_is_not_a_program_is_missing_here(tmp_path, monkeypatch):
    text = tmp_path / "qemu"
    text.write_bytes(b"\x7fELF of nothing")
    text.chmod(0o755)
    monkeypatch.setenv(VARIABLE, str(text))
    with pytest.raises(MissingHere, match="does not start"):
        probe()


def test_a_command_that_hangs_is_ended(set_command, monkeypatch):
    set_command("import time; time.sleep(60)")
    monkeypatch.setattr(emulated, "_START_S", 0.5)
    with pytest.raises(MissingHere, match="hangs"):
        probe()


def test_another_processor_is_refused(pretend):
    pretend(machine="riscv64")
    with pytest.raises(MissingHere, match=r"(?s)expected: aarch64.*riscv64"):
        probe()


def test_qemu_is_found_in_the_command_and_asked_for_its_version(tmp_path):
    qemu = tmp_path / "qemu-aarch64-static"
    qemu.write_text("#!/bin/sh\necho 'qemu-aarch64 version 10.0.2'\necho 'Copyright'\n")
    qemu.chmod(0o755)
    assert emulator_version(["nice", "-n", "5", str(qemu), "-L", "root"]) == "qemu-aarch64 version 10.0.2"
    assert emulator_version(["python3"]) == ""


@pytest.mark.parametrize("scheme", ["fp32", "w8a8"])
def test_the_runner_returns_one_row_per_picture_in_order(pretend, scheme):
    pretend()
    file, pictures = converted_files()[scheme].file, smooth_pictures(3, seed=5)
    runner, here = EmulatedRunner(file), TfliteRunner(file)
    found = runner.run(pictures)
    for i, picture in enumerate(pictures):
        here.invoke(picture)
        for name, raw in here.raw_outputs().items():
            np.testing.assert_array_equal(found[name][i : i + 1], raw)
    assert (runner.runtime["machine"], runner.runtime["version"]) == ("aarch64", here.runtime["version"])


def test_a_single_picture_comes_back_in_real_values(pretend):
    pretend()
    (picture,) = smooth_pictures(1, seed=6)
    found, wanted = EmulatedRunner(w8a8())(picture), TfliteRunner(w8a8())(picture)
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize("pictures", [[], [np.zeros((SIDE, SIDE + 1, 3), np.uint8)], [np.zeros((SIDE, SIDE, 3))]])
def test_bad_pictures_are_refused_before_anything_runs(set_command, pictures):
    set_command("raise SystemExit('ran')")
    with pytest.raises(InputError) as caught:
        EmulatedRunner(w8a8()).run(pictures)
    assert "ran" not in caught.value.got


def test_no_threads_and_float_outputs_are_refused(set_command):
    set_command("raise SystemExit('ran')")
    with pytest.raises(InputError, match="thread"):
        EmulatedRunner(w8a8(), threads=0)
    with pytest.raises(InputError, match="float outputs"):
        compare_machines(converted_files()["fp32"].file, smooth_pictures(1))


@pytest.mark.parametrize(
    ("afterwards", "error", "said"),
    [
        (DROP_A_PICTURE, ArtifactError, "do not fit its contract"),
        ("open(job['outputs'], 'wb').write(b'PK nothing')", ArtifactError, "cannot be read"),
        ("os.remove(job['outputs'])", ArtifactError, "cannot be read"),
        ("sys.exit('out of memory')", InputError, "out of memory"),
        (changed_facts(delegate_kernels=0), MissingHere, "XNNPACK stays off"),
        (changed_facts(runtime_version="2.1.0"), MissingHere, "different runtimes"),
    ],
)
def test_what_goes_wrong_in_a_run_is_told(pretend, afterwards, error, said):
    pretend(afterwards)
    with pytest.raises(error, match=said):
        compare_machines(w8a8(), smooth_pictures(2))


def test_one_integer_that_differs_is_counted_and_fails_verify(pretend):
    pretend(FLIP_ONE)
    found = compare_machines(w8a8(), smooth_pictures(2))
    assert (found.differing, found.max_lsb, found.exact) == (1, 1, False)
    assert [o.differing for o in found.outputs] == [1, 0]
    report = verify(w8a8(), exported_folder(), kernels="aarch64")
    assert not report.passed
    assert "FAIL x86_64 and aarch64" in report.text().replace(found.here, "x86_64")
    assert json.loads(json.dumps(report.to_json()))["machines"]["differing"] == report.reference_images


def test_verify_counts_every_integer_of_every_picture(pretend):
    pretend()
    report = verify(w8a8(), exported_folder(), list(smooth_pictures(1)), kernels="aarch64")
    each = sum(int(np.prod(o.shape)) for o in TfliteRunner(w8a8()).contract.outputs)
    assert report.passed
    assert (report.machines.integers, report.machines.pictures) == (3 * each, 3)
    assert (report.integer_mirror.max_lsb, report.kernels) == (0, "aarch64")


def test_float_outputs_are_held_to_pytorch_only(pretend):
    pretend()
    report = verify(converted_files()["fp32"].file, exported_folder(), kernels="aarch64")
    assert report.passed
    assert report.machines is None


def test_the_program_ends_with_three_where_there_is_no_aarch64(edge_seg, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    done = edge_seg("verify", w8a8(), "--against", exported_folder(), "--kernels", "aarch64")
    assert done.code == 3
    assert VARIABLE in done.err


def test_two_files_are_not_compared_on_other_kernels(edge_seg):
    done = edge_seg("verify", w8a8(), "--against", w8a8(), "--kernels", "aarch64")
    assert done.code == 2
    assert "--kernels" in done.err


def test_doctor_has_a_line_for_it(pretend, monkeypatch):
    pretend()
    found = doctor._aarch64()
    assert (found.ok, found.required) == (True, False)
    assert "on aarch64" in found.detail
    monkeypatch.delenv(VARIABLE)
    missing = doctor._aarch64()
    assert (missing.ok, missing.required) == (False, False)
    assert "qemu-user 10" in missing.fix


# From here on with a real one.

PART_NUMBERS = {"cortex-a53": "0xd03", "neoverse-n1": "0xd0c"}  # Arm's technical reference manuals, MIDR_EL1


@functools.cache
def reason_to_skip():
    try:
        probe()
    except EdgeSegError as error:
        return f"{error.what} {error.got}".strip() + "; edge-seg doctor says how to get it"
    return ""


@pytest.fixture
def processor(request, monkeypatch):
    """A processor that qemu pretends to be: one with dot products, or the one that the test names."""
    if reason_to_skip():
        pytest.skip(reason_to_skip())
    name = getattr(request, "param", "neoverse-n1")
    monkeypatch.setenv("QEMU_CPU", name)
    return name


def four_pictures():
    noise = np.random.default_rng(4).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    return [*smooth_pictures(2, seed=3), *noise]


@pytest.mark.slow
@pytest.mark.aarch64
@pytest.mark.parametrize("processor", PART_NUMBERS, indirect=True)
def test_int8_outputs_are_bit_identical_on_x86_and_aarch64(processor):
    found = compare_machines(w8a8(), four_pictures())
    each = sum(int(np.prod(o.shape)) for o in TfliteRunner(w8a8()).contract.outputs)
    assert (found.there, found.pictures, found.integers) == ("aarch64", 4, 4 * each)
    assert (found.differing, found.max_lsb) == (0, 0), found.text()


@pytest.mark.slow
@pytest.mark.aarch64
def test_every_int8_operation_of_a_trained_file_is_proved_on_aarch64_too(processor):
    report = verify(everything_file(), everything_folder(), kernels="aarch64")
    assert report.passed, report.text()
    assert (report.machines.exact, report.integer_mirror.exact) == (True, True)
    if report.runtime["emulator"]:
        assert report.runtime["cpu_part"] == PART_NUMBERS[processor]


@pytest.mark.slow
@pytest.mark.aarch64
def test_in_float_the_two_processors_differ_so_they_are_two(processor):
    file, pictures = converted_files()["fp32"].file, four_pictures()
    found, here = EmulatedRunner(file).run(pictures)["semantic"], TfliteRunner(file)
    wanted = np.concatenate([here(p)["semantic"] for p in pictures])
    assert np.any(found != wanted)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.ptp(wanted))
