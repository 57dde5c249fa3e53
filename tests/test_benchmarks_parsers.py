"""Outputs of other benchmark tools: public logs as they were posted, made-up ones, and damaged ones."""

import json
import random
import struct
from pathlib import Path

import pytest

from edge_seg.benchmarks.parser import FIGURES, PARSERS, ToolResult, parse_bytes, parse_file
from edge_seg.benchmarks.parsers.benchmark_model_text import message_lines
from edge_seg.benchmarks.residency import read_residency
from edge_seg.errors import InputError

LOGS = Path(__file__).parent / "data" / "benchmark_logs"
SOURCES = json.loads((LOGS / "sources.json").read_text())
# read off the posted logs by eye: counted runs, warm-up runs, mean, min, max, init, very first run (milliseconds)
POSTED = {
    "tensorflow_43541_gpu.txt": (50, 4, 119.375, 113.737, 124.776, 870.557, 130.565),
    "xnnpack_999_raspberry_pi.txt": (50, 9, 55.0432, 53.077, 60.727, 18.777, 64.791),
    "tensorflow_61946_info_prefix.txt": (50, 5, 116.066, 111.222, 121.324, 0.53, 124.02),
    "tensorflow_56301_logcat_nnapi.txt": (75, 40, 12.1676, 11.787, 13.649, 126.059, 32.942),
    "armnn_541_raspberry_pi.txt": (14192, 7028, 0.069691, 0.068, 0.249, 1.304, 2.071),
    "yuenshome_77_oldest.txt": (15, 7, 66.7676, 66.699, 66.838, 9.933, 127.425),
    "tensorflow_42507_peak_memory.txt": (50, 15, 33.2094, 32.641, 34.005, 0.855, 49.06),
    "mobile_app_open_1134_litert_gpu.txt": (10, 1, 7430.2, 7416.4, 7448.86, 23744.73, 7441.04),
}
# the newest classic build's line, after stats_calculator.h; no posted log of it was found
WITH_PERCENTILES = """INFO: STARTING!
INFO: Graph: [a.tflite]
VERBOSE: Replacing 64 out of 66 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 3 partitions.
INFO: count=3 first=2500 curr=2000 min=1900 max=2500 avg=2133.33 std=262 p5=1900 median=2000 p95=2500

INFO: count=64 first=2000 curr=2100 min=1800 max=9000 avg=2.1e+03 std=20 p5=1850 median=2050 p95=2400

INFO: Inference timings in us: Init: 800, First inference: 2500, Warmup (avg): 2133.33, Inference (avg): 2.1e+03
"""


def proto(latency=None, memory=None, misc=None, name=b"run"):
    """Writes a message by hand: key byte = number * 8 + wire type."""

    def nested(number, body):
        return bytes([number << 3 | 2]) + varint(len(body)) + body

    def varint(value):
        value &= (1 << 64) - 1
        out = b""
        while value > 0x7F:
            out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
        return out + bytes([value])

    def floats(values):
        return b"".join(bytes([n << 3 | 5]) + struct.pack("<f", v) for n, v in values.items())

    memory, misc = memory or {}, misc or {}
    body = b"".join(bytes([n << 3]) + varint(v) for n, v in memory.items() if isinstance(v, int))
    body += floats({n: v for n, v in memory.items() if isinstance(v, float)})
    rest = floats({n: v for n, v in misc.items() if isinstance(v, float)})
    rest += b"".join(bytes([n << 3]) + varint(v) for n, v in misc.items() if isinstance(v, int))
    return nested(1, name) + nested(2, floats(latency or {})) + nested(3, body) + nested(4, rest)


RESULT = proto(
    {1: 10.5, 2: 10.0, 3: 12.0, 4: 0.25, 5: 10.25, 6: 10.0, 7: 11.5, 8: 100.0, 9: 20.0, 10: 15.0},
    {1: 2048, 2: -1024 + 5120, 3: 33.5},
    {1: 1.5, 2: 50, 3: 7, 4: 20.0},
)


@pytest.mark.parametrize("name", sorted(POSTED))
def test_a_log_as_somebody_posted_it_gives_the_figures_a_person_reads_in_it(name):
    assert SOURCES[name].startswith("https://")
    told = parse_file(LOGS / name)
    found = (told.n, told.warmup_n, told.avg_ms, told.min_ms, told.max_ms, told.init_ms, told.first_ms)
    assert found == pytest.approx(POSTED[name], rel=1e-9)
    assert told.median_ms is None
    assert "median_ms" in told.unknown


