"""The order of batches depends on seed and step alone."""

import threading
import time

import numpy as np
import pytest

from edge_seg.data.loader import BatchLoader
from edge_seg.data.sample import Sample
from edge_seg.data.transforms import AugmentConfig, augment
from edge_seg.errors import ConfigError, DataError


class Numbered:
    """Samples whose picture is filled with their index."""

    name = "numbered"
    classes = ()

    def __init__(self, count=7):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = np.full((4, 4, 3), index, np.uint8)
        return Sample(index, str(index), image, np.ones((4, 4), np.int32), ())

    def fingerprint(self):
        return ""


def build(sample, rng):
    return sample.image_id, int(rng.integers(1 << 40))


def take(count, **options):
    options = {"batch_size": 4, "seed": 1, **options}
    with BatchLoader(Numbered(), build, **options) as loader:
        return [next(loader) for _ in range(count)]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_resumed_run_sees_the_same_batches(workers):
    assert take(5, start_step=6, workers=workers) == take(11)[6:]


def test_a_resumed_run_sees_identical_pixels():
    def crop(sample, rng):
        return augment(sample, 8, AugmentConfig(), rng, (0, 0, 0)).image_hwc_u8

    with BatchLoader(Numbered(), crop, batch_size=3, seed=9) as loader:
        whole = [next(loader) for _ in range(6)]
    with BatchLoader(Numbered(), crop, batch_size=3, seed=9, start_step=4, workers=2) as loader:
        resumed = [next(loader) for _ in range(2)]
    assert np.array_equal(np.array(whole[4:]), np.array(resumed))


def test_another_seed_gives_another_order():
    assert take(3, seed=1) != take(3, seed=2)


def test_every_epoch_holds_every_sample_once_and_the_order_changes():
    indices = [index for batch in take(7) for index, _ in batch]
    epochs = [indices[i : i + 7] for i in range(0, 28, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_batch_larger_than_the_data_set_repeats_samples():
    (batch,) = take(1, batch_size=16)
    assert sorted(index for index, _ in batch[:14]) == sorted([*range(7)] * 2)


def test_every_slot_has_a_random_generator_of_its_own():
    draws = [draw for batch in take(10) for _, draw in batch]
    assert len(set(draws)) == 40


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_one_global_batch_in_alternate_slots(world):
    whole = take(3)
    ranks = [take(3, rank=r, world=world) for r in range(world)]
    for step in range(3):
        merged = [None] * 4
        for r in range(world):
            merged[r::world] = ranks[r][step]
        assert merged == whole[step]


def test_an_error_in_a_worker_reaches_the_consumer():
    def fail(sample, rng):
        raise DataError("The picture is broken.")

    with (
        BatchLoader(Numbered(), fail, batch_size=2, seed=0) as loader,
        pytest.raises(DataError, match="picture is broken"),
    ):
        next(loader)


def test_no_more_than_prefetch_batches_are_prepared_ahead():
    built = []

    def note(sample, rng):
        built.append(sample.image_id)

    with BatchLoader(Numbered(), note, batch_size=1, seed=0, workers=2, prefetch=3) as loader:
        for _ in range(5):
            next(loader)
        deadline = time.monotonic() + 2.0
        while len(built) < 8 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert len(built) == 8


def test_close_ends_the_threads_and_the_iteration():
    before = threading.active_count()
    loader = BatchLoader(Numbered(), build, batch_size=2, seed=0, workers=3)
    next(loader)
    loader.close()
    loader.close()
    assert threading.active_count() == before
    assert list(loader) == []


def test_close_does_not_wait_for_batches_that_nobody_wants():
    def slow(sample, rng):
        time.sleep(0.05)

    ended = []
    loader = BatchLoader(Numbered(), slow, batch_size=100, seed=0, prefetch=4)
    thread = threading.Thread(target=lambda: ended.append(next(loader, None)), daemon=True)
    thread.start()
    time.sleep(0.1)
    started = time.monotonic()
    loader.close()
    assert time.monotonic() - started < 1.0
    thread.join(1.0)
    assert ended == [None]


def test_waiting_is_measured_and_steps_are_counted():
    def slow(sample, rng):
        time.sleep(0.02)

    with BatchLoader(Numbered(), slow, batch_size=2, seed=0, start_step=10) as loader:
        next(loader)
        assert loader.waited_s >= 0.04
        assert loader.step == 11


def test_indices_tell_what_a_batch_is_made_of():
    with BatchLoader(Numbered(), build, batch_size=4, seed=1) as loader:
        assert [[index for index, _ in next(loader)] for _ in range(3)] == [loader.indices(s) for s in range(3)]


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 0},
        {"workers": -1},
        {"prefetch": 0},
        {"rank": 1},
        {"world": 3},
        {"start_step": -1},
        {"seed": -1},
    ],
    ids=str,
)
def test_a_number_out_of_range_is_refused(change):
    with pytest.raises(ConfigError, match="out of range"):
        BatchLoader(Numbered(), build, **{"batch_size": 4, "seed": 0, **change})


def test_an_empty_data_set_is_refused():
    with pytest.raises(DataError, match="empty"):
        BatchLoader(Numbered(0), build, batch_size=4, seed=0)
