"""Where generators start: distributions of observations that need no data. What all share, and the plainest two.

A prior is knowledge, and each names its level: `bounds` uses shape, range and the teacher's own weights; `generic` uses
what any picture or video has (smoothness, edges, several scales, motion); `domain` what one knows of the data.
mixture.py registers those of all files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from math import prod
from typing import Literal

import torch
from torch import Tensor

from gasim_ray.core.model import Model
from gasim_ray.core.observation import ObservationSpec
from gasim_ray.core.seeds import rng

Knowledge = Literal["bounds", "generic", "domain"]

#: Observations from which a prior's mean and deviation are taken.
STANDARDISING_SAMPLES = 8192


def uniform(rng: torch.Generator, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform numbers (*shape,) float32 on the generator's device."""
    return low + (high - low) * torch.rand(shape, generator=rng, device=rng.device)


def random_bytes(rng: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """Uniform bytes (*shape,) uint8 on the generator's device, eight for each number that is drawn."""
    count = prod(shape)
    words = torch.empty(-(-count // 8), dtype=torch.int64, device=rng.device)
    return words.random_(-(2**63), None, generator=rng).view(torch.uint8)[:count].reshape(shape)


class Prior(ABC):
    """A distribution over observations within the bounds."""

    knowledge: Knowledge = "bounds"

    def __init__(self, teacher: Model, device: torch.device | str) -> None:
        self.spec: ObservationSpec = teacher.config.observation
        self.device = torch.device(device)
        self.low, self.high = (b.to(self.device) for b in self.spec.bounds())

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, *spec.shape) on the prior's device, within the bounds: float32, or the spec's dtype already."""

    def standardised(self) -> ObservationSpec:
        """The spec with a normaliser that gives samples of this prior mean 0 and deviation 1; images keep theirs."""
        if self.spec.is_image:
            return self.spec
        sample = self.sample(STANDARDISING_SAMPLES, rng(self.device, 0)).cpu()
        mean, std = sample.mean(0), sample.std(0).clamp_min(1e-6)
        low, high = (tuple(bound.tolist()) for bound in self.spec.bounds())
        return replace(self.spec, low=low, high=high, mean=tuple(mean.tolist()), std=tuple(std.tolist()), clip=None)


class Uniform(Prior):
    """Each element uniform within its bounds."""

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """See Prior."""
        unit = torch.rand((count, *self.spec.shape), generator=generator, device=self.device)
        return self.low + (self.high - self.low) * unit


class Gaussian(Prior):
    """Each element normal around the middle of its bounds, a quarter of their width as deviation, clamped."""

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """See Prior."""
        unit = torch.randn((count, *self.spec.shape), generator=generator, device=self.device)
        middle, spread = (self.low + self.high) / 2, (self.high - self.low) / 4
        return torch.minimum(torch.maximum(middle + spread * unit, self.low), self.high)


def random_observations(model: Model, count: int) -> Tensor:
    """(count, *spec.shape) in the spec's dtype, uniform within the bounds, on the CPU; always the same ones."""
    spec = model.config.observation
    return spec.quantise(Uniform(model, "cpu").sample(count, rng("cpu", 0)))
