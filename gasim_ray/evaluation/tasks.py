"""What models are measured on: an environment, or the test images of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from gasim_ray.core.model import Model, ModelConfig
from gasim_ray.errors import UserError
from gasim_ray.evaluation.agreement import answers
from gasim_ray.evaluation.atari import STICKY, is_atari, sticky_of, with_sticky
from gasim_ray.evaluation.datasets import Dataset
from gasim_ray.evaluation.environments import check_environment
from gasim_ray.evaluation.episodes import Observations, Returns, evaluate_many, evaluate_return
from gasim_ray.evaluation.intervals import Interval, mean_interval, proportion_interval

Metric = Literal["return", "accuracy"]

#: Name under which the teacher is measured: its real states are those on which agreement is taken.
TEACHER = "teacher"

#: At most this many of the states that a teacher visits are kept.
KEPT_STATES = 10_000

# The control that learns from real states gets them from episodes of its own, not from those it is measured on.
_CONTROL_SEED_OFFSET = 1_000_003


@dataclass(frozen=True)
class Score:
    """How well one model does."""

    #: Mean return, or accuracy as a fraction, with its 95 % interval.
    interval: Interval
    #: Atari's games only: its mean return where actions are sticky.
    sticky: Interval | None = None
    #: Classifiers only: the class recognised worst; where classes were merged, the class before that, the hidden mode.
    worst_class: str | None = None
    #: Classifiers only: the fraction of it that is recognised.
    worst_class_accuracy: float | None = None


class Task(Protocol):
    """Where scores and real observations come from."""

    @property
    def name(self) -> str:
        """Environment id or data set."""

    @property
    def metric(self) -> Metric:
        """What a score is."""

    def check(self, model: ModelConfig, who: str) -> None:
        """Raise UserError, naming both sides, unless the model fits the task."""

    def measure(self, models: Mapping[str, Model]) -> tuple[dict[str, Score], Observations]:
        """Score each model, `TEACHER` among them; and the real observations (N, *spec.shape) to compare them on."""

    def training_observations(self, teacher: Model) -> Observations:
        """Real observations (N, *spec.shape), other than those of `measure`, for a student to learn from."""


@dataclass(frozen=True)
class EnvironmentTask:
    """Return of greedy episodes in a Gymnasium environment. Raises UserError for fewer than two episodes."""

    #: A Gymnasium id.
    name: str
    #: Episodes for each model.
    episodes: int = 100
    #: Fixes the episodes' initial states, which are the same for every model.
    seed: int = 0
    #: Play in this process even if Ray is running.
    local: bool = False
    #: What a score is.
    metric: Metric = "return"

    def __post_init__(self) -> None:
        if self.episodes < 2:
            raise UserError(f"episodes: {self.episodes} is too few for an interval; give 2 or more")
        if self.seed < 0:
            raise UserError(f"seed: {self.seed} is negative; give 0 or more")

    def check(self, model: ModelConfig, who: str) -> None:
        """See Task; of a game, how often actions are repeated must be what the model was trained with, too."""
        check_environment(self.name, model, who)
        trained_on = str(model.source.get("environment", ""))
        if is_atari(trained_on) and sticky_of(trained_on) != sticky_of(self.name):
            raise UserError(
                f"env: the {who} was trained on {trained_on}, not on {self.name}; leave --env out: a game is played "
                "with sticky actions and without"
            )

    def measure(self, models: Mapping[str, Model]) -> tuple[dict[str, Score], Observations]:
        """See Task; the observations are states that the teacher visited.

        A game is played without sticky actions, and with those that its name asks for, or STICKY.
        """
        varied = self._play(models, self._varied, {TEACHER: KEPT_STATES})
        if not is_atari(self.name):
            return {name: Score(mean_interval(p.returns)) for name, p in varied.items()}, varied[TEACHER].observations
        played = self._play(models, with_sticky(self.name, 0.0), {})
        scores = {n: Score(mean_interval(p.returns), mean_interval(varied[n].returns)) for n, p in played.items()}
        return scores, varied[TEACHER].observations

    def training_observations(self, teacher: Model) -> Observations:
        """See Task; states from other episodes of the teacher."""
        seed = self.seed + _CONTROL_SEED_OFFSET
        return evaluate_return(teacher, self._varied, self.episodes, seed, KEPT_STATES).observations

    @property
    def _varied(self) -> str:
        """Where states are from: without sticky actions thirty episodes of a game are a few games over and over."""
        return with_sticky(self.name, sticky_of(self.name) or STICKY) if is_atari(self.name) else self.name

    def _play(self, models: Mapping[str, Model], env_id: str, keep: Mapping[str, int]) -> dict[str, Returns]:
        return evaluate_many(models, env_id, self.episodes, self.seed, keep, self.local)


@dataclass(frozen=True, eq=False)
class DatasetTask:
    """Accuracy on a data set's test images."""

    #: Where the images are from.
    dataset: Dataset
    #: What a score is.
    metric: Metric = "accuracy"

    @property
    def name(self) -> str:
        """The data set's name."""
        return self.dataset.name

    def check(self, model: ModelConfig, who: str) -> None:
        """See Task."""
        shape, classes = self.dataset.spec.shape, len(self.dataset.class_names)
        own, layout = model.observation, self.dataset.spec.layout
        if (own.shape, own.layout) != (shape, layout):
            raise UserError(
                f"dataset: {self.name} holds images of {list(shape)} {layout}, the {who} reads {list(own.shape)} "
                f"{own.layout}; give the --dataset it was trained on, or a teacher that reads them as they are"
            )
        (low, high), (least, most) = (
            (float(bound.min()) for bound in spec.bounds()) for spec in (self.dataset.spec, model.observation)
        )
        if low < least or high > most:
            raise UserError(
                f"dataset: {self.name} holds values from {low:g} to {high:g}, the {who} reads {least:g} to {most:g}; "
                "state the bounds and the normaliser of the images as they are stored"
            )
        if model.actions != classes:
            raise UserError(
                f"dataset: {self.name} has {classes} classes, the {who} has {model.actions}; give --groups if its "
                "classes were merged, or the --dataset it was trained on"
            )

    def measure(self, models: Mapping[str, Model]) -> tuple[dict[str, Score], Observations]:
        """See Task; the observations are the test images."""
        images, labels = self.dataset.test_images, self.dataset.test_labels
        predictions = {name: answers(model, images, name).argmax(1).numpy() for name, model in models.items()}
        return {name: self._score(predicted == labels) for name, predicted in predictions.items()}, images

    def _score(self, right: npt.NDArray[np.bool_]) -> Score:
        modes = self.dataset.modes
        labels = self.dataset.test_labels if modes is None else modes.test_labels
        names = self.dataset.class_names if modes is None else modes.names
        by_class = {int(label): float(right[labels == label].mean()) for label in np.unique(labels)}
        worst = min(by_class, key=by_class.__getitem__)
        return Score(proportion_interval(int(right.sum()), len(right)), None, names[worst], by_class[worst])

    def training_observations(self, teacher: Model) -> Observations:
        """See Task; the training images, whichever teacher."""
        return self.dataset.train_images
