"""Worlds: stacks of frames from small scenes that go on for a while under the teacher's own policy, as a game does.

A world holds a few boxes with a role each: some stay, some drift and turn round or begin anew at the end of their
range, some chase what drifts, and one is driven by the action that the teacher chooses on the frames so far. What
drifts bounces off what is driven or chases. Which actions drive where is drawn with the world, so nothing of a game is
known (generic); `Rally` is the one world that is made by hand, after Pong (domain), to see what knowing the game would
be worth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from math import log

import torch
from torch import Tensor

from gasim_ray.core.model import Model, check_finite
from gasim_ray.core.outputs import log_policy
from gasim_ray.core.prior import Knowledge, Prior, uniform
from gasim_ray.core.scenes import check_frames, covering, drawn
from gasim_ray.core.settings import check_range
from gasim_ray.errors import UserError

STILL, DRIFTING, DRIVEN, CHASING = range(4)
#: Share of decisions that are random instead of the teacher's.
RANDOM_ACTIONS = 0.05


@dataclass(frozen=True)
class WorldSettings:
    """What worlds are made of. Sizes are in pixels of an 84 pixels wide picture, tones in shares of the bounds."""

    section = "worlds"

    moving: int = 4
    """Most things that move: one that is driven, one that chases, the others drift; but for the first, each is there
    with two thirds of the chances."""

    static: int = 4
    """Most things that stay, each with one half of the chances."""

    smallest: float = 1.0
    """Shortest side of a thing; sides are log-uniform, height and width each for itself."""

    largest: float = 16.0
    """Longest side of what moves; what stays is up to as wide as the picture."""

    speed: float = 5.0
    """Most that a thing moves between two frames, along each axis."""

    contrast: float = 1.0
    """Most that a thing's tone differs from the ground."""

    kept: int = 16
    """Observations taken of each world."""

    every: int = 2
    """Decisions from one of these to the next."""

    value_bound: float = 1.0
    """Values beyond this speak against a world that is evolved; 1 suits a game of which one point is at stake."""

    def __post_init__(self) -> None:
        numbers = ("static", "speed", "contrast", "value_bound")
        least = {**dict.fromkeys(numbers, 0.0), "moving": 2, "kept": 1, "every": 1, "smallest": 0.1}
        check_range(self, {**least, "largest": self.smallest}, {"moving": 100, "static": 100, "contrast": 1.0})


@dataclass(frozen=True)
class World:
    """Several worlds (N) of as many things each (T); axis 0 is down, 1 to the right; lengths are in pixels."""

    #: (N, colours): tone of the ground, in shares of the bounds.
    ground: Tensor
    #: (N, colours, T): what a thing adds to it; 0 if it is not there.
    tone: Tensor
    #: (N, T) int64: STILL, DRIFTING, DRIVEN or CHASING.
    role: Tensor
    #: (N, T, 2): sides.
    size: Tensor
    #: (N, T, 2): least and greatest place of its first row and column.
    low: Tensor
    high: Tensor
    #: (N, T, 2): most that it moves in one frame; 0 along an axis on which it does not move.
    speed: Tensor
    #: (N, T, 2) bool: whether a thing that drifts turns round at the end of its range, instead of beginning anew.
    turns: Tensor
    #: (N, actions, 2) of -1 to 1: where an action drives the thing that is driven.
    steering: Tensor


@dataclass(frozen=True)
class Motion:
    """Where things are and how they move, (N, T, 2) each."""

    place: Tensor
    velocity: Tensor


def begin(world: World, rng: torch.Generator) -> Motion:
    """Everything somewhere in its range; what drifts does so at up to its speed, either way."""
    shape = tuple(world.size.shape)
    place = world.low + (world.high - world.low) * uniform(rng, shape)
    velocity = world.speed * uniform(rng, shape, -1.0, 1.0)
    return Motion(place, velocity * (world.role == DRIFTING).unsqueeze(-1))


