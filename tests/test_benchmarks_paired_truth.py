"""Two files in turns against planted truth: coverage, alarms, power, and what pairing is worth.

The numbers of blocks, 64 and 20, were chosen before any coverage was looked at.
"""

import numpy as np
import pytest

from edge_seg.benchmarks.stats_compare import compare_medians
from edge_seg.benchmarks.stats_paired import LEAST_BLOCKS, common_blocks, compare_turns
from edge_seg.errors import InputError

scipy_signal = pytest.importorskip("scipy.signal", reason="SciPy, which filters noise, is not here")
scipy_stats = pytest.importorskip("scipy.stats", reason="SciPy, the oracle, is not here")
BLOCK_RUNS, RUNS = 8, 1000


def _ar(rng, runs, n, phi):
    """AR(1) of standard deviation 1, [runs, n]."""
    white = rng.normal(size=(runs, n + 100))
    return scipy_signal.lfilter([np.sqrt(1 - phi**2)], [1, -phi], white, axis=1)[:, 100:]


def _in_turns(course):
    """Deals what happens in time, [runs, 2 * blocks], to two files in the order A-B-B-A: two of [runs, blocks, 1]."""
    turns = course.reshape(len(course), -1, 2)
    back = (np.arange(turns.shape[1]) % 2).astype(int)
    chosen = [
        np.take_along_axis(turns, np.broadcast_to(side, turns.shape[:2])[..., None], 2) for side in (back, 1 - back)
    ]
    return chosen[0], chosen[1]


def _bursts(rng, runs, slots):
    """Chance of a stolen slot: one in twenty begins a burst of four slots, at random ones of which runs are hit."""
    begins = rng.random((runs, slots)) < 0.05
    on = sum(np.pad(begins, ((0, 0), (k, 0)))[:, :slots] for k in range(4)) > 0
    return on * rng.exponential(0.5, (runs, slots))


def _files(kind, runs, blocks, seed=0, ratio=1.0, sigma=0.03):
    """Latencies of two files that differ by `ratio` and nothing else, each [runs, blocks * 8]."""
    rng = np.random.default_rng(seed)
    slots, shape = 2 * blocks, (2, runs, blocks, BLOCK_RUNS)
    noise, course, own = sigma * rng.normal(size=shape), np.zeros((runs, slots)), np.zeros((2, runs, blocks))
    if kind in ("drift", "all of it"):
        course += np.linspace(0, 0.3, slots) + 0.1 * _ar(rng, runs, slots, 0.97)
    if kind in ("state of the host", "all of it"):
        course += 0.1 * _ar(rng, runs, slots, 0.8)
    if kind in ("order", "all of it"):
        course[:, 0::2] += 0.03
    if kind in ("bursts", "all of it"):
        noise += np.stack(_in_turns(_bursts(rng, runs, slots))) * (rng.random(shape) < 0.5)
    if kind in ("heavy tails", "all of it"):
        noise += sigma * rng.standard_t(2, shape)
    if kind.startswith("own state"):
        own = 0.02 * np.stack([_ar(rng, runs, blocks, float(kind.split()[-1])) for _ in range(2)])
    logs = np.stack(_in_turns(course)) + own[..., None] + noise
    logs[1] += np.log(ratio)
    return np.exp(2 + logs).reshape(2, runs, -1)


def _found(kind, runs, blocks, **planted):
    first, second = _files(kind, runs, blocks, **planted)
    return [compare_turns([b], [a], block_runs=BLOCK_RUNS) for a, b in zip(first, second, strict=True)]


KINDS = ("nothing else", "drift", "state of the host", "order", "bursts", "heavy tails", "all of it")


def _alarms_pct(kind, blocks):
    found = _found(kind, RUNS, blocks, seed=41)
    alarms = 100.0 * np.mean([f.verdict != "no difference seen" for f in found])
    assert alarms == pytest.approx(100.0 * np.mean([not f.ratio.low <= 1.0 <= f.ratio.high for f in found]))
    return alarms


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "bursts"] + ["own state 0.5"])
def test_of_64_blocks_the_interval_covers_the_true_ratio_93_to_97_times_in_100(kind):
    """So equal files are called different 3 to 7 times in 100, as stated, whatever the host does to both."""
    assert 3.0 <= _alarms_pct(kind, 64) <= 7.0


