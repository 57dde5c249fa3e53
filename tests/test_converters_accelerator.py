"""LiteRT's GPU accelerator as judge: of the op rules, of whole networks, and of what a clock sees."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
from gpu_graphs import CASES, conv_weights
from gpu_outcomes import accelerator, close_all, error_of_range, missing, noise, outcome
from test_converters_tinynet import converted_files, exported_folder

from edge_seg.benchmarks.profile import load_profile
from edge_seg.benchmarks.runner import RUNNERS
from edge_seg.converters.check import DELEGATES, judge
from edge_seg.converters.convert import convert
from edge_seg.converters.flatbuffer import graph_of, read_graph
from edge_seg.converters.gpu import accelerator as accelerator_module
from edge_seg.converters.gpu import vulkan, vulkan_setup
from edge_seg.converters.gpu.accelerator import Accelerator, Crashed, OpsRefused
from edge_seg.converters.gpu.runner import GpuRunner
from edge_seg.converters.interpreter import TfliteRunner
from edge_seg.converters.small_graph import GraphWriter
from edge_seg.converters.verify import HALF_ARITHMETIC, verify
from edge_seg.errors import ArtifactError, InputError, MissingHere

NAMES = [case.name for case in CASES]
TABLE = DELEGATES["gpu"]()


@pytest.fixture(scope="module", autouse=True)
def _no_process_is_left_behind():
    yield
    close_all()


@pytest.fixture
def needs_gpu():
    """Skips where no Vulkan implementation runs the accelerator."""
    if missing():
        pytest.skip(missing())


@pytest.fixture
def needs_half():
    """Skips where no Vulkan implementation computes in float16."""
    if missing("fp16"):
        pytest.skip(missing("fp16"))


def named(name):
    return next(case for case in CASES if case.name == name)


# --- the rules, without running anything


def test_no_two_graphs_have_one_name():
    assert len(set(NAMES)) == len(NAMES) > 200


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_the_rules_take_or_refuse(case, tmp_path):
    graph = graph_of(case.build(), tmp_path / "small.tflite")
    refused = [r.op for r in judge(graph, TABLE).refused]
    assert (case.op not in refused) == case.accepted
    assert refused in ([], [case.op])


def test_the_rules_take_no_graph_that_the_accelerator_gets_wrong():
    assert {case.accelerator for case in CASES if case.accepted} == {"right"}


def test_every_operator_of_the_table_has_a_graph_that_is_taken_and_every_refused_one_a_graph():
    assert {case.op for case in CASES if case.accepted} == set(TABLE.ops)
    # no graph holds STABLEHLO_SORT: no runtime knows it
    assert {case.op for case in CASES if not case.accepted} >= set(TABLE.refused) - {"STABLEHLO_SORT"}


@pytest.mark.parametrize("check", sorted(TABLE.checks))
def test_every_check_refuses_some_graph_and_takes_another(check, tmp_path):
    answers = set()
    for case in CASES:
        graph = graph_of(case.build(), tmp_path / "small.tflite")
        ops = [op for op in graph.ops if op.name in TABLE.ops and check in TABLE.ops[op.name].checks]
        answers |= {TABLE.checks[check](graph, op) is None for op in ops}
    assert answers == {True, False}


def test_every_source_of_the_table_is_used():
    text = (vulkan.Path(accelerator_module.__file__).parent.parent / "delegates" / "gpu_rules.toml").read_text()
    code = (vulkan.Path(accelerator_module.__file__).parent.parent / "delegates" / "gpu.py").read_text()
    body = text.split("[ops.CONV_2D]")[1]
    unused = [s for s in TABLE.sources if f'"{s}"' not in body + code and s != TABLE.limits_source]
    assert unused == []


# --- the rules, on the accelerator


@pytest.mark.gpu_accelerator
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_the_accelerator_makes_of_it_what_the_rules_say(case, tmp_path, needs_gpu):
    expected = "wrong" if case.accelerator == "cpu_wrong" else case.accelerator
    assert outcome(case, tmp_path / "small.tflite") == expected


@pytest.mark.gpu_accelerator
def test_a_sum_overflows_in_half_precision_and_not_in_single(tmp_path, needs_gpu, needs_half):
    graph = GraphWriter()
    inputs = [graph.input("x", (1, 64, 64, 4)), graph.constant(np.array([1, 2], np.int32))]
    path = tmp_path / "sum.tflite"
    path.write_bytes(
        graph.finish(graph.op("SUM", inputs, (1, 1, 1, 4), options=("ReducerOptions", {"keepDims": True})))
    )
    values = noise(read_graph(path), 20.0, 40.0)
    found = {}
    for precision in ("fp32", "fp16"):
        accelerator(precision).open(path)
        found[precision] = accelerator(precision).run(values)[0][0]
    wanted = values[0].sum((1, 2), keepdims=True, dtype=np.float64)
    assert (wanted > np.finfo(np.float16).max).all()
    np.testing.assert_allclose(found["fp32"], wanted, rtol=1e-5)
    assert not np.isclose(found["fp16"], wanted, rtol=0.05).any()


# --- the process around it


def test_without_a_vulkan_implementation_the_error_says_how_to_get_one(monkeypatch):
    monkeypatch.setattr(accelerator_module, "found", list)
    with pytest.raises(MissingHere, match="doctor --setup vulkan"):
        Accelerator()


def test_a_precision_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="fp8"):
        Accelerator("fp8")


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A folder with a driver's description and a library that is none."""
    folder = tmp_path / "driver"
    folder.mkdir()
    (folder / "libdriver.so").write_bytes(b"not a library")
    (folder / "icd.json").write_text(json.dumps({"ICD": {"library_path": "./libdriver.so"}}))
    monkeypatch.delenv("VK_DRIVER_FILES", raising=False)
    monkeypatch.delenv("VK_ICD_FILENAMES", raising=False)
    monkeypatch.setenv(vulkan.VARIABLE, str(folder / "icd.json"))
    return folder