def advance(world: World, motion: Motion, actions: Tensor, rng: torch.Generator) -> Motion:
    """One frame later, after actions (N,) int64: first what is driven or chases moves, then what drifts."""
    place = motion.place
    drifts, driven, chases = ((world.role == role).unsqueeze(-1) for role in (DRIFTING, DRIVEN, CHASING))
    wanted = world.steering[torch.arange(len(actions), device=actions.device), actions].unsqueeze(1) * world.speed
    towards = chased(world, place).clamp(-world.speed, world.speed)
    steered = driven * wanted + chases * towards
    place = torch.where(drifts, place, (place + steered).clamp(world.low, world.high))
    velocity = torch.where(drifts, bounced(world, place, motion.velocity), steered)
    place = torch.where(drifts, place + velocity, place)
    out = (place < world.low) | (place > world.high)
    velocity = torch.where(drifts & out & world.turns, -velocity, velocity)
    place = place.clamp(world.low, world.high)
    gone = (drifts & out & ~world.turns).any(-1, keepdim=True)
    fresh = begin(world, rng)
    return Motion(torch.where(gone, fresh.place, place), torch.where(gone, fresh.velocity, velocity))


def chased(world: World, place: Tensor) -> Tensor:
    """From the middle of each thing to that of the first that drifts, (N, T, 2); 0 where nothing does."""
    middle = place + world.size / 2
    drifts = (world.role == DRIFTING) & (world.tone != 0).any(1)
    first = drifts.float().argmax(1).reshape(-1, 1, 1).expand(-1, 1, 2)
    return (middle.gather(1, first) - middle) * drifts.any(1).reshape(-1, 1, 1)


def bounced(world: World, place: Tensor, velocity: Tensor) -> Tensor:
    """Velocities (N, T, 2) after things have met one that is driven or chases, if their ways touch within this frame.

    They turn away from it along the axis on which it cannot move, and take on along the other where they hit. From one
    that moves along both axes they turn away along the axis on which they are farther off.
    """
    middle = place + world.size / 2
    paddle = ((world.role == DRIVEN) | (world.role == CHASING)) & (world.tone != 0).any(1)
    # Of each thing (axis 1) and each other (axis 2): the way in this frame, from that one's middle.
    start = middle.unsqueeze(2) - middle.unsqueeze(1)
    end = start + velocity.unsqueeze(2)
    reach = (world.size.unsqueeze(2) + world.size.unsqueeze(1)) / 2
    # When in this frame they begin and cease to overlap, along each axis; what stands still does so always or never.
    moved = torch.where(velocity == 0, 1e-6, velocity).unsqueeze(2)
    one, another = (-reach - start) / moved, (reach - start) / moved
    first = torch.minimum(one, another).amax(-1).clamp_min(0)
    last = torch.maximum(one, another).amin(-1).clamp_max(1)
    beside = ((velocity == 0).unsqueeze(2) & (start.abs() >= reach)).any(-1)
    touches = (first < last) & ~beside & paddle.unsqueeze(1)
    other = touches.float().argmax(2, keepdim=True)

    def of_other(values: Tensor) -> Tensor:
        """(N, T, T, 2) -> (N, T, 2)."""
        return values.gather(2, other.unsqueeze(-1).expand(-1, -1, 1, 2)).squeeze(2)

    start, where = of_other(start / reach), of_other(end / reach).clamp(-1, 1)
    fixed = (world.speed == 0).gather(1, other.expand(-1, -1, 2))
    upright = start[..., :1].abs() > start[..., 1:].abs()
    normal = torch.where(fixed.any(2, keepdim=True), fixed, torch.cat([upright, ~upright], 2))
    away = torch.where(start < 0, -1.0, 1.0) * velocity.abs()
    along = torch.where(fixed.any(2, keepdim=True), world.speed * where, velocity)
    return torch.where(touches.any(2, keepdim=True), torch.where(normal, away, along), velocity)