@pytest.mark.parametrize("blocks", [64, 20])
def test_under_bursts_of_stolen_time_it_is_a_little_wider_than_it_had_to_be(blocks):
    """It covers about 97 times in 100: never fewer than stated."""
    assert 1.5 <= _alarms_pct("bursts", blocks) <= 5.0


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "bursts"])
def test_of_20_blocks_it_covers_93_to_97_times_in_100_too(kind):
    assert 3.0 <= _alarms_pct(kind, 20) <= 7.0


@pytest.mark.parametrize(("kind", "blocks"), [("own state 0.5", 20), ("own state 0.8", 64)])
def test_a_state_that_each_file_has_alone_and_keeps_over_many_turns_is_covered_too_rarely(kind, blocks):
    """What does not hold: the dependence of few blocks is known too badly. At 0.8, 20 blocks are covered 84 times."""
    assert 3.0 <= _alarms_pct(kind, blocks) <= 10.0


@pytest.mark.parametrize("blocks", [LEAST_BLOCKS, 12])
def test_of_the_fewest_blocks_it_covers_the_true_ratio_too_where_turns_are_independent(blocks):
    assert 3.0 <= _alarms_pct("drift", blocks) <= 8.0


@pytest.mark.parametrize(
    ("kind", "blocks", "sigma"), [("nothing else", 40, 0.105), ("state of the host", 64, 0.03), ("bursts", 64, 0.1)]
)
def test_a_slowdown_is_found_with_the_power_that_is_stated_for_it(kind, blocks, sigma):
    """Of each session its own smallest detectable slowdown, 80 times in 100.

    The noise was chosen so that this is about 3 % in the median session. A slowdown of 3 % in every session is found 70
    to 83 times in 100: fewer where the sessions, of few blocks, differ much in what they can see.
    """
    first, second = _files(kind, 400, blocks, seed=43, sigma=sigma)
    found = [compare_turns([b], [a], block_runs=BLOCK_RUNS) for a, b in zip(first, second, strict=True)]
    assert 2.5 <= np.median([f.mde_pct for f in found]) <= 3.3
    own = [
        compare_turns([(1 + f.mde_pct / 100) * b], [a], block_runs=BLOCK_RUNS)
        for a, b, f in zip(first, second, found, strict=True)
    ]
    assert np.mean([f.verdict == "slower" for f in own]) == pytest.approx(0.80, abs=0.06)
    # an interval of log ratios moves with what is planted
    seen = [1.03 * f.ratio.low > 1.0 for f in found]
    print(kind, np.mean([f.verdict == "slower" for f in own]), np.mean(seen))
    assert 0.68 <= np.mean(seen) <= 0.88


def test_a_planted_ratio_only_moves_the_interval():
    first, second = _files("all of it", 1, 20, seed=45)
    equal, slower = (compare_turns([by * second[0]], [first[0]], block_runs=BLOCK_RUNS) for by in (1.0, 1.03))
    assert slower.ratio.value == pytest.approx(1.03 * equal.ratio.value)
    assert slower.ratio.low == pytest.approx(1.03 * equal.ratio.low)
    assert slower.mde_pct == pytest.approx(equal.mde_pct)


@pytest.mark.parametrize(("kind", "times"), [("drift", 3), ("state of the host", 2), ("all of it", 2)])
def test_where_noise_is_common_pairs_are_narrower_than_two_medians(kind, times):
    first, second = _files(kind, 60, 64, seed=47)
    paired = [
        compare_turns([b], [a], block_runs=BLOCK_RUNS).ratio.width_pct for a, b in zip(first, second, strict=True)
    ]
    apart = [compare_medians([b], [a]).ratio.width_pct for a, b in zip(first, second, strict=True)]
    assert np.median(apart) > times * np.median(paired)


def _blocks(medians):
    """Samples whose blocks have these medians."""
    return np.repeat(np.asarray(medians, float), BLOCK_RUNS) * np.tile(
        np.linspace(0.9, 1.1, BLOCK_RUNS + 1)[[*range(4), *range(5, 9)]], len(medians)
    )


