"""Generators and the learner behind one interface: in this process, or as Ray actors.

The loop hands out calls and gets `Answer`s: a small summary that it reads, and a payload (a batch, or student weights)
that it only passes on. With Ray both are references, so observations go from a generator straight to the learner.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from gasim_ray.config import DistillConfig, kinds_of
from gasim_ray.core.answers import check_answers
from gasim_ray.core.batch import StudentWeights
from gasim_ray.core.choice import Chosen
from gasim_ray.core.distill import new_student
from gasim_ray.core.learner import LEARNER_KEY, Learner
from gasim_ray.core.mixture import Mixture
from gasim_ray.core.model import Model
from gasim_ray.core.pictures import Contrasted
from gasim_ray.core.prior import Prior, Uniform
from gasim_ray.core.prune import cut_down, prune_obstacle
from gasim_ray.core.seeds import rng
from gasim_ray.core.slim import slim, slim_obstacle
from gasim_ray.core.svd import factor, svd_obstacle
from gasim_ray.core.synthesizer import Synthesizer
from gasim_ray.errors import UserError
from gasim_ray.models.resnet import WideResNet


def cut_obstacle(teacher: Model, student: Model) -> str | None:
    """Why the teacher cannot be cut down to the student, in words; None if it can."""
    return (slim_obstacle if isinstance(teacher.network, WideResNet) else prune_obstacle)(teacher, student)


#: Start from the teacher -> why it does not fit, or None.
OBSTACLES = {"prune": cut_obstacle, "svd": svd_obstacle}
#: Invented observations on which it is measured what the teacher's units answer.
PRUNING_SAMPLES = 2048
#: The same for layers of low rank, whose inputs are many.
FACTORING_SAMPLES = 8192
#: The same for the fit of a wide residual student, for which the generators' steps are taken.
FITTING_SAMPLES = 1024
#: Parameters of glibc's mallopt (malloc.h), and bytes of freed memory that a process keeps.
M_TRIM_THRESHOLD, M_MMAP_MAX, KEPT_BYTES = -1, -4, 512 * 2**20


@dataclass(frozen=True, eq=False)
class Answer:
    """What a call returns: values in this process, object references on Ray."""

    summary: Any
    payload: Any


class WorkerLost(Exception):  # noqa: N818
    """The actor behind an answer died before it answered."""


class BatchLost(Exception):  # noqa: N818
    """What an update was to take in went with the node that it lay on; the learner lives."""


class Workers(Protocol):
    """What the loop drives."""

    def order(self, actor: int, order: int, weights: Any) -> Answer:
        """Ask a generator actor for a batch: summary BatchInfo, payload SyntheticBatch."""

    def update(self, progress: float, batches: Sequence[Any]) -> Answer:
        """Have the learner take in batches: summary LearnerReport, payload StudentWeights."""

    def ready(self, answers: Sequence[Answer], timeout: float) -> list[Answer]:
        """Those that have arrived, waiting up to `timeout` seconds for the first."""

    def read(self, summary: Any, timeout: float = 0.0) -> Any:
        """The value of a summary, for which so many seconds are waited; 0 waits for ever.

        Raises WorkerLost if its actor died or is silent, BatchLost if only what it was given is gone.
        """

    def begun(self, actor: int) -> bool:
        """Whether a generator actor has been started, rather than waiting for a node to run on."""

    def student_weights(self) -> Any:
        """The learner's current weights, as an order takes them."""

    def replace(self, actor: int) -> None:
        """Start a generator actor anew in the place of a lost one, which is ended if it still runs."""

    def restart(self) -> None:
        """Start the learner and all generators anew; their state is a new run's."""

    def learner_state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the learner."""

    def generator_states(self) -> list[Any]:
        """What a synchronous run's checkpoint keeps of each generator actor."""

    def restore(self, learner: dict[str, Any], generators: Sequence[Any]) -> None:
        """Put a checkpoint's states back; `generators` may be empty."""

    def publish(self, figures: Mapping[str, float]) -> None:
        """Show figures where the cluster is watched."""

    def close(self) -> None:
        """Let go of all actors."""