def test_the_driver_named_by_the_variable_is_the_only_one(driver):
    (only,) = vulkan.found()
    assert only.icd == str((driver / "icd.json").resolve())
    assert only.environment["VK_DRIVER_FILES"] == only.environment["VK_ICD_FILENAMES"] == only.icd
    assert only.environment["LD_LIBRARY_PATH"].split(":")[0] == str(driver.resolve())


def test_a_driver_in_the_cache_folder_is_found(driver, tmp_path, monkeypatch):
    monkeypatch.delenv(vulkan.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    target = vulkan.cache_folder() / "mine"
    target.parent.mkdir(parents=True)
    driver.rename(target)
    assert str(target / "icd.json") in [v.icd for v in vulkan.found()]


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"ICD": {"library_path": "./nothing.so"}}', '{"ICD": 3}'])
def test_a_broken_description_is_named(driver, content):
    (driver / "icd.json").write_text(content)
    with pytest.raises(InputError, match="not the description of a Vulkan driver"):
        vulkan.found()


def test_a_driver_that_does_not_work_is_missing_and_not_a_crash(driver):
    with pytest.raises(MissingHere, match="No Vulkan implementation here runs the GPU accelerator in fp32"):
        Accelerator()


@pytest.mark.gpu_accelerator
def test_a_crash_of_the_accelerator_is_an_error_and_the_next_one_starts(tmp_path, needs_gpu):
    case = named("cumsum over axis -1")
    path = tmp_path / "crash.tflite"
    path.write_bytes(case.build())
    with Accelerator() as gpu:
        with pytest.raises(Crashed, match="died") as caught:
            gpu.open(path)
        assert "exit -" in caught.value.got
        assert gpu.is_closed
        with pytest.raises(InputError, match="closed"):
            gpu.open(path)
    assert outcome(named("relu"), tmp_path / "next.tflite") == "right"


@pytest.mark.gpu_accelerator
def test_a_refusal_names_the_operator(tmp_path, needs_gpu):
    path = tmp_path / "small.tflite"
    path.write_bytes(named("gather nd").build())
    with pytest.raises(OpsRefused) as caught:
        accelerator().open(path)
    assert "GATHER_ND" in caught.value.got


@pytest.mark.gpu_accelerator
@pytest.mark.parametrize("inputs", [[], [np.zeros((1, 2, 2, 2), np.float32)], [np.zeros((1, 7, 10, 6), np.float64)]])
def test_arrays_that_do_not_fit_are_refused_and_the_accelerator_stays(inputs, tmp_path, needs_gpu):
    path = tmp_path / "small.tflite"
    path.write_bytes(named("relu").build())
    accelerator().open(path)
    with pytest.raises(InputError, match="do not fit"):
        accelerator().run(inputs)
    assert not accelerator().is_closed


@pytest.mark.gpu_accelerator
def test_more_than_ten_results_keep_their_names(tmp_path, needs_gpu):
    """Twelve results, each the input plus its own number: by name, for files list "output_10" before "output_2"."""
    graph = GraphWriter()
    x = graph.input("x", (1, 4, 4, 4))
    sums = []
    for number in range(12):
        constant = graph.constant(np.full((1, 1, 1, 4), number, np.float32))
        sums.append(graph.op("ADD", [x, constant], (1, 4, 4, 4), options=("AddOptions", {})))
    path = tmp_path / "many.tflite"
    path.write_bytes(graph.finish(*sums))
    accelerator().open(path)
    found, _ = accelerator().run([np.zeros((1, 4, 4, 4), np.float32)])
    assert sorted(accelerator().outputs) == sorted(f"output_{n}" for n in range(12))
    assert [int(array[0, 0, 0, 0]) for array in found] == [int(n.split("_")[1]) for n in accelerator().outputs]