def test_what_slows_both_files_and_what_the_order_adds_drop_out_exactly():
    host = np.exp(np.random.default_rng(3).normal(size=20))
    first_goes_slower = np.where(np.arange(20) % 2 == 0, 1.1, 1.0)
    found = compare_turns([_blocks(1.2 * host)], [_blocks(host * first_goes_slower)], block_runs=BLOCK_RUNS)
    expected = 1.2 / np.sqrt(1.1)
    assert (found.ratio.low, found.ratio.value, found.ratio.high) == pytest.approx((expected,) * 3)
    assert found.mde_pct == pytest.approx(0.0, abs=1e-9)
    assert found.verdict == "slower"


def test_the_interval_of_independent_turns_is_scipys_signed_rank_test_turned_round():
    values = np.random.default_rng(5).normal(0.0, 0.1, 14)
    values = np.ravel(np.column_stack([values, values[::-1]]))[:14]  # both kinds of turn alike: no effect of the order
    found = compare_turns([_blocks(np.exp(values))], [_blocks(np.ones(14))], block_runs=BLOCK_RUNS)
    means = np.sort([(values[i] + values[j]) / 2 for i in range(14) for j in range(i, 14)])
    half = 0.5 * (np.log(found.ratio.high) - np.log(found.ratio.low))
    assert np.log(found.ratio.value) == pytest.approx(np.median(means), abs=0.02)
    inside = [
        shift for shift in np.linspace(means[0], means[-1], 400) if scipy_stats.wilcoxon(values - shift).pvalue > 0.05
    ]
    assert half == pytest.approx(0.5 * (inside[-1] - inside[0]), rel=0.15)


def test_files_that_stop_at_different_times_are_compared_by_their_common_blocks():
    rng = np.random.default_rng(7)
    long, short = _blocks(np.exp(0.01 * rng.normal(size=30))), _blocks(np.exp(0.01 * rng.normal(size=12)))
    found = compare_turns([long], [short], block_runs=BLOCK_RUNS)
    assert (found.blocks, found.left_out, found.sessions) == ((12,), 18, (1, 1))
    assert found.ratio == compare_turns([long[: 12 * BLOCK_RUNS]], [short], block_runs=BLOCK_RUNS).ratio
    cut = compare_turns([long[:-3]], [short[:-3]], block_runs=BLOCK_RUNS)  # a device lost in the middle of a block
    assert cut.blocks == (11,)


def test_of_several_sessions_their_ratios_are_what_varies():
    sessions = [_blocks(np.full(10, ratio)) for ratio in (1.0, 1.1, 1.3)]
    found = compare_turns(sessions, [_blocks(np.ones(10))] * 3, block_runs=BLOCK_RUNS)
    logs = np.log([1.0, 1.1, 1.3])
    error = logs.std(ddof=1) / np.sqrt(3)
    assert found.ratio.value == pytest.approx(np.exp(logs.mean()))
    assert found.ratio.high == pytest.approx(np.exp(logs.mean() + scipy_stats.t.ppf(0.975, 2) * error))
    assert found.between_pct == pytest.approx(100 * np.expm1(logs.std(ddof=1)))
    assert (found.blocks, found.sessions) == ((10, 10, 10), (3, 3))


def test_a_long_session_is_compared_by_a_thousand_values_at_most_and_equal_files_have_no_width():
    ones = np.ones(5003 * 2)
    found = compare_turns([ones], [ones], block_runs=2)
    assert (found.ratio.low, found.ratio.value, found.ratio.high) == (1.0, 1.0, 1.0)
    assert found.blocks == (5003,)


@pytest.mark.parametrize(
    ("candidate", "baseline", "block_runs", "word"),
    [
        ([], [], 8, "no sessions"),
        ([np.ones(80)], [np.ones(80)] * 2, 8, "no sessions"),
        ([np.ones(80)], [np.ones(80)], 0, "no sessions"),
        ([np.ones(80)], [np.ones(63)], 8, "too few turns"),
        ([np.zeros(80)], [np.ones(80)], 8, "not positive"),
    ],
)
def test_what_is_no_comparison_of_turns_is_refused(candidate, baseline, block_runs, word):
    with pytest.raises(InputError, match=word):
        compare_turns(candidate, baseline, block_runs=block_runs)


def test_common_blocks_are_whole_ones_of_both():
    assert (common_blocks(64, 71, 8), common_blocks(7, 100, 8)) == (8, 0)
