"""A generator and a learner that do nothing, so that what is left is the loop and Ray; they import no PyTorch."""

from __future__ import annotations

import resource
from typing import Any

import numpy as np

from gasim_ray.core.batch import BatchInfo, StudentWeights, SyntheticBatch

#: Observations of a batch and its numbers each: what Acrobot's policy takes.
COUNT, SIZE, ACTIONS = 256, 6, 3
#: Numbers in the student's weights: an MLP of two layers of 64.
WEIGHTS = 4_803


class NullGenerator:
    """Answers at once with the same batch."""

    def __init__(self, actor: int) -> None:
        self.actor = actor
        self.observations = np.zeros((COUNT, SIZE), np.float32)
        self.answers = np.zeros((COUNT, ACTIONS), np.float32)

    def synthesize(self, order: int, weights: StudentWeights) -> tuple[BatchInfo, SyntheticBatch]:
        """See gasim_ray.core.synthesizer."""
        info = BatchInfo(self.actor, 0, 0, order, weights.step, COUNT, 0.0, 0.0, 0.0)
        return info, SyntheticBatch(self.observations, self.answers, info)

    def memory(self) -> int:
        """Bytes that the process has had at most."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class NullLearner:
    """Takes batches in and hands the same weights out."""

    def __init__(self) -> None:
        self.steps = 0
        self.tensors = {"weights": np.zeros(WEIGHTS, np.float32)}

    def update(self, progress: float, *batches: Any) -> tuple[Any, StudentWeights]:
        """See gasim_ray.core.learner; a report without a network."""
        self.steps += max(1, len(batches))
        return NullReport(self.steps), self.weights()

    def weights(self) -> StudentWeights:
        """See gasim_ray.core.learner."""
        return StudentWeights(self.steps, self.tensors)


class NullReport:
    """What the loop reads of a LearnerReport."""

    loss, pool_size, seconds, refused = 0.0, 0, 0.0, ()

    def __init__(self, steps: int) -> None:
        self.student_step = steps
