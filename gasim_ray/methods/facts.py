"""What a preset may depend on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gasim_ray.core.observation import ObservationSpec

#: Section -> field -> value, laid over the defaults and under what the user gives.
Tree = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class TeacherFacts:
    """What is known of a teacher before its weights are read."""

    #: What it reads.
    observation: ObservationSpec
    #: Whether it stores the statistics of batch normalisation.
    batch_norm: bool