@pytest.mark.gpu_accelerator
def test_a_process_that_hangs_is_given_up_and_ended(monkeypatch, needs_gpu):
    with Accelerator() as gpu:
        child = gpu._child._process
        monkeypatch.setattr(accelerator_module, "RUN_TIMEOUT_S", 0.2)
        child.send_signal(19)  # SIGSTOP: it will not answer
        with pytest.raises(Crashed, match="did not answer"):
            gpu.run([np.zeros((1, 4, 4, 4), np.float32)])
        assert child.poll() is not None


@pytest.mark.gpu_accelerator
def test_swiftshader_is_never_taken_for_half_precision(needs_gpu):
    used = accelerator()
    if "SwiftShader" not in used.adapter.name:
        pytest.skip(f"the driver here is {used.adapter.name}")
    with pytest.raises(MissingHere, match="computes in fp32 where fp16 was asked for"):
        Accelerator("fp16", vulkan=used.vulkan)


@pytest.mark.gpu_accelerator
def test_the_time_of_a_run_lies_in_the_reading_unless_the_benchmark_mode_makes_it_wait(tmp_path, needs_gpu):
    graph, weights = GraphWriter(), conv_weights(32, 3, 32)
    result = graph.input("x", (1, 48, 48, 32))
    fields = {"padding": 0, "strideW": 1, "strideH": 1, "dilationWFactor": 1, "dilationHFactor": 1}
    for _ in range(4):
        inputs = [result, graph.constant(weights), graph.constant(np.zeros(32, np.float32))]
        result = graph.op("CONV_2D", inputs, (1, 48, 48, 32), options=("Conv2DOptions", fields))
    path = tmp_path / "convs.tflite"
    path.write_bytes(graph.finish(result))
    best = {}
    for waits in (False, True):
        with Accelerator(benchmark_mode=waits) as gpu:
            gpu.open(path)
            runs = [gpu.run(noise(read_graph(path), -1, 1))[1] for _ in range(6)]
        best[waits] = min(runs[1:], key=lambda t: t.total_ms)
    assert best[False].run_ms < 0.5 * best[False].read_ms
    assert best[True].run_ms > 2 * best[True].read_ms
    assert 1 / 3 < best[True].total_ms / best[False].total_ms < 3


# --- whole networks


def _canvas():
    return np.random.default_rng(3).integers(0, 256, (48, 48, 3), dtype=np.uint8)


@pytest.mark.gpu_accelerator
@pytest.mark.parametrize("scheme", ["fp32", "fp16", "w8a8"])
def test_a_network_on_the_accelerator_equals_the_cpu(scheme, needs_gpu):
    file = converted_files()[scheme].file
    with GpuRunner(file) as gpu:
        found = gpu(_canvas())
        raw = gpu.raw_outputs()
        assert gpu.times.total_ms > 0
    cpu = TfliteRunner(file)
    wanted = cpu(_canvas())
    for name, values in wanted.items():
        if scheme == "w8a8":
            steps = np.abs(cpu.raw_outputs()[name].astype(int) - raw[name].astype(int))
            assert steps.max() <= 3
        else:
            assert error_of_range(values, found[name]) <= 1e-5


@pytest.mark.gpu_accelerator
def test_dynamically_quantised_weights_are_dequantised_by_the_gpu_and_stay_close_to_the_cpu(needs_gpu):
    file = converted_files()["w8_dynamic"].file
    with GpuRunner(file) as gpu:
        found = gpu(_canvas())
    wanted = TfliteRunner(file)(_canvas())
    # other arithmetic: the CPU quantises activations too
    assert all(1e-5 < error_of_range(wanted[name], found[name]) < 0.1 for name in wanted)


@pytest.mark.gpu_accelerator
def test_verify_compares_the_accelerator_with_pytorch_and_says_which_device_it_was(needs_gpu):
    report = verify(converted_files()["fp32"].file, exported_folder(), kernels="gpu")
    assert report.passed
    assert report.kernels == "gpu"
    assert report.runtime["precision"] == "fp32"
    assert report.runtime["adapter"] == accelerator().adapter.name
    first = report.text().splitlines()[0]
    assert f"gpu in fp32 on {report.runtime['adapter']}" in first
    assert report.tolerance.max_of_range == 1e-5


@pytest.mark.gpu_accelerator
def test_in_half_precision_a_float_network_loses_more_and_has_a_tolerance_of_its_own(needs_gpu, needs_half):
    report = verify(converted_files()["fp32"].file, exported_folder(), kernels="gpu", precision="fp16")
    assert report.passed
    assert report.tolerance == HALF_ARITHMETIC
    assert all(1e-5 < o.max_of_range < 2e-2 for o in report.outputs)