def test_every_figure_that_is_unknown_has_a_reason_and_no_other():
    for name in POSTED:
        told = parse_file(LOGS / name)
        assert {f for f in (*FIGURES, "n", "warmup_n") if getattr(told, f) is None} == set(told.unknown)
        assert all(told.unknown.values())


def test_memory_lines_of_three_generations_are_read():
    assert parse_file(LOGS / "xnnpack_999_raspberry_pi.txt").overall_footprint_mb == 18.7227
    assert parse_file(LOGS / "xnnpack_999_raspberry_pi.txt").init_footprint_mb == 8.97656
    assert parse_file(LOGS / "tensorflow_42507_peak_memory.txt").peak_memory_mb == 12.8672
    litert = parse_file(LOGS / "mobile_app_open_1134_litert_gpu.txt")
    assert (litert.init_footprint_mb, litert.peak_memory_mb) == (6391.74, None)


def test_newer_builds_give_median_and_percentiles_and_the_delegates_share():
    told = parse_bytes(WITH_PERCENTILES.encode(), "log")
    assert (told.median_ms, told.p5_ms, told.p95_ms, told.n) == (2.05, 1.85, 2.4, 64)
    share = told.residency.of("xnnpack")
    assert (share.nodes_delegated, share.nodes_total, share.partitions) == (64, 66, 3)
    assert told.residency.of("gpu") is None


def test_what_the_tool_says_about_a_delegate_is_kept_and_nothing_is_added():
    gpu = parse_file(LOGS / "tensorflow_43541_gpu.txt").residency
    assert (gpu.applied, gpu.extent, gpu.delegations) == ("gpu", "completely", ())
    nnapi = parse_file(LOGS / "tensorflow_56301_logcat_nnapi.txt").residency
    assert (nnapi.applied, nnapi.extent) == ("nnapi", "partially")
    plain = parse_file(LOGS / "armnn_541_raspberry_pi.txt").residency
    assert (plain.applied, plain.extent, plain.delegations) == (None, None, ())


def test_several_delegates_in_one_log_keep_their_own_counts_of_the_whole_graph():
    told = read_residency(message_lines((LOGS / "google_forum_27507_delegates.txt").read_text()))
    gpu, cpu = told.of("gpu"), told.of("xnnpack")
    assert (gpu.nodes_delegated, gpu.nodes_total, gpu.partitions) == (29, 65, 3)
    assert (cpu.nodes_delegated, cpu.nodes_total, cpu.partitions) == (52, 65, 6)
    assert len(told.delegations) == 3


def test_operators_that_a_gpu_refuses_are_listed_with_the_printed_reason():
    told = read_residency(message_lines((LOGS / "tensorflow_57907_gpu_refusal.txt").read_text()))
    assert len(told.refused) == 11
    assert told.refused[0] == "ARG_MAX: Operation is not supported."
    assert "DEQUANTIZE: no reason printed" in told.refused
    assert (told.of("gpu").nodes_delegated, told.of("gpu").nodes_total) == (97, 297)


def test_old_builds_that_do_not_print_the_total_leave_it_unknown():
    told = read_residency(["Replacing 31 node(s) with delegate (TfLiteGpuDelegateV2) node, yielding 1 partitions."])
    assert told.of("gpu").nodes_total is None
    none = read_residency(["Though NNAPI delegate is explicitly applied, the model graph will not be executed by it."])
    assert (none.applied, none.extent) == ("nnapi", "not")


def test_one_run_only_prints_one_number_and_that_is_all_of_them():
    log = "count=1 curr=500\n\ncount=1 curr=400\n\nInference timings in us: "
    log += "Init: 9, First inference: 500, Warmup (avg): 500, Inference (avg): 400\n"
    told = parse_bytes(log.encode(), "log")
    assert (told.n, told.avg_ms, told.min_ms, told.max_ms, told.std_ms) == (1, 0.4, 0.4, 0.4, None)
    same = log.replace("count=1 curr=400", "count=9 curr=400(all same)")
    assert parse_bytes(same.encode(), "log").n == 9