def make_student(teacher: Model, config: DistillConfig, prior: Prior | None) -> Model:
    """A student with fresh weights; it standardises vectors by what generators start from.

    Raises UserError if the learner is to start from the cut-down teacher and cannot.
    """
    observation = teacher.config.observation if prior is None else prior.standardised()
    student = new_student(teacher, config.student, config.seed, observation)
    check_answers(teacher, student, config.student)
    start = config.student.init
    obstacle = OBSTACLES[start](teacher, student) if start in OBSTACLES else None
    if obstacle:
        raise UserError(f"student.init: {start!r} does not fit, {obstacle}; use 'auto' or 'random'")
    return student.computing(config.bf16, config.channels_last)


def start_from_teacher(student: Model, teacher: Model, prior: Prior | None, config: DistillConfig) -> None:
    """Cut the teacher down to the student where that fits; what matters of it is measured on invented observations."""

    def invented(count: int) -> Tensor:
        source = prior or Uniform(teacher, "cpu")
        random = rng(source.device, config.seed, LEARNER_KEY)
        return torch.cat([source.sample(PRUNING_SAMPLES, random).cpu() for _ in range(0, count, PRUNING_SAMPLES)])

    # The teacher goes to the CPU last: a prior on another device asks it there.
    if svd_obstacle(teacher, student) is None:
        seen = None if config.student.init == "svd" else invented(FACTORING_SAMPLES)
        factor(teacher.cpu(), student, seen, config.student.value_weight)
    elif prune_obstacle(teacher, student) is None:
        seen = invented(PRUNING_SAMPLES)
        cut_down(teacher.cpu(), student, seen)
    elif slim_obstacle(teacher, student) is None:
        seen = first_batches(student, teacher, prior, config, FITTING_SAMPLES)
        slim(teacher.cpu(), student, seen)


def described_start(student: Model, teacher: Model, config: DistillConfig) -> str:
    """How large a student is and where it starts, in words; so that an `auto` that fits nothing is seen."""
    share = 100 * student.parameter_count / teacher.parameter_count
    size = f"student: {student.parameter_count:,} parameters, {share:.1f} % of the teacher's"
    if config.student.init == "random":
        return f"{size}, from random weights"
    obstacles = {start: obstacle(teacher, student) for start, obstacle in OBSTACLES.items()}
    if None in obstacles.values():
        return f"{size}, starts as the teacher cut down"
    why = "; ".join(f"{start}: {obstacle}" for start, obstacle in obstacles.items())
    return f"{size}, from random weights, since the teacher cannot be cut down to it ({why})"


def first_batches(student: Model, teacher: Model, prior: Prior | None, config: DistillConfig, count: int) -> Tensor:
    """At least so many observations as generators make them, but for the teacher alone: there is no adversary yet."""
    objective = replace(config.objective, adversarial=0.0)
    settings = replace(config.generator, per_actor=1, views=1, keep_start=False)
    if not objective.any():
        settings = replace(settings, kind="direct", prior=settings.prior or ("uniform",), steps=0)
        prior = prior or Uniform(teacher, "cpu")
    given = replace(config, generator=settings, objective=objective)
    device = "cpu" if prior is None else str(prior.device)
    synthesizer = Synthesizer(teacher, deepcopy(student), [(prior, given)], LEARNER_KEY, device)
    made: list[Tensor] = []
    while sum(len(batch) for batch in made) < count:
        _, batch = synthesizer.synthesize(len(made), StudentWeights(synthesizer.student_step, {}))
        made.append(torch.from_numpy(batch.observations))
    return torch.cat(made)


def make_prior(teacher: Model, config: DistillConfig, device: str) -> Prior | None:
    """What the configured generators start from; None for those that have a latent vector alone."""
    settings = config.generator
    if not settings.prior:
        return None
    prior: Prior = Mixture(settings.prior, teacher, device, config.scenes, config.worlds)
    if settings.candidates:
        prior = Chosen(prior, teacher, settings.candidates, settings.alignment, settings.clusters)
    return Contrasted(prior, teacher, settings.contrast) if settings.contrast else prior


