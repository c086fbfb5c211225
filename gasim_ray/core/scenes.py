"""Scenes: stacks of successive frames in which a few things move over a still ground, as in any video (generic).

Everything is a box, a box whose rows and columns are struck out at random (which looks like text or a grid), or noise:
such a picture is a sum over things of a column of pixels times a row, so that a batch is one product of matrices. Where
things overlap, their tones add.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from gasim_ray.core.model import Model
from gasim_ray.core.observation import ObservationSpec
from gasim_ray.core.outputs import kl, log_policy
from gasim_ray.core.prior import Knowledge, Prior, random_bytes, uniform
from gasim_ray.core.seeds import rng
from gasim_ray.core.settings import check_range
from gasim_ray.errors import UserError

#: Stacks that are made up at once, whose pixels are drawn at once, so few that they stay in a core's cache, and that a
#: teacher answers at once.
MADE, CHUNK, ANSWERED = 256, 16, 64
#: Levels of the ground that are compared, from the lower bound to the upper; scenes that each is judged by; and
#: which share of what the best one tells makes another, that tells so much less, e times less likely.
LEVELS, TELLING_SCENES, TOLD = 11, 1024, 0.03
#: Largest side and contrast of the things in those scenes.
SMALL, FAINT = 16.0, 0.3
#: Places that are tried along each axis for where the teacher looks, and the side of the thing that is put there.
PLACES, LOOKED = 14, 4.0


@dataclass(frozen=True)
class SceneSettings:
    """What scenes are made of. Sizes are in pixels of an 84 pixels wide picture, tones in shares of the bounds."""

    section = "scenes"

    sprites: int = 6
    """Most things that move; each is there with one half of the chances."""

    static: int = 4
    """Most things that stay, likewise."""

    smallest: float = 1.0
    """Shortest side of a thing; sides are log-uniform, height and width each for itself."""

    largest: float = 40.0
    """Longest side."""

    speed: float = 6.0
    """Most that a thing moves between two frames, down and to the right; it turns round at the border."""

    text: float = 0.2
    """Share of the things that stay of which rows and columns are struck out at random."""

    bands: float = 0.0
    """Share of the things that stay which reach from border to border, across the picture or down it."""

    still: float = 0.0
    """Share of scenes in which nothing moves."""

    noise: float = 0.05
    """Share of stacks with noise on every pixel."""

    contrast: float = 1.0
    """Most that a thing's tone differs from the ground."""

    faintest: float = 0.0
    """Lowest contrast of a scene: each draws its own, log-uniform from here to `contrast`; with 0 all have `contrast`,
    to which `rendered` generators may raise any."""

    telling: bool = False
    """Whether the ground has mostly the levels at which a scene tells most of what the teacher does
    (telling_levels), which its weights tell when a generator starts, instead of any; in colours mostly greys."""

    looked_at: float = 0.0
    """Share of the things that lie where the teacher looks (telling_places); the others lie anywhere."""

    def __post_init__(self) -> None:
        shares = ("text", "bands", "still", "noise", "looked_at", "contrast")
        numbers = (*shares, "sprites", "static", "speed", "faintest")
        at_most = {**dict.fromkeys(shares, 1.0), "sprites": 100.0, "static": 100.0, "faintest": self.contrast}
        check_range(self, {**dict.fromkeys(numbers, 0.0), "smallest": 0.1, "largest": self.smallest}, at_most)


def check_frames(spec: ObservationSpec, prior: str) -> None:
    """Raise UserError, naming the prior, if a teacher of these observations sees no successive frames."""
    if not spec.is_image:
        raise UserError(f"generator.prior: {prior} is of pictures; a vector teacher takes 'geometry' or 'uniform'")
    if spec.stack < 2:
        raise UserError(
            f"generator.prior: {prior} is of successive frames; a teacher of single pictures takes 'leaves'"
        )


def covering(line: Tensor, first: Tensor, size: Tensor) -> Tensor:
    """1 where things (...) that begin at `first` and have a whole `size` cover a line's pixels, else 0: (..., side)."""
    start = first.floor().unsqueeze(-1)
    return ((line >= start) & (line < start + size.unsqueeze(-1))).float()