def test_without_a_warm_up_there_is_no_first_run_of_it():
    log = "count=0\n\ncount=2 first=5 curr=4 min=4 max=5 avg=4.5 std=0\n\nInference timings in us: "
    told = parse_bytes((log + "Init: 9, First inference: 0, Warmup (avg): 0, Inference (avg): 4.5\n").encode(), "log")
    assert (told.n, told.warmup_n, told.first_ms, told.warmup_avg_ms) == (2, 0, None, None)


def test_the_message_of_the_tool_is_read_field_by_field():
    told = parse_bytes(RESULT, "results.pb")
    assert told.form == "benchmark_result_proto"
    assert (told.avg_ms, told.median_ms, told.p95_ms, told.init_ms, told.first_ms) == (10.5, 10.25, 11.5, 100.0, 20.0)
    assert (told.n, told.warmup_n, told.model_size_mb) == (50, 7, 1.5)
    assert (told.init_footprint_mb, told.overall_footprint_mb, told.peak_memory_mb) == (2.0, 4.0, 33.5)
    assert told.unknown == {}


def test_fields_of_a_later_version_are_skipped_and_missing_ones_are_unknown():
    latest = b"\x0a\x03run" + b"\x7a\x02hi" + b"\x78\x05" + RESULT[5:]
    assert parse_bytes(latest, "results.pb").avg_ms == 10.5
    little = parse_bytes(proto({1: 10.5}, {3: -1.0}, {2: 50}), "results.pb")
    assert little.median_ms is None
    assert little.unknown["median_ms"]
    assert little.peak_memory_mb is None  # zero or less means "not measured"


def test_the_messages_numbers_agree_with_a_protobuf_library_that_knows_the_public_definition():
    descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2", reason="no protobuf library here")
    from google.protobuf import descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="r.proto", package="t", syntax="proto2")
    latency = file.message_type.add(name="LatencyMetrics")
    names = ["avg_ms", "min_ms", "max_ms", "stddev_ms", "median_ms", "p5_ms", "p95_ms", "init_ms"]
    for number, name in enumerate([*names, "first_inference_ms", "average_warm_up_ms"], start=1):
        latency.field.add(name=name, number=number, type=2, label=1)
    misc = file.message_type.add(name="MiscMetrics")
    misc.field.add(name="num_runs", number=2, type=5, label=1)
    result = file.message_type.add(name="BenchmarkResult")
    result.field.add(name="latency_metrics", number=2, type=11, label=1, type_name=".t.LatencyMetrics")
    result.field.add(name="misc_metrics", number=4, type=11, label=1, type_name=".t.MiscMetrics")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    message = message_factory.GetMessageClass(pool.FindMessageTypeByName("t.BenchmarkResult"))()
    message.latency_metrics.avg_ms, message.latency_metrics.p95_ms = 3.5, 4.5
    message.latency_metrics.average_warm_up_ms, message.misc_metrics.num_runs = 6.5, 300
    told = parse_bytes(message.SerializeToString(), "results.pb")
    assert (told.avg_ms, told.p95_ms, told.warmup_avg_ms, told.n) == (3.5, 4.5, 6.5, 300)


def test_the_python_tools_json_and_its_text_agree():
    document, text = (parse_file(LOGS / f"litert_python_tool.{suffix}") for suffix in ("json", "txt"))
    for name in ("avg_ms", "min_ms", "max_ms", "std_ms", "median_ms", "p5_ms", "p95_ms", "init_ms", "first_ms", "n"):
        assert getattr(document, name) == getattr(text, name), name
    assert (document.form, text.form) == ("litert_python_json", "benchmark_model_text")
    assert document.threads == 1
    assert document.residency.applied is None  # fully_accelerated is true on the CPU too


def test_zeros_that_stand_for_nothing_measured_become_unknown():
    document = json.loads((LOGS / "litert_python_tool.json").read_text())
    document["latency"] |= {"num_warmup_runs": 0, "warmup_first_ms": 0, "warmup_avg_ms": 0}
    told = parse_bytes(json.dumps(document).encode(), "r.json")
    assert (told.first_ms, told.warmup_avg_ms) == (None, None)


