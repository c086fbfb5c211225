"""What the trials of a sweep are compared on, without a simulator and without data.

A trial is not measured on what its own generators make: it could win by making that easy. Observations are invented
once for the sweep, with random numbers that no trial uses, by every prior that fits the teacher and by the generators
of several methods. Sources that know only the bounds are reported and count for nothing, unless there is no other: on
the trials of recorded sweeps they ranked students badly and drowned the others. Within a source each action that the
teacher chooses counts the same, so that many observations of one answer do not decide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gasim_ray.actors.loop import Loop
from gasim_ray.actors.workers import LocalWorkers
from gasim_ray.config import build_config, merged
from gasim_ray.core.choice import Chosen
from gasim_ray.core.mixture import PRIORS
from gasim_ray.core.model import Model
from gasim_ray.core.outputs import kl, log_policy
from gasim_ray.core.seeds import rng
from gasim_ray.errors import UserError
from gasim_ray.evaluation.agreement import answers
from gasim_ray.teachers import load_teacher
from gasim_ray.tuning.sweep import ValidationSettings

#: Added to the sweep's seed, so that no trial draws the same numbers.
SEED_OFFSET = 1_000_003
#: Methods whose generators supply a source each.
METHODS = ("gasim", "gas", "dafl")
#: Sources that know only the bounds; the others start from the teacher's weights or from what pictures look like.
BLIND = ("uniform", "gaussian", "gas", "dafl")
#: Samples for each that is kept where the teacher's decided answers are sought.
CANDIDATES = 8
#: Images that a method makes, at most, for each that is kept of it.
MADE_IMAGES = 16
#: Actions that the teacher chooses less often in a source do not count there.
LEAST_CHOSEN = 4


@dataclass(frozen=True, eq=False)
class Validation:
    """Observations of every source and the teacher's answers."""

    #: Source -> observations (N, *spec.shape) in the spec's dtype.
    observations: Mapping[str, npt.NDArray[Any]]
    #: Source -> the teacher's log-policies (N, actions).
    log_policies: Mapping[str, Tensor]

    def score(self, student: Model) -> dict[str, float]:
        """How a student answers: each figure below `combined` over sources, and as `figure/source` for each.

        `agreement`: how often it chooses the teacher's action, 0 to 1. `kl`: KL(teacher || student) in nats. `regret`:
        how much less likely the teacher finds the student's choice than its own, in nats; near ties count little.

        Raises UserError if the student answers NaN.
        """
        figures: dict[str, dict[str, float]] = {"agreement": {}, "kl": {}, "regret": {}}
        for source, observations in self.observations.items():
            teacher = self.log_policies[source]
            outputs = log_policy(answers(student, observations, "student"), student.config.output_scale)
            best, choice = teacher.max(1)
            chosen = outputs.argmax(1, keepdim=True)
            values = {
                "agreement": (chosen[:, 0] == choice).float(),
                "kl": kl(teacher, outputs).clamp_min(0),
                "regret": best - teacher.gather(1, chosen)[:, 0],
            }
            for name, value in values.items():
                figures[name][source] = balanced(value, choice)
        whole = {name: combined(sources) for name, sources in figures.items()}
        return whole | {f"{name}/{s}": value for name, sources in figures.items() for s, value in sources.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a file keeps."""
        return {
            "observations": {source: torch.from_numpy(array) for source, array in self.observations.items()},
            "log_policies": dict(self.log_policies),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Validation:
        """Inverse of `state_dict`."""
        return cls({source: x.numpy() for source, x in state["observations"].items()}, state["log_policies"])


def combined(figures: Mapping[str, float]) -> float:
    """One figure of those of all sources: the mean over those that are not blind, if there is one."""
    informed = [value for source, value in figures.items() if source not in BLIND]
    return float(np.mean(informed or list(figures.values())))


def balanced(values: Tensor, choice: Tensor) -> float:
    """Mean over the chosen actions of the mean of (N,) values where the action was chosen."""
    counts = torch.bincount(choice)
    sums = torch.bincount(choice, weights=values.double())
    counted = counts >= min(LEAST_CHOSEN, int(counts.max()))
    return float((sums[counted] / counts[counted]).mean())


def make_validation(
    tree: dict[str, Any], settings: ValidationSettings, seed: int, say: Callable[[str], None]
) -> Validation:
    """Invent a sweep's validation observations for the teacher and the student of a tree; `say` tells how far it is.

    Raises UserError if no method goes with the two.
    """
    teacher = load_teacher(tree["teacher"])
    observations = _of_priors(teacher, settings.observations, seed + SEED_OFFSET)
    refused: list[UserError] = []
    for method in METHODS:
        say(f"validation: {settings.observations} observations of {method}")
        try:
            observations[method] = _of_method(method, tree, settings, seed + SEED_OFFSET)
        except UserError as error:
            say(f"validation: without {method}, which this teacher does not fit ({error})")
            refused.append(error)
    if len(refused) == len(METHODS):  # then it is not the method
        raise refused[-1]
    log_policies = {
        source: log_policy(answers(teacher, made, "teacher"), teacher.config.output_scale)
        for source, made in observations.items()
    }
    return Validation(observations, log_policies)


def _of_priors(teacher: Model, count: int, seed: int) -> dict[str, npt.NDArray[Any]]:
    made = {}
    for number, (name, kind) in enumerate(PRIORS.items()):
        random = rng(torch.device("cpu"), seed, number)
        try:
            prior = kind(teacher, "cpu")
            # A prior's plain pictures get the same few answers; those of all classes tell more.
            chosen = Chosen(prior, teacher, CANDIDATES) if teacher.config.observation.is_image else prior
            made[name] = _stored(teacher, chosen.sample(count, random))
        except UserError:
            continue  # the prior does not fit this teacher, such as one of pictures a vector
    return made


def _of_method(method: str, tree: dict[str, Any], settings: ValidationSettings, seed: int) -> npt.NDArray[Any]:
    """The newest of what a method's generators made for a student that is learning from them."""
    # The student's other settings are those that the method was published with.
    own = {key: value for key, value in tree.get("student", {}).items() if key == "architecture"}
    plain = {"teacher": tree["teacher"], "student": own}
    short = {"method": method, "seed": seed, "local": True, "budget": {"student_steps": settings.student_steps}}
    teacher = load_teacher(tree["teacher"])
    # Networks of images would take many minutes; what they make serves only to compare.
    less = {"generator": {"width": 16}, "budget": {"observations": MADE_IMAGES * settings.observations}}
    config = build_config(merged(plain, short, less if teacher.config.observation.is_image else {}))
    workers = LocalWorkers(teacher, config)
    Loop(workers, config, stop=lambda: False, report=lambda loop: None).run()
    workers.close()
    pool = workers.learner.pool
    newest = (torch.arange(min(settings.observations, len(pool))) + 1 - pool.added).neg() % len(pool)
    observations: npt.NDArray[Any] = pool.observations[newest].numpy()
    return observations


def _stored(teacher: Model, sample: Tensor) -> npt.NDArray[Any]:
    observations: npt.NDArray[Any] = teacher.config.observation.quantise(sample).numpy()
    return observations
