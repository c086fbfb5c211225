"""Scenes: stacks of successive frames in which a few things move over a still ground, as in any video (generic).

Everything is a box, a box whose rows and columns are struck out at random (which looks like text or a grid), or noise:
such a picture is a sum over things of a column of pixels times a row, so that a batch is one product of matrices. Where
things overlap, their tones add.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from gasim_ray.core.model import Model
from gasim_ray.core.observation import ObservationSpec
from gasim_ray.core.prior import Knowledge, Prior
from gasim_ray.core.settings import check_range
from gasim_ray.errors import UserError

#: Stacks that are drawn at once: few enough that they stay in a core's cache.
CHUNK = 64


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

    noise: float = 0.05
    """Share of stacks with noise on every pixel."""

    contrast: float = 1.0
    """Most that a thing's tone differs from the ground."""

    def __post_init__(self) -> None:
        numbers = ("sprites", "static", "speed", "text", "noise", "contrast")
        at_most = {"text": 1.0, "noise": 1.0, "contrast": 1.0, "sprites": 100.0, "static": 100.0}
        check_range(self, {**dict.fromkeys(numbers, 0.0), "smallest": 0.1, "largest": self.smallest}, at_most)


def check_frames(spec: ObservationSpec) -> None:
    """Raise UserError if a teacher of these observations sees no successive frames."""
    if not spec.is_image:
        raise UserError("generator.prior: scenes are pictures; a vector teacher takes 'geometry' or 'uniform'")
    if spec.stack < 2:
        raise UserError("generator.prior: scenes are successive frames; a teacher of single pictures takes 'leaves'")


def drawn(tones: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Frames (N, frames, colours, height, width) in which each thing adds its tone to what it covers.

    tones: (N, colours, things); rows: (N, frames, things, height), 1 where a thing covers the row; columns likewise.
    """
    return (tones[:, None, :, :, None] * rows.unsqueeze(2)).transpose(3, 4) @ columns.unsqueeze(2)


class Scenes(Prior):
    """Things in motion over a ground of random level; raises UserError for a teacher that sees no stacked frames."""

    knowledge: Knowledge = "generic"

    def __init__(self, teacher: Model, device: torch.device | str, settings: SceneSettings | None = None) -> None:
        super().__init__(teacher, device)
        check_frames(self.spec)
        self.settings = settings or SceneSettings()
        self.frames = torch.arange(self.spec.stack, device=self.device).reshape(1, -1, 1)
        channels, *sides = self.spec.network_shape
        #: Channels of one frame: in each a thing has a tone of its own.
        self.colours = channels // self.spec.stack
        self.sides = [torch.arange(side, device=self.device, dtype=torch.float32) for side in sides]

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """See Prior; in the spec's dtype already, since at this rate each pass over the pixels counts."""
        shape = self.spec.network_shape
        stacks = torch.empty((count, *shape), dtype=self.spec.torch_dtype, device=self.device)
        chunk = CHUNK if self.device.type == "cpu" else count
        for start in range(0, count, chunk):
            part = stacks[start : start + chunk]
            part.copy_(self._drawn(len(part), generator).reshape(part.shape))
        return stacks.permute(0, 2, 3, 1).contiguous() if self.spec.layout == "HWC" else stacks

    def _drawn(self, count: int, generator: torch.Generator) -> Tensor:
        """Stacks (N, frames, colours, height, width) float32 within the bounds."""
        low, high = (float(bound.mean()) for bound in (self.low, self.high))
        tones, columns, rows = self._things(count, generator)
        tones = tones * (high - low)
        tones[..., 0] += low
        stacks = drawn(tones, columns, rows)
        noisy = (self._uniform((count,), generator) < self.settings.noise).nonzero()[:, 0]
        strength = (high - low) * self._uniform((len(noisy), 1, 1, 1, 1), generator, 0.0, 0.25)
        stacks[noisy] += strength * (self._uniform((len(noisy), *stacks.shape[1:]), generator) - 0.5)
        return stacks.clamp_(low, high)

    def _things(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Tones (N, colours, things), and which rows (N, frames, things, height) and columns each thing covers.

        The first thing is the ground, which covers all.
        """
        given = self.settings
        shape = (count, given.sprites + given.static)
        moving = torch.arange(shape[1], device=self.device) < given.sprites
        struck = self._uniform((count, given.static), generator) < given.text
        covered = []
        for axis in self.sides:
            scale = len(axis) / 84
            size = self._uniform(shape, generator, log(given.smallest), log(given.largest)).exp() * scale
            size = size.round().clamp(1, len(axis))
            room = (len(axis) - size).clamp_min(1e-3)
            speed = self._uniform(shape, generator, -given.speed, given.speed) * scale * moving
            speed = speed * (self._uniform(shape, generator) < 2 / 3)
            way = (self._uniform(shape, generator) * 2 * room).unsqueeze(1) + speed.unsqueeze(1) * self.frames
            room = room.unsqueeze(1)
            # A thing that turns round at the border: there and back, over and over.
            first = (room - (way % (2 * room) - room).abs()).floor().unsqueeze(-1)
            covers = (axis >= first) & (axis < first + size.reshape(count, 1, -1, 1))
            if given.text:
                kept = self._uniform((count, given.static, len(axis)), generator) < 0.5
                covers[:, :, given.sprites :] &= (kept | ~struck.unsqueeze(-1)).unsqueeze(1)
            ground = torch.ones((count, len(self.frames[0]), 1, len(axis)), device=self.device)
            covered.append(torch.cat([ground, covers.float()], 2))
        level = self._uniform((count, self.colours, 1), generator)
        there = self._uniform((count, 1, shape[1]), generator) < 0.5
        tone = self._uniform((count, self.colours, shape[1]), generator, -given.contrast, given.contrast)
        return torch.cat([level, tone * there], 2), covered[0], covered[1]

    def _uniform(
        self, shape: tuple[int, ...], generator: torch.Generator, low: float = 0.0, high: float = 1.0
    ) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, device=self.device)
