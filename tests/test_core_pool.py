"""The pool against a plain list of everything that was ever put in."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from gasim_ray.core.pool import Pool
from gasim_ray.core.settings import PoolSettings

SPEC = replace(tiny.VECTOR, shape=(1,), low=(None,), high=(None,))


def pool(capacity: int) -> Pool:
    return Pool(capacity, SPEC, 2, torch.device("cpu"))


def put(target: Pool, numbers: list[int]) -> None:
    values = torch.tensor(numbers, dtype=torch.float32).reshape(-1, 1)
    target.add(values, torch.cat([values, -values], 1))


def contents(source: Pool) -> list[int]:
    observations, answers = source.observations[: len(source), 0], source.answers[: len(source)]
    assert answers.tolist() == [[v, -v] for v in observations.tolist()]
    return sorted(int(v) for v in observations)


batch_sizes = st.lists(st.integers(1, 12), max_size=12)


@given(st.integers(1, 20), batch_sizes)
def test_it_holds_the_newest_that_fit(capacity: int, sizes: list[int]) -> None:
    filled, everything = pool(capacity), list[int]()
    for size in sizes:
        batch = list(range(len(everything), len(everything) + size))
        put(filled, batch)
        everything += batch
        assert contents(filled) == everything[-capacity:]
        assert filled.added == len(everything)


@given(st.integers(1, 20), batch_sizes, batch_sizes)
def test_a_restored_pool_goes_on_as_the_saved_one(capacity: int, before: list[int], after: list[int]) -> None:
    saved, restored = pool(capacity), pool(capacity)
    for size in before:
        put(saved, list(range(size)))
    saved.losses[: len(saved)] = torch.arange(len(saved), dtype=torch.float32)
    restored.load_state_dict(saved.state_dict())
    for size in after:
        put(saved, list(range(size)))
        put(restored, list(range(size)))
    for one, other in zip(saved.state_dict().values(), restored.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@given(st.integers(1, 20), st.integers(1, 20), batch_sizes, batch_sizes)
def test_a_pool_of_another_capacity_takes_the_newest(old: int, new: int, before: list[int], after: list[int]) -> None:
    saved, restored, everything = pool(old), pool(new), list[int]()
    for size in before:
        batch = list(range(len(everything), len(everything) + size))
        put(saved, batch)
        everything += batch
    restored.load_state_dict(saved.state_dict())
    everything = everything[-old:]
    for size in after:
        assert contents(restored) == everything[-new:]
        batch = list(range(1000 + len(everything), 1000 + len(everything) + size))
        put(restored, batch)
        everything += batch
    assert contents(restored) == everything[-new:]


def test_a_checkpoint_is_as_large_as_what_is_in_it() -> None:
    large = pool(1_000_000)
    put(large, [1, 2, 3])
    file = io.BytesIO()
    torch.save(large.state_dict(), file)
    assert file.tell() < 10_000


def test_a_saved_state_does_not_change_with_the_pool() -> None:
    source = pool(3)
    put(source, [1, 2, 3])
    state = source.state_dict()
    put(source, [7, 8, 9])
    assert state["observations"].flatten().tolist() == [1, 2, 3]


@given(st.integers(1, 9), st.integers(1, 30), st.floats(0, 1), st.integers(0, 99))
def test_only_what_was_put_in_is_drawn(added: int, count: int, hard: float, seed: int) -> None:
    source = pool(50)
    put(source, list(range(added)))
    slots = source.draw(count, hard, torch.Generator().manual_seed(seed))
    assert len(slots) == count
    assert bool(((slots >= 0) & (slots < added)).all())


def mean_loss(hard: float) -> float:
    source = pool(1000)
    put(source, list(range(1000)))
    source.losses[:] = torch.arange(1000, dtype=torch.float32)
    return float(source.losses[source.draw(400, hard, torch.Generator().manual_seed(0))].mean())


def test_the_hard_share_is_drawn_from_the_highest_losses() -> None:
    none, half, whole = mean_loss(0.0), mean_loss(0.5), mean_loss(1.0)
    assert 450 < none < 550
    assert whole > 850
    assert half == pytest.approx((none + whole) / 2, abs=30)


@given(hard=st.floats(0, 1), fade=st.just(0.0) | st.floats(0.01, 1), progress=st.floats(0, 1.5))
def test_the_hard_share_fades_at_the_end_of_the_budget(hard: float, fade: float, progress: float) -> None:
    settings = PoolSettings(hard=hard, fade=fade)
    share = settings.hard_share(progress)
    assert 0 <= share <= hard
    if fade == 0 or progress <= 1 - fade:
        assert share == pytest.approx(hard)
    assert settings.hard_share(1.0) == (0.0 if fade else hard)


def test_what_the_student_has_not_seen_counts_as_hardest() -> None:
    source = pool(200)
    put(source, list(range(100)))
    source.losses[:100] = 9.0
    put(source, list(range(100, 200)))
    slots = source.draw(50, 1.0, torch.Generator().manual_seed(0))
    assert bool((slots >= 100).all())


def test_drawing_from_an_empty_pool_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty"):
        pool(3).draw(1, 0.0, torch.Generator())


def test_observations_are_kept_in_their_smallest_type() -> None:
    images = Pool(2, tiny.ATARI, 3, torch.device("cpu"))
    assert images.observations.dtype == torch.uint8
    assert images.observations.shape == (2, 84, 84, 4)
