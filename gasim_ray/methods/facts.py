"""What a preset may depend on."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from gasim_ray.core.observation import ObservationSpec

#: Most bytes of a preset's pool, which lies in the learner's memory, and on its GPU if it has one.
POOL_BYTES = 4 * 2**30

#: Section -> field -> value, laid over the defaults and under what the user gives.
Tree = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class TeacherFacts:
    """What is known of a teacher before its weights are read."""

    #: What it reads.
    observation: ObservationSpec
    #: Whether it stores the statistics of batch normalisation.
    batch_norm: bool
    #: How many dense layers it has; of several the last but one is the last hidden one.
    dense_layers: int

    @property
    def coloured(self) -> bool:
        """Whether it reads single pictures in colours."""
        return self.observation.is_image and self.observation.stack == 1 and self.observation.channels > 1

    @property
    def pooled(self) -> int:
        """How many of its observations fit POOL_BYTES."""
        return POOL_BYTES // (prod(self.observation.shape) * self.observation.torch_dtype.itemsize)
