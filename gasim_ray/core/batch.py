"""What a generator hands to the learner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # so that actors without a network need no PyTorch
    from gasim_ray.core.observation import ObservationSpec


@dataclass(frozen=True)
class BatchInfo:
    """Where a batch came from: small enough for whoever drives the loop to read every one."""

    #: Which actor made it.
    actor: int
    #: Which of that actor's generators.
    generator: int
    #: How often that generator had been re-initialised before.
    generation: int
    #: Number of the order that it answers; with the run's seed and the actor it fixes all randomness.
    order: int
    #: Student steps behind the student weights that it was made against.
    student_step: int
    #: Observations in the batch.
    count: int
    #: Fraction of them on which the teacher and that student chose the same action.
    agreement: float
    #: The generator's objective before its last step.
    objective: float
    #: Seconds that making it took.
    seconds: float
    #: Of these, seconds in which it was labelled by the teacher and compared with the student.
    teacher_seconds: float = 0.0


@dataclass(frozen=True)
class SyntheticBatch:
    """Invented observations with the teacher's answers; NumPy, so that Ray's object store does not copy it."""

    #: (N, *spec.shape) in the spec's dtype.
    observations: npt.NDArray[Any]
    #: (N, columns) float32: what is to be learnt of the teacher's answers, policy logits first, see core.answers.
    teacher_answers: npt.NDArray[np.float32]
    info: BatchInfo


def fault_of(batch: SyntheticBatch, spec: ObservationSpec, columns: int) -> str | None:
    """Why a learner must not take a batch in: another shape or dtype than the teacher's, or no numbers; None if it may.

    Every batch is looked at: a node with broken memory or another version's actor may send such.
    """
    observations, answers, count = batch.observations, batch.teacher_answers, batch.info.count
    if observations.shape != (count, *spec.shape) or observations.dtype != spec.dtype:
        return f"has observations {observations.dtype} {observations.shape}"
    if answers.shape != (count, columns) or answers.dtype != np.float32:
        return f"has answers {answers.dtype} {answers.shape}, not float32 {(count, columns)}"
    if not (np.isfinite(answers).all() and (observations.dtype == np.uint8 or np.isfinite(observations).all())):
        return "holds NaN or infinity"
    return None


@dataclass(frozen=True)
class StudentWeights:
    """A student as the learner hands it out."""

    #: Student steps taken so far.
    step: int
    #: Name -> array, the student network's state dict.
    tensors: dict[str, npt.NDArray[Any]]