def first_lines(name, n):
    return "\n".join((LOGS / name).read_text().splitlines()[:n])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not the output"),
        (b"hello", "not the output"),
        (first_lines("tensorflow_43541_gpu.txt", 19).encode(), "ends after 4 runs of the warm-up"),
        (first_lines("tensorflow_43541_gpu.txt", 22).encode(), "ends after 50 runs of the measurement"),
        (b"STARTING!\nGraph: [a.tflite]\nFailed to apply GPU delegate.\n", "Failed to apply GPU delegate."),
        (2 * (LOGS / "tensorflow_43541_gpu.txt").read_bytes(), "several runs"),
        (2 * (LOGS / "litert_python_tool.txt").read_bytes(), "several runs"),
        (("count=5 curr=5\n" + WITH_PERCENTILES).encode(), "several runs"),
        (proto({1: 3.0}, {1: -1}, {2: 3}), "contradicts itself"),
        (WITH_PERCENTILES.replace("(avg): 2.1e+03", "(avg): 2.9e+03").encode(), "contradicts itself"),
        (WITH_PERCENTILES.replace("median=2050", "median=9050").encode(), "contradicts itself"),
        (WITH_PERCENTILES.replace("Replacing 64 out of", "Replacing 67 out of").encode(), "contradicts itself"),
        (b"{", "not whole JSON"),
        (b"{" * 100_000, "not whole JSON"),
        (b'{"a": ' * 100_000, "not whole JSON"),
        (b'{"latency": {"avg_ms": NaN, "num_runs": 3}}', "not whole JSON"),
        (b'{"latency": {"avg_ms": ' + b"9" * 5000 + b', "num_runs": 3}}', ""),
        (b'{"latency": {"avg_ms": true, "num_runs": 3}}', "wrong 'avg_ms'"),
        (b'{"latency": {"avg_ms": 3.0, "num_runs": 3.5}}', "wrong 'num_runs'"),
        (b'{"latency": {"avg_ms": -3.0, "num_runs": 3}}', "contradicts itself"),
        (b'{"latency": []}', "latency"),
        (proto({5: 1.0}, None, {2: 3}), "holds no result"),
        (proto({1: float("nan")}, None, {2: 3}), "contradicts itself"),
        (proto({1: float("inf")}, None, {2: 3}), "contradicts itself"),
        (RESULT[:20], "not a whole"),
        (b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "more than ten bytes"),
        (b"\x12\x02\x08\x01", "wire type"),
        (b"\x0a\x00\x0f", "wire type 7"),
        (b"x" * ((16 << 20) + 1), "too large"),
    ],
)
def test_what_is_cut_short_or_wrong_is_an_input_error_that_says_why(data, says):
    with pytest.raises(InputError, match="the log") as caught:
        parse_bytes(data, "the log")
    assert says in str(caught.value)


def test_a_missing_file_and_an_unknown_form_are_named(tmp_path):
    with pytest.raises(InputError, match="There is no file"):
        parse_file(tmp_path / "none.txt")
    with pytest.raises(InputError, match="did you mean benchmark_model_text"):
        parse_bytes(b"", "log", "benchmark_model_txt")


def damaged(data, chance):
    """Cuts, flips bits, repeats and removes parts of a log."""
    data = bytearray(data)
    for _ in range(chance.choice((0, 1, 1, 2, 5, 40))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    kind, a, b = chance.randrange(4), *sorted(chance.randrange(len(data) + 1) for _ in range(2))
    cut = (data[:a], data[a:], data[:a] + data[b:], data[:b] + data[a:])
    return bytes(cut[kind])


def test_damaged_output_of_every_form_gives_a_result_or_an_input_error_and_nothing_else():
    chance = random.Random(20261121)
    whole = [path.read_bytes() for path in sorted(LOGS.iterdir())] + [WITH_PERCENTILES.encode(), RESULT]
    outcomes = {"read": 0, "refused": 0}
    for _ in range(4000):
        data, form = damaged(chance.choice(whole), chance), chance.choice(["", *PARSERS.names()])
        try:
            told = parse_bytes(data, "fuzz", form)
        except InputError:
            outcomes["refused"] += 1
        else:
            assert isinstance(told, ToolResult)
            assert told.avg_ms is None or told.avg_ms >= 0
            outcomes["read"] += 1
    assert min(outcomes.values()) > 100, outcomes


def test_every_log_says_where_it_is_from():
    assert sorted(SOURCES) == sorted(p.name for p in LOGS.iterdir() if p.name != "sources.json")