class Worlds(Prior):
    """Frames of small worlds with things that drift, chase and are driven by the teacher's actions.

    Raises UserError for a teacher that sees no stacked frames.
    """

    knowledge: Knowledge = "generic"

    def __init__(self, teacher: Model, device: torch.device | str, settings: WorldSettings | None = None) -> None:
        super().__init__(teacher, device)
        check_frames(self.spec, type(self).__name__.lower())
        self.teacher, self.settings = teacher.to(self.device), settings or WorldSettings()
        channels, *self.sides = self.spec.network_shape
        self.colours = channels // self.spec.stack
        #: Pixels for one pixel of an 84 pixels wide picture, for each axis.
        self.scale = torch.tensor(self.sides, device=self.device) / 84

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """See Prior; in the spec's dtype already."""
        return self.stacks(self.draw(-(-count // self.settings.kept), generator), generator)[:count]

    def stacks(self, worlds: World, generator: torch.Generator) -> Tensor:
        """What the teacher sees in each of the worlds, (N * settings.kept, *spec.shape)."""
        kept, every = self.settings.kept, self.settings.every
        shown = islice(self.played(worlds, kept * every, generator), every - 1, None, every)
        return torch.cat([stacks for stacks, _, _ in shown])

    @torch.no_grad()
    def played(self, world: World, steps: int, rng: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """At each decision what the teacher sees (N, *spec.shape), its outputs and, if it has them, values (N,).

        Actions are drawn from its policy, now and then at random.
        """
        teacher, motion = self.teacher, begin(world, rng)
        actions = torch.zeros(len(world.ground), dtype=torch.int64, device=self.device)
        frames: list[Tensor] = []
        for step in range(1 - self.spec.stack, steps):
            frames = [*frames[1 - self.spec.stack :], self.frame(world, motion.place)]
            if step >= 0:
                stacks = self.spec.arranged(torch.cat(frames, 1)).contiguous()
                outputs, values = teacher.with_value(stacks) if teacher.config.value else (teacher(stacks), None)
                policy = log_policy(check_finite(outputs, "teacher"), teacher.config.output_scale).exp()
                yield stacks, outputs, values
                policy = (1 - RANDOM_ACTIONS) * policy + RANDOM_ACTIONS / policy.shape[1]
                actions = torch.multinomial(policy, 1, generator=rng).squeeze(1)
            motion = advance(world, motion, actions, rng)

    def frame(self, world: World, place: Tensor) -> Tensor:
        """One frame (N, colours, height, width) in the spec's dtype."""
        low, high = self.spec.picture_range
        covered = [
            covering(torch.arange(side, device=self.device), place[..., axis], world.size[..., axis]).unsqueeze(1)
            for axis, side in enumerate(self.sides)
        ]
        frame = drawn(low + (high - low) * world.ground, (high - low) * world.tone, *covered)
        return frame.squeeze(1).clamp_(low, high).to(self.spec.torch_dtype)

    def draw(self, count: int, rng: torch.Generator) -> World:
        """So many worlds, drawn anew."""
        given = self.settings
        things = given.moving + given.static
        shape = (count, things)
        still = torch.arange(things, device=self.device) >= given.moving
        room = torch.tensor(self.sides, device=self.device, dtype=torch.float32)
        longest = torch.where(still, 84.0, given.largest).unsqueeze(-1)
        size = (log(given.smallest) + uniform(rng, (*shape, 2)) * (longest / given.smallest).log()).exp()
        size = torch.minimum((size * self.scale).round().clamp_min(1), room)
        role = torch.full(shape, DRIFTING, device=self.device)
        role[:, 0], role[:, 1], role[:, still] = DRIVEN, CHASING, STILL
        # Each thing has a range of its own: most of the picture, or along an axis on which it does not move, one place.
        # What chases moves along one axis: along both it would hold on to what it chases.
        first, both = uniform(rng, (*shape, 1)) < 0.5, uniform(rng, (*shape, 1)) < 0.5
        both = (role == DRIFTING).unsqueeze(-1) | (both & (role == DRIVEN).unsqueeze(-1))
        free = (torch.cat([first, ~first], 2) | both) & ~still.unsqueeze(-1)
        steering = torch.randint(-1, 2, (count, self.teacher.config.actions, 2), generator=rng, device=self.device)
        ends = uniform(rng, (*shape, 2, 2)) * torch.tensor([0.3, -0.3], device=self.device)
        ends = (ends + torch.tensor([0.0, 1.0], device=self.device)) * (room - size).unsqueeze(-1)
        fixed = uniform(rng, (*shape, 2)) * (room - size)
        low, high = (torch.where(free, ends[..., end], fixed) for end in (0, 1))
        speed = uniform(rng, (*shape, 2), 0.1, 1.0) * given.speed * self.scale * free
        there = torch.where(still, 0.5, 2 / 3)
        there[0] = 1.0
        tone = uniform(rng, (count, self.colours, things), -given.contrast, given.contrast)
        return World(
            ground=uniform(rng, (count, self.colours)),
            tone=tone * (uniform(rng, (count, 1, things)) < there),
            role=role,
            size=size,
            low=low,
            high=high,
            speed=speed,
            turns=uniform(rng, (*shape, 2)) < 2 / 3,
            steering=steering.float(),
        )


#: role; height, width; first row and column, least and greatest; most rows and columns a frame; tone above the ground.
RALLY = (
    (DRIVEN, (6.0, 2.0), (13.0, 73.0), (71.0, 73.0), (5.0, 0.0), 0.24),
    (CHASING, (6.0, 2.0), (13.0, 8.0), (71.0, 8.0), (2.5, 0.0), 0.24),
    (DRIFTING, (2.0, 1.0), (13.0, 0.0), (75.0, 83.0), (4.0, 4.0), 0.58),
    (STILL, (4.0, 84.0), (9.5, 0.0), (9.5, 0.0), (0.0, 0.0), 0.58),
    (STILL, (6.0, 84.0), (77.5, 0.0), (77.5, 0.0), (0.0, 0.0), 0.58),
)
#: What Pong's six actions do to the paddle: nothing, nothing, up, down, up, down.
RALLY_STEERING = (0.0, 0.0, -1.0, 1.0, -1.0, 1.0)


class Rally(Worlds):
    """Pong as one remembers it: two paddles, a ball between two walls, made by hand as a reference (domain).

    Of the settings it takes `kept` and `every`. Raises UserError for a teacher of other than six actions.
    """

    knowledge: Knowledge = "domain"

    def __init__(self, teacher: Model, device: torch.device | str, settings: WorldSettings | None = None) -> None:
        super().__init__(teacher, device, settings)
        actions = teacher.config.actions
        if actions != len(RALLY_STEERING):
            raise UserError(f"generator.prior: rally has the six actions of Pong, the teacher {actions}; take 'worlds'")

    def draw(self, count: int, rng: torch.Generator) -> World:
        """See Worlds; all alike but for tones, which vary by a few hundredths."""
        columns = [torch.tensor(column, device=self.device) for column in zip(*RALLY, strict=True)]
        role, size, low, high, speed, tone = (column.expand(count, *column.shape) for column in columns)
        tones = tone.unsqueeze(1) + uniform(rng, (count, self.colours, len(RALLY)), -0.04, 0.04)
        return World(
            ground=0.34 + uniform(rng, (count, self.colours), -0.04, 0.04),
            tone=tones,
            role=role,
            size=(size * self.scale).round().clamp_min(1),
            low=low * self.scale,
            high=high * self.scale,
            speed=speed * self.scale,
            turns=torch.tensor([True, False], device=self.device).expand(count, len(RALLY), 2),
            steering=torch.tensor(RALLY_STEERING, device=self.device).unsqueeze(1).expand(count, -1, 2),
        )
