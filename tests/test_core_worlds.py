"""Worlds: what stays, what answers to actions, what bounces, and who plays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gasim_ray.core.model import Model
from gasim_ray.core.seeds import rng
from gasim_ray.core.worlds import (
    CHASING,
    DRIFTING,
    DRIVEN,
    STILL,
    Motion,
    Rally,
    World,
    Worlds,
    WorldSettings,
    advance,
    begin,
)
from gasim_ray.errors import UserError

FRAMES = replace(tiny.ATARI, layout="CHW", shape=(4, 84, 84))


def world(role: list[int], speed: list[list[float]], turns: bool = True) -> World:
    """One world of things of 4 by 2 pixels each, anywhere in a picture of 20 by 20; action 1 drives up, 2 down."""
    things = len(role)
    return World(
        ground=torch.zeros(1, 1),
        tone=torch.full((1, 1, things), 0.5),
        role=torch.tensor([role]),
        size=torch.tensor([4.0, 2.0]).expand(1, things, 2),
        low=torch.zeros(1, things, 2),
        high=torch.tensor([16.0, 18.0]).expand(1, things, 2),
        speed=torch.tensor([speed]),
        turns=torch.full((1, things, 2), turns),
        steering=torch.tensor([[0.0, -1.0, 1.0]]).unsqueeze(-1).expand(1, 3, 2),
    )


def after(world: World, place: list[list[float]], velocity: list[list[float]], action: int = 0) -> Motion:
    """One frame later."""
    moved = advance(world, Motion(torch.tensor([place]), torch.tensor([velocity])), torch.tensor([action]), rng("cpu"))
    return Motion(moved.place[0], moved.velocity[0])


@pytest.mark.parametrize(("action", "row"), [(0, 5.0), (1, 2.0), (2, 8.0)])
def test_an_action_drives_one_thing_along_its_axis(action: int, row: float) -> None:
    given = world([DRIVEN, STILL], [[3.0, 0.0], [3.0, 3.0]])
    moved = after(given, [[5.0, 5.0], [5.0, 5.0]], [[0.0, 0.0], [0.0, 0.0]], action)
    assert moved.place.tolist() == [[row, 5.0], [5.0, 5.0]]


def test_what_chases_goes_to_what_drifts_no_faster_than_it_can() -> None:
    given = world([CHASING, DRIFTING], [[2.0, 0.0], [5.0, 5.0]])
    still = [[0.0, 0.0], [0.0, 0.0]]
    assert after(given, [[5.0, 5.0], [10.0, 0.0]], still).place[0].tolist() == [7.0, 5.0]
    assert after(given, [[5.0, 5.0], [4.0, 0.0]], still).place[0].tolist() == [4.0, 5.0]
    nobody = replace(given, tone=given.tone * torch.tensor([1.0, 0.0]))
    assert after(nobody, [[5.0, 5.0], [10.0, 0.0]], still).place[0].tolist() == [5.0, 5.0]


def test_what_drifts_turns_round_at_the_end_of_its_range_or_begins_anew() -> None:
    at, towards = [[15.0, 5.0]], [[3.0, 1.0]]
    turned = after(world([DRIFTING], [[5.0, 5.0]]), at, towards)
    assert (turned.place.tolist(), turned.velocity.tolist()) == ([[16.0, 6.0]], [[-3.0, 1.0]])
    anew = after(world([DRIFTING], [[5.0, 5.0]], turns=False), at, towards)
    assert anew.place.tolist() != [[16.0, 6.0]]
    assert bool(((anew.place >= 0) & (anew.velocity.abs() <= 5)).all())


@pytest.mark.parametrize(("start", "speed", "ends"), [(11.5, -2.0, 2.0), (5.5, 2.0, -2.0)])
def test_what_drifts_bounces_off_what_is_driven(start: float, speed: float, ends: float) -> None:
    given = world([DRIVEN, DRIFTING], [[3.0, 0.0], [4.0, 4.0]])
    moved = after(given, [[5.0, 9.0], [6.0, start]], [[0.0, 0.0], [0.0, speed]])
    assert float(moved.velocity[1, 1]) == ends
    assert float(moved.velocity[1, 0]) > 0  # it was hit below the middle
    missed = after(given, [[5.0, 9.0], [12.0, start]], [[0.0, 0.0], [0.0, speed]])
    assert missed.velocity[1].tolist() == [0.0, speed]


@given(row=st.floats(3.0, 7.0), start=st.floats(0.0, 6.5), speed=st.floats(2.0, 18.0))
def test_nothing_is_so_fast_that_it_passes_through(row: float, start: float, speed: float) -> None:
    given = world([DRIVEN, DRIFTING], [[3.0, 0.0], [18.0, 18.0]], turns=False)
    place, way = torch.tensor([[[5.0, 9.0], [row, start]]]), torch.tensor([[[0.0, 0.0], [0.0, speed]]])
    motion = Motion(place, way)
    for _ in range(5):
        motion = advance(given, motion, torch.tensor([0]), rng("cpu"))
        if float(motion.velocity[0, 1, 1]) < 0:
            return
        assert float(motion.place[0, 1, 1]) < 9.0
    raise AssertionError("it neither came back nor passed")


def test_what_passes_the_corner_of_another_is_not_hit_by_it() -> None:
    # Its columns lie before the other's until a quarter of the frame has gone, its rows beneath from an eighth on.
    given = world([DRIVEN, DRIFTING], [[3.0, 0.0], [9.0, 9.0]])
    passed = after(given, [[8.0, 9.0], [11.5, 6.5]], [[0.0, 0.0], [4.0, 4.0]])
    assert passed.velocity[1].tolist() == [4.0, 4.0]
    for row in (4.0, 12.0):  # it touches, and goes along
        beside = after(given, [[8.0, 9.0], [row, 6.5]], [[0.0, 0.0], [0.0, 4.0]])
        assert beside.velocity[1].tolist() == [0.0, 4.0]
    hit = after(given, [[8.0, 9.0], [11.5, 6.5]], [[0.0, 0.0], [1.0, 4.0]])
    assert float(hit.velocity[1, 1]) == -4.0


def test_what_moves_along_both_axes_throws_things_back() -> None:
    given = world([DRIVEN, DRIFTING], [[3.0, 3.0], [4.0, 4.0]])
    beside = after(given, [[5.0, 9.0], [5.0, 6.0]], [[0.0, 0.0], [1.0, 2.0]])
    assert beside.velocity[1].tolist() == [1.0, -2.0]
    above = after(given, [[9.0, 9.0], [4.0, 9.0]], [[0.0, 0.0], [2.0, 0.5]])
    assert above.velocity[1].tolist() == [-2.0, 0.5]


def test_what_is_driven_moves_and_what_chases_does_so_along_one_axis() -> None:
    made = Worlds(tiny.model(FRAMES), "cpu").draw(300, rng("cpu", 0))
    axes = (made.speed > 0).sum(2)
    assert set(axes[:, 0].tolist()) == {1, 2}
    assert set(axes[:, 1].tolist()) == {1}
    assert made.steering.shape == (300, 3, 2)


def test_a_teacher_that_answers_nan_plays_in_no_world() -> None:
    teacher = tiny.model(FRAMES)
    next(teacher.parameters()).data.fill_(float("nan"))
    with pytest.raises(UserError, match="teacher: answered NaN"):
        Worlds(teacher, "cpu").sample(1, rng("cpu", 0))


@given(seed=st.integers(0, 10_000), moving=st.integers(2, 6), static=st.integers(0, 4), largest=st.floats(1.0, 60.0))
def test_things_stay_in_their_ranges_and_these_in_the_picture(
    seed: int, moving: int, static: int, largest: float
) -> None:
    settings = WorldSettings(moving=moving, static=static, largest=largest, kept=2)
    made = Worlds(tiny.model(FRAMES), "cpu", settings).draw(3, rng("cpu", seed))
    motion = begin(made, rng("cpu", seed, 1))
    for step in range(20):
        assert bool(((motion.place >= made.low) & (motion.place <= made.high)).all())
        assert bool(((motion.place >= 0) & (motion.place + made.size <= 84.001)).all())
        motion = advance(made, motion, torch.randint(3, (3,)), rng("cpu", seed, step))
    assert int((made.role == DRIVEN).sum()) == 3


def choosing(action: int) -> Model:
    """A teacher that always chooses this action."""
    teacher = tiny.model(FRAMES)
    for parameter in teacher.parameters():
        parameter.data.zero_()
    last = [m for m in teacher.modules() if isinstance(m, torch.nn.Linear)][-1]
    last.bias.data[action] = 50.0
    return teacher


def test_the_teacher_plays() -> None:
    def middles(action: int) -> Tensor:
        """Row of the driven thing at the end of forty worlds."""
        prior = Worlds(choosing(action), "cpu", WorldSettings(static=0, moving=2))
        made = prior.draw(40, rng("cpu", 0))
        drives = torch.tensor([-1.0, 0.0, 1.0]).reshape(1, 3, 1).expand(40, 3, 2)
        made = replace(made, steering=drives, tone=made.tone * torch.tensor([1.0, 0.0]))
        *_, (last, _, _) = prior.played(made, 40, rng("cpu", 1))
        frame = last[:, -1].float()
        thing = (frame - frame.flatten(1).median(1).values.reshape(-1, 1, 1)).abs().sum(2)
        return (thing * torch.arange(84)).sum(1) / thing.sum(1).clamp_min(1e-6)

    up, down = middles(0), middles(2)
    assert float((down - up).mean()) > 10


def test_frames_follow_each_other_and_the_layout_changes_nothing() -> None:
    prior = Worlds(tiny.model(FRAMES), "cpu", WorldSettings(kept=4, every=1))
    stacks = prior.sample(8, rng("cpu", 0))
    assert (stacks.shape, stacks.dtype) == ((8, 4, 84, 84), torch.uint8)
    assert torch.equal(stacks[2:, :3], stacks[:-2, 1:])  # two worlds, one decision further
    assert torch.equal(prior.sample(8, rng("cpu", 0)), stacks)
    other = Worlds(tiny.model(tiny.ATARI), "cpu", WorldSettings(kept=4, every=1)).sample(3, rng("cpu", 0))
    assert other.shape == (3, 84, 84, 4)


def test_the_rally_is_made_for_six_actions_and_knows_a_game() -> None:
    prior = Rally(tiny.model(FRAMES, actions=6), "cpu")
    assert (prior.knowledge, Worlds.knowledge) == ("domain", "generic")
    stacks = prior.sample(32, rng("cpu", 0)).float()
    bright = stacks[:, -1] > 200
    assert bool(bright[:, 11].all())  # the upper wall
    assert bool(bright[:, 20:70].flatten(1).any(1).float().mean() > 0.5)  # the ball, which may be next to a wall
    small = replace(FRAMES, shape=(4, 42, 42))
    assert bool((Rally(tiny.model(small, actions=6), "cpu").draw(3, rng("cpu", 0)).size >= 1).all())
    with pytest.raises(UserError, match="six actions of Pong, the teacher 3; take 'worlds'"):
        Rally(tiny.model(FRAMES), "cpu")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"moving": 1}, r"worlds\.moving: 1 is impossible; give at least 2"),
        ({"smallest": 5.0, "largest": 2.0}, r"worlds\.largest: 2\.0 is impossible; give at least 5"),
        ({"kept": 0}, r"worlds\.kept: 0 is impossible"),
    ],
)
def test_impossible_settings(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        WorldSettings(**wrong)


def test_a_teacher_of_vectors_has_no_worlds() -> None:
    with pytest.raises(UserError, match=r"generator\.prior: worlds is of pictures; a vector teacher"):
        Worlds(tiny.model(tiny.VECTOR), "cpu")
