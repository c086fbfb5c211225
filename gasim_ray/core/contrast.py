"""What earlier batches looked like to the teacher: a generator can be rewarded for something else (CMI 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from gasim_ray.core import objectives
from gasim_ray.core.distill import recorded, views
from gasim_ray.core.model import Model
from gasim_ray.core.settings import GeneratorSettings, ObjectiveSettings

#: Earlier samples that are remembered.
REMEMBERED = 2048


class Contrast:
    """The contrastive term of one kind of generators of a worker, with its memory of features."""

    def __init__(self, teacher: Model, generator: GeneratorSettings, objective: ObjectiveSettings) -> None:
        self.teacher, self.generator, self.objective = teacher, generator, objective
        self.memory = torch.empty(0)

    def loss(self, observations: Tensor, rng: torch.Generator) -> Tensor:
        """The weighted term, a scalar, for float observations (N, *shape) within bounds."""
        together = views(observations, self._two_views(), self.teacher.config.observation, rng)
        first, second = self._features(together).chunk(2)
        others = self.memory if len(self.memory) else first.detach()[:0]
        return self.objective.contrastive * objectives.contrastive(first, second, others).mean()

    @torch.no_grad()
    def remember(self, observations: Tensor) -> None:
        """Keep the features of a batch (N, *shape) that was emitted; the oldest are forgotten."""
        features = self._features(observations)
        self.memory = torch.cat([self.memory.to(features), features])[-REMEMBERED:] if len(self.memory) else features

    def _two_views(self) -> GeneratorSettings:
        return GeneratorSettings(views=2, shift=max(1, self.generator.shift))

    def _features(self, observations: Tensor) -> Tensor:
        with recorded(self.teacher, self.objective) as record:
            self.teacher(observations)
        return record.features.flatten(1)
