"""The student, its optimiser and the pool: what a checkpoint of a run is mostly made of."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gasim_ray.core.answers import answer, answer_loss, widths
from gasim_ray.core.batch import BatchInfo, StudentWeights, SyntheticBatch, fault_of
from gasim_ray.core.model import Model
from gasim_ray.core.pool import Pool
from gasim_ray.core.seeds import rng
from gasim_ray.core.settings import PoolSettings, StudentSettings
from gasim_ray.errors import UserError

#: Tells the learner's random streams from those of actors, whose second key is their number.
LEARNER_KEY = 2**31


@dataclass(frozen=True)
class LearnerReport:
    """What one update did."""

    #: Student steps taken since the run began.
    student_step: int
    #: Mean student loss over the update.
    loss: float
    #: Observations in the pool.
    pool_size: int
    #: Seconds that the update took.
    seconds: float = 0.0
    #: Batches that were refused, and why.
    refused: tuple[tuple[BatchInfo, str], ...] = ()


class Learner:
    """`update` takes in batches and steps the student; an actor only wraps it."""

    def __init__(self, student: Model, settings: StudentSettings, pool: PoolSettings, seed: int, device: str) -> None:
        self.device = torch.device(device)
        self.settings, self.pool_settings, self.seed = settings, pool, seed
        self.student = student.to(self.device).train()
        self.optimiser = torch.optim.Adam(self.student.parameters(), lr=settings.learning_rate, fused=True)
        self.parts = widths(student, settings)
        self.columns = sum(self.parts)
        self.pool = Pool(pool.capacity, student.config.observation, self.columns, self.device)
        self.steps = 0
        self.newest: tuple[Tensor, Tensor] | None = None

    def update(self, progress: float, *batches: SyntheticBatch) -> tuple[LearnerReport, StudentWeights]:
        """Put the batches into the pool and take the settings' student steps for each; for none, as for one.

        A batch that is not what a generator should make is refused, which the report tells. Raises UserError if the
        student's loss is finite no more.

        progress: share of the budget that is spent, 0 to 1; sets the learning rate and how much of the replay is hard.
        """
        started = time.perf_counter()
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
        refused, losses = [], []
        hard = self.pool_settings.hard_share(progress)
        for batch in batches or (None,):
            if batch is not None:
                if fault := fault_of(batch, self.student.config.observation, self.columns):
                    refused.append((batch.info, fault))
                    continue
                self.newest = self._to_device(batch)
                self.pool.add(*self.newest)
            losses += [self._step(hard) for _ in range(self.settings.steps)]
        loss = float(torch.stack(losses).mean()) if losses else float("nan")
        if losses and not math.isfinite(loss):
            raise UserError(
                f"student.learning_rate: with {self.settings.learning_rate} the student's loss is {loss} after "
                f"{self.steps} steps; give a smaller one"
            )
        seconds = time.perf_counter() - started
        return LearnerReport(self.steps, loss, len(self.pool), seconds, tuple(refused)), self.weights()

    def _to_device(self, batch: SyntheticBatch) -> tuple[Tensor, Tensor]:
        observations, answers = torch.tensor(batch.observations), torch.tensor(batch.teacher_answers)
        return observations.to(self.device), answers.to(self.device)

    def _step(self, hard: float) -> Tensor:
        random = rng(self.device, self.seed, LEARNER_KEY, self.steps)
        replayed = round(self.settings.batch_size * self.pool_settings.replay)
        slots = self.pool.draw(replayed, hard, random)
        observations, answers = self.pool.observations[slots], self.pool.answers[slots]
        if replayed < self.settings.batch_size:
            observations, answers = self._with_newest(
                observations, answers, self.settings.batch_size - replayed, random
            )
        own = answer(self.student, observations, self.settings)
        loss = answer_loss(own, answers, self.parts, self.settings)
        self.optimiser.zero_grad()
        torch.autograd.backward(loss.mean())
        self.optimiser.step()
        self.pool.losses[slots] = loss.detach()[:replayed]
        self.steps += 1
        return loss.detach().mean()

    def _with_newest(
        self, observations: Tensor, answers: Tensor, count: int, random: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        assert self.newest is not None
        fresh, fresh_answers = self.newest
        chosen = torch.randperm(len(fresh), generator=random, device=self.device)[:count]
        return torch.cat([observations, fresh[chosen]]), torch.cat([answers, fresh_answers[chosen]])

    def weights(self) -> StudentWeights:
        """The student as generators need it."""
        state = self.student.network.state_dict()
        return StudentWeights(self.steps, {name: tensor.cpu().numpy().copy() for name, tensor in state.items()})

    def state_dict(self) -> dict[str, Any]:
        """Everything that a checkpoint keeps; tensors and plain values only."""
        return {
            "student": self.student.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "pool": self.pool.state_dict(),
            "steps": self.steps,
            "newest": self.newest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.student.network.load_state_dict(state["student"])
        self.optimiser.load_state_dict(state["optimiser"])
        for parameter, moments in self.optimiser.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                # In the parameter's own memory format, whatever a checkpoint made of it: fused Adam goes by that.
                moments[name] = torch.empty_like(parameter).copy_(moments[name])
        self.pool.load_state_dict(state["pool"])
        self.steps, newest = state["steps"], state["newest"]
        self.newest = None if newest is None else (newest[0].to(self.device), newest[1].to(self.device))