@pytest.mark.gpu_accelerator
def test_a_network_that_the_rules_refuse_is_refused_by_the_runner(tmp_path, needs_gpu):
    path = tmp_path / "small.tflite"
    path.write_bytes(named("relu").build())
    with pytest.raises(ArtifactError, match="contract"):
        GpuRunner(path)


# --- the runner of benchmarks

PROFILE = """
name = "quick"
title = "The GPU accelerator, in a moment"
soc = "host"
runner = "host_gpu"
delegates = ["gpu"]
threads = 1
cpu_mask = ""
precision = "{precision}"
sessions = 1
min_runs = 4
min_time_s = 0.0
max_time_s = 0.2
target_ci_pct = 50.0
cool_down_s = 0.0
"""


def _profile(tmp_path, precision="fp32"):
    path = tmp_path / "quick.toml"
    path.write_text(PROFILE.format(precision=precision))
    return path


@pytest.fixture(scope="module")
def maskconver_file(tiny_exported, tmp_path_factory):
    """A whole MaskConver at 64 pixels, with its decoder."""
    return convert(tiny_exported, scheme="fp32", out=tmp_path_factory.mktemp("converted")).file


@pytest.mark.gpu_accelerator
@pytest.mark.slow
def test_a_measured_file_says_that_it_ran_on_the_gpu_and_on_which(maskconver_file, tmp_path, needs_gpu):
    profile, runner = load_profile(_profile(tmp_path)), RUNNERS["host_gpu"]()
    executor = runner.open(maskconver_file, profile, "gpu")
    try:
        with runner.session(profile):
            times = executor.step(np.zeros((30, 40, 3), np.uint8))
        assert executor.facts.delegate_actual == "gpu"
        assert executor.facts.nodes_delegated == executor.facts.nodes_total > 5
        assert executor.facts.runtime["precision"] == "fp32"
        assert times.run_ms > 0
        assert runner.kind == ("emulated" if executor.adapter.is_software else "measured")
        assert runner.device()["gpu"] == executor.adapter.name
    finally:
        executor.close()
    with pytest.raises(InputError, match="closed"):
        executor.step(np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize(
    ("delegate", "precision", "message"), [("xnnpack", "fp32", "xnnpack"), ("gpu", "file", "fp16")]
)
def test_another_delegate_and_an_open_precision_are_refused(delegate, precision, message, tmp_path):
    runner = RUNNERS["host_gpu"]()
    with pytest.raises(InputError, match=message):
        runner.open(tmp_path / "nothing.tflite", load_profile(_profile(tmp_path, precision)), delegate)
    assert runner.kind == "emulated"
    assert runner.device()["gpu"] is None


# --- fetching a driver


def _packed(folder, files):
    """A stand-in for npm and node that leaves archives with these files."""

    def archive(members):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return buffer.getvalue()

    def run(command, place):
        if command[0] == "npm":
            (place / "a.tgz").write_bytes(archive({vulkan_setup._ARCHIVE: b"packed"}))
        else:
            (place / command[-1]).write_bytes(archive(files))

    return run


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files = {"libvk_swiftshader.so": b"s", "libvulkan.so.1": b"v", "vk_swiftshader_icd.json": b"{}"}
    hashes = {n: hashlib.sha256(c).hexdigest() for n, c in {**files, vulkan_setup._ARCHIVE: b"packed"}.items()}
    monkeypatch.setattr(vulkan_setup, "_SHA256", hashes)
    monkeypatch.setattr(vulkan_setup.platform, "system", lambda: "Linux")
    monkeypatch.setattr(vulkan_setup.platform, "machine", lambda: "x86_64")
    return files


def test_a_fetched_driver_lies_where_it_is_looked_for_and_replaces_an_old_one(fetched, tmp_path):
    for _ in range(2):
        folder = vulkan_setup.install_swiftshader(_packed(tmp_path, fetched))
    assert folder.parent == vulkan.cache_folder()
    assert {p.name for p in folder.iterdir()} == set(fetched)
    assert [p.name for p in vulkan.cache_folder().iterdir()] == ["swiftshader"]


@pytest.mark.parametrize("name", ["libvk_swiftshader.so", "libvulkan.so.1"])
def test_a_fetched_file_with_another_content_is_refused_and_nothing_is_kept(fetched, name, tmp_path):
    with pytest.raises(ArtifactError, match="another content"):
        vulkan_setup.install_swiftshader(_packed(tmp_path, {**fetched, name: b"other"}))
    assert list(vulkan.cache_folder().iterdir()) == []


def test_another_machine_is_told_what_to_do_by_hand(fetched, monkeypatch):
    monkeypatch.setattr(vulkan_setup.platform, "machine", lambda: "aarch64")
    with pytest.raises(MissingHere, match="apt install"):
        vulkan_setup.install_swiftshader()