def make_synthesizer(
    teacher: Model, config: DistillConfig, actor: int, device: str, prior: Prior | None
) -> Synthesizer:
    """The plain generator worker of one actor; `prior` is the common one, in place of which it may have its own."""
    # Its normaliser has to be the learner's, whose samples are drawn on the CPU.
    student = make_student(teacher, config, prior if device == "cpu" else make_prior(teacher, config, "cpu"))
    kinds = [(prior, config)]
    if config.actor_settings:
        kinds = [(make_prior(teacher, own, device), own) for own in kinds_of(config, actor)]
    return Synthesizer(teacher, student, kinds, actor, device)


def make_learner(teacher: Model, config: DistillConfig, device: str, prior: Prior | None) -> Learner:
    """The plain learner; only its student starts from the teacher, since generators take their weights from it."""
    student = make_student(teacher, config, prior)
    if config.student.init != "random":
        start_from_teacher(student, teacher, prior, config)
    return Learner(student, config.student, config.pool, config.seed, device)


class LocalWorkers:
    """Everything in this process: for tests, for a debugger, and to measure what Ray costs.

    A prior given here takes the place of the configured one, where actors have no settings of their own.
    """

    def __init__(self, teacher: Model, config: DistillConfig, prior: Prior | None = None) -> None:
        self.threads = torch.get_num_threads()
        use_threads(config.student.cpus)
        keep_memory()
        # The student's normaliser is taken from samples on the CPU, whatever the device: other devices draw others.
        self.learner = make_learner(teacher, config, config.device, prior or make_prior(teacher, config, "cpu"))
        prior = prior or make_prior(teacher, config, config.device)
        self.synthesizers = [
            make_synthesizer(teacher, config, actor, config.device, prior) for actor in range(config.generator.actors)
        ]

    def order(self, actor: int, order: int, weights: StudentWeights) -> Answer:
        """See Workers; computed at once."""
        return Answer(*self.synthesizers[actor].synthesize(order, weights))

    def update(self, progress: float, batches: Sequence[Any]) -> Answer:
        """See Workers; computed at once."""
        return Answer(*self.learner.update(progress, *batches))

    def ready(self, answers: Sequence[Answer], timeout: float) -> list[Answer]:
        """All of them."""
        return list(answers)

    def read(self, summary: Any, timeout: float = 0.0) -> Any:
        """The value itself."""
        return summary

    def begun(self, actor: int) -> bool:
        """See Workers."""
        return True

    def student_weights(self) -> StudentWeights:
        """See Workers."""
        return self.learner.weights()

    def replace(self, actor: int) -> None:
        """Nothing can be lost here."""

    def restart(self) -> None:
        """Nothing can be lost here."""

    def learner_state(self) -> dict[str, Any]:
        """See Workers."""
        return self.learner.state_dict()

    def generator_states(self) -> list[Any]:
        """See Workers."""
        return [synthesizer.state_dict() for synthesizer in self.synthesizers]

    def restore(self, learner: dict[str, Any], generators: Sequence[Any]) -> None:
        """See Workers."""
        self.learner.load_state_dict(learner)
        for synthesizer, state in zip(self.synthesizers, generators, strict=False):
            synthesizer.load_state_dict(state)

    def publish(self, figures: Mapping[str, float]) -> None:
        """Nobody watches one process."""

    def close(self) -> None:
        """Give the process its threads back."""
        torch.set_num_threads(self.threads)


def use_threads(cpus: float) -> None:
    """Give PyTorch as many threads as the actor reserved CPUs, at least one."""
    torch.set_num_threads(max(1, int(cpus)))


def keep_memory() -> None:
    """Let this process keep the memory that it frees, where its allocator is glibc's.

    A step takes and frees the same tens of megabytes as the one before. Handing them back to the kernel in between,
    which then clears every page anew, took a third of the time.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
