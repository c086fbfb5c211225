"""What a generator hands to the learner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class SyntheticBatch:
    """Invented observations with the teacher's answers; NumPy, so that Ray's object store does not copy it."""

    #: (N, *spec.shape) in the spec's dtype.
    observations: npt.NDArray[Any]
    #: (N, outputs) float32: the teacher's raw logits or Q-values.
    teacher_outputs: npt.NDArray[np.float32]
    #: Which generator made it: its place among all generators of the run.
    generator: int
    #: How often that generator had been re-initialised before.
    generation: int
    #: Number of the order that it answers; with the run's seed and the generator it fixes all randomness.
    order: int
    #: Student steps behind the student weights that it was made against.
    student_step: int
    #: Fraction of its observations on which teacher and that student chose the same action.
    agreement: float
    #: Seconds that making it took.
    seconds: float