def factors(ground: Tensor, tone: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """What frames (N, frames, colours, height, width) are the product of, in which each thing adds its tone to what it
    covers of the ground.

    ground: (N, colours); tone: (N, colours, things); rows: (N, frames, things, height), how far a thing covers a row;
    columns likewise.
    """
    tones = torch.cat([ground.unsqueeze(2), tone], 2)
    rows, columns = (F.pad(covers, (0, 0, 1, 0), value=1.0) for covers in (rows, columns))
    return (tones[:, None, :, :, None] * rows.unsqueeze(2)).transpose(3, 4), columns.unsqueeze(2)


def drawn(ground: Tensor, tone: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The frames; see `factors`."""
    tall, wide = factors(ground, tone, rows, columns)
    return tall @ wide


@dataclass(frozen=True)
class Things:
    """What scenes (N) are made of: a ground and things (T); axis 0 is down, 1 to the right; lengths are in pixels."""

    #: (N, colours): tone of the ground, in shares of the bounds.
    ground: Tensor
    #: (N, colours, T): what a thing adds to it; 0 if it is not there.
    tone: Tensor
    #: (N, T, 2): sides.
    size: Tensor
    #: (N, T, 2): where its first row and column are at first, on the way there and back.
    way: Tensor
    #: (N, T, 2): how far it moves from frame to frame.
    speed: Tensor
    #: For each axis (N, 1, things that stay, side): 0 for rows and columns that are struck out; empty for none.
    kept: tuple[Tensor, ...]


class Scenes(Prior):
    """Things in motion over a ground of random level; raises UserError for a teacher that sees no stacked frames."""

    knowledge: Knowledge = "generic"

    def __init__(self, teacher: Model, device: torch.device | str, settings: SceneSettings | None = None) -> None:
        super().__init__(teacher, device)
        check_frames(self.spec, "scenes")
        teacher = teacher.to(self.device)
        self.settings = settings or SceneSettings()
        self.frames = torch.arange(self.spec.stack, device=self.device).reshape(1, -1, 1)
        channels, *sides = self.spec.network_shape
        #: Channels of one frame: in each a thing has a tone of its own.
        self.colours = channels // self.spec.stack
        self.sides = [torch.arange(side, device=self.device, dtype=torch.float32) for side in sides]
        #: (2,): height and width in pixels.
        self.extent = torch.tensor(sides, device=self.device, dtype=torch.float32)
        #: How likely each of LEVELS is, where not all are alike.
        self.odds: Tensor | None = None
        if self.settings.telling:
            told = telling_levels(teacher, self.device, self.settings)
            self.odds = torch.softmax(told / (TOLD * told.max()).clamp_min(1e-6), 0)
        #: How likely a thing lies in each square of the picture, PLACES by PLACES, where the teacher's look decides.
        self.places: Tensor | None = None
        if self.settings.looked_at and self.settings.sprites + self.settings.static:
            self.places = telling_places(teacher, self)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """See Prior; in the spec's dtype already, since at this rate each pass over the pixels counts."""
        shape = self.spec.network_shape
        stacks = torch.empty((count, *shape), dtype=self.spec.torch_dtype, device=self.device)
        made, chunk = (MADE, CHUNK) if self.device.type == "cpu" else (count, count)
        for part in torch.split(stacks, made):
            tall, wide = self._factors(self.things(len(part), generator))
            for start in range(0, len(part), chunk):
                some = slice(start, start + chunk)
                pictured = self.noisy(tall[some] @ wide[some], generator).reshape(-1, *shape)
                # To bytes PyTorch converts one by one, to 16 bits many at once.
                part[some] = pictured.short() if part.dtype == torch.uint8 else pictured
        return self.spec.arranged(stacks).contiguous()

    def grounds(self, count: int, generator: torch.Generator) -> Tensor:
        """Levels of so many scenes' grounds: (count, colours)."""
        if self.odds is None:
            return uniform(generator, (count, self.colours))
        places = torch.multinomial(self.odds, count, replacement=True, generator=generator).unsqueeze(1)
        near = uniform(generator, (count, self.colours), -0.5, 0.5)
        return ((places + near) / (LEVELS - 1)).clamp(0, 1)

    def watched(self, size: Tensor, speed: Tensor, generator: torch.Generator) -> Tensor:
        """Where things (N, T, 2) of these sizes and speeds begin that are in the last frame where the teacher looks."""
        assert self.places is not None
        squares = torch.multinomial(self.places, size[..., 0].numel(), replacement=True, generator=generator)
        corner = torch.stack([squares // PLACES, squares % PLACES], 1).reshape(size.shape)
        middle = (corner + uniform(generator, size.shape)) * self.extent / PLACES
        last = torch.minimum((middle - size / 2).clamp_min(0), self.extent - size)
        return last - speed * (self.spec.stack - 1)

    def filled(self, count: int, generator: torch.Generator) -> Tensor:
        """Which sides of things would reach from border to border: (count, things, 2), at most one of each."""
        shape = (count, self.settings.sprites + self.settings.static, 1)
        band, across = uniform(generator, shape) < self.settings.bands, uniform(generator, shape) < 0.5
        return band & torch.cat([~across, across], 2)

    def pictured(self, things: Things, softness: float = 0.0) -> Tensor:
        """Stacks (N, frames, colours, height, width) float32, of which tones may add up to beyond the bounds.

        With softness edges have a gradient, as if they faded over so many pixels; they are drawn hard all the same.
        """
        tall, wide = self._factors(things, softness)
        return tall @ wide

    def _factors(self, things: Things, softness: float = 0.0) -> tuple[Tensor, Tensor]:
        low, high = self.spec.picture_range
        covered = [self._covered(things, axis, softness) for axis in (0, 1)]
        return factors(low + (high - low) * things.ground, (high - low) * things.tone, *covered)

    def _covered(self, things: Things, axis: int, softness: float) -> Tensor:
        """How far each thing covers each row, for axis 0, or column: (N, frames, things, side)."""
        line, size = self.sides[axis], things.size[..., axis].unsqueeze(1)
        room = (len(line) - size).clamp_min(1e-3)
        way = things.way[..., axis].unsqueeze(1) + things.speed[..., axis].unsqueeze(1) * self.frames
        # A thing that turns round at the border: there and back, over and over.
        first = room - (way % (2 * room) - room).abs()
        covers = covering(line, first, size.round())
        if softness:
            start = (first - 0.5).unsqueeze(-1)  # where `floor` puts it on average
            past, left = line - start + 0.5, start + size.unsqueeze(-1) - line - 0.5
            soft = torch.sigmoid(past / softness) * torch.sigmoid(left / softness)
            # What is seen has hard edges; only the gradient is that of soft ones.
            covers = soft + (covers - soft).detach()
        if len(things.kept[axis]):
            covers[:, :, self.settings.sprites :] *= things.kept[axis]
        return covers

    def noisy(self, stacks: Tensor, generator: torch.Generator) -> Tensor:
        """Some of the stacks, in place, with noise on every pixel."""
        low, high = self.spec.picture_range
        if self.settings.noise:
            noisy = (uniform(generator, (len(stacks),)) < self.settings.noise).nonzero()[:, 0]
            # Of less than a step from byte to byte nothing would be seen.
            strength = (high - low) * uniform(generator, (len(noisy), 1, 1, 1, 1), 1 / 255, 0.25)
            # A uniform number for each pixel takes several times as long as a byte.
            pixels = random_bytes(generator, (len(noisy), *stacks.shape[1:]))
            stacks.index_add_(0, noisy, strength * (pixels / 255 - 0.5))
        return stacks.clamp_(low, high)

    def things(self, count: int, generator: torch.Generator) -> Things:
        """What so many scenes are made of."""
        given = self.settings
        shape = (count, given.sprites + given.static, 2)
        scale = self.extent / 84
        moving = (torch.arange(shape[1], device=self.device) < given.sprites).unsqueeze(1)
        size = uniform(generator, shape, log(given.smallest), log(given.largest)).exp() * scale
        size = torch.minimum(size.round().clamp_min(1), self.extent)
        if given.bands:
            size = torch.where(self.filled(count, generator) & ~moving, self.extent, size)
        speed = uniform(generator, shape, -given.speed, given.speed) * scale * moving
        speed = speed * (uniform(generator, shape) < 2 / 3)
        if given.still:
            speed = speed * (uniform(generator, (count, 1, 1)) >= given.still)
        there = uniform(generator, (count, 1, shape[1])) < 0.5
        tone = uniform(generator, (count, self.colours, shape[1]), -given.contrast, given.contrast)
        if given.faintest:
            tone = tone * uniform(generator, (count, 1, 1), log(given.faintest / given.contrast), 0.0).exp()
        struck = (uniform(generator, (count, 1, given.static, 1)) < given.text) & bool(given.text)
        kept = [
            ((uniform(generator, (count, 1, given.static, len(side))) < 0.5) | ~struck).float()
            for side in self.sides
            if given.text and given.static
        ]
        way = uniform(generator, shape) * 2 * (self.extent - size)
        if self.places is not None:
            chosen = uniform(generator, (*shape[:2], 1)) < given.looked_at
            way = torch.where(chosen, self.watched(size, speed, generator), way)
        return Things(
            ground=self.grounds(count, generator),
            tone=tone * there,
            size=size,
            way=way,
            speed=speed,
            kept=tuple(kept) or (torch.empty(0), torch.empty(0)),
        )


@torch.no_grad()
def telling_levels(teacher: Model, device: torch.device, settings: SceneSettings) -> Tensor:
    """Mutual information (LEVELS,), in nats, of the teacher's action and scenes whose ground has each of the levels.

    Own. A policy differs most between pictures such as it was trained on; others move it less, or all one way. So its
    weights tell how bright its game's ground is, if the things are small and faint: others change the level themselves.
    They are the same things for each level.
    """
    small, faint = max(settings.smallest, min(SMALL, settings.largest)), min(FAINT, settings.contrast)
    off: dict[str, Any] = dict.fromkeys(("looked_at", "faintest", "noise", "bands", "still"), 0.0)
    judged = replace(settings, telling=False, largest=small, contrast=faint, **off)
    scenes, told = Scenes(teacher, device, judged), []
    for odds in torch.eye(LEVELS, device=device):
        scenes.odds = odds
        stacks = scenes.sample(TELLING_SCENES, rng(device, 0))
        outputs = torch.cat([teacher(part) for part in torch.split(stacks, ANSWERED)])
        policy = log_policy(outputs, teacher.config.output_scale).exp()
        told.append(torch.special.entr(policy.mean(0)).sum() - torch.special.entr(policy).sum(1).mean())
    return torch.stack(told)


@torch.no_grad()
def telling_places(teacher: Model, scenes: Scenes) -> Tensor:
    """How much a small and faint thing changes what the teacher does, place by place: (PLACES * PLACES,), sum 1.

    Own: the mean KL, over scenes, of the policy without the thing to that with it, as a share of all places'. So
    weights tell where a policy looks, without a picture of its game.
    """
    count, scale, random = 64, teacher.config.output_scale, rng(scenes.device, 1)
    things = scenes.things(count, random)
    tone = FAINT * torch.where(uniform(random, (count, 1)) < 0.5, -1.0, 1.0).expand_as(things.tone[..., 0])
    if not scenes.settings.sprites:  # it is one of those that stay, of which rows may be struck out
        things = replace(things, kept=(torch.empty(0), torch.empty(0)))

    def answered(place: Tensor, tone: Tensor) -> Tensor:
        changed = replace(things, **{name: getattr(things, name).clone() for name in ("tone", "size", "way", "speed")})
        changed.tone[..., 0], changed.speed[:, 0] = tone, 0.0
        changed.size[:, 0], changed.way[:, 0] = side, place
        stacks = scenes.pictured(changed).clamp(*scenes.spec.picture_range).flatten(1, 2)
        return log_policy(teacher(scenes.spec.arranged(stacks.to(scenes.spec.torch_dtype))), scale)

    side = (scenes.extent * LOOKED / 84).round().clamp_min(1)
    steps = torch.cartesian_prod(*(torch.linspace(0, 1, PLACES, device=scenes.device) for _ in range(2)))
    without = answered(torch.zeros_like(side), torch.zeros_like(tone))
    with_it = [answered(step * (scenes.extent - side), tone) for step in steps]
    changes = torch.stack([kl(without, other).mean() for other in with_it])
    return (changes + 1e-9) / (changes + 1e-9).sum()
