"""One generator worker: keeps generators and answers orders with labelled batches. An actor only wraps it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gasim_ray.core.answers import answer
from gasim_ray.core.batch import BatchInfo, StudentWeights, SyntheticBatch
from gasim_ray.core.choice import Disputed
from gasim_ray.core.contrast import Contrast
from gasim_ray.core.distill import generator_loss, views
from gasim_ray.core.evolved import EvolvedGenerator
from gasim_ray.core.generator import Beside, DirectGenerator, Following, Generator, NetworkGenerator
from gasim_ray.core.mixture import Mixture
from gasim_ray.core.model import Model, check_finite
from gasim_ray.core.prior import Prior
from gasim_ray.core.rendered import RenderedGenerator
from gasim_ray.core.seeds import rng
from gasim_ray.core.settings import GeneratorSettings, ObjectiveSettings, Synthesis

#: Kind -> generators that are made of the prior in core.settings.MADE_OF.
OF_ONE_PRIOR: dict[str, Callable[[Any, GeneratorSettings], Generator]] = {
    "rendered": RenderedGenerator,
    "evolved": EvolvedGenerator,
}


@dataclass(frozen=True)
class Kind:
    """What generators of one kind have in common."""

    settings: GeneratorSettings
    objective: ObjectiveSettings
    contrast: Contrast | None


@dataclass
class Slot:
    """A generator with the clock of its re-initialisations."""

    kind: Kind
    generator: Generator
    generation: int = -1
    age: int = 0
    best: float = float("inf")
    stale: int = 0


class Synthesizer:
    """`synthesize` answers one order; orders go round the worker's generators in turn.

    It is given one kind of generators or several: what they start from, and the rest. All randomness of an order comes
    from (seed, actor, order).
    """

    def __init__(
        self,
        teacher: Model,
        student: Model,
        kinds: Sequence[tuple[Prior | None, Synthesis]],
        actor: int,
        device: str,
    ) -> None:
        self.device = torch.device(device)
        self.teacher, self.student = teacher.to(self.device).frozen(), student.to(self.device).frozen()
        common = kinds[0][1]
        self.learnt, self.actor, self.seed = common.student, actor, common.seed
        self.spec = teacher.config.observation
        self.kinds = [self._make_kind(given) for _, given in kinds]
        self.slots = [
            Slot(kind, self._make_generator(prior, kind.settings))
            for _ in range(common.generator.per_actor)
            for kind, (prior, _) in zip(self.kinds, kinds, strict=True)
        ]
        #: Steps behind the student that it has; none was handed to it yet.
        self.student_step = -1

    def _make_kind(self, given: Synthesis) -> Kind:
        settings, objective = given.generator, given.objective
        return Kind(settings, objective, Contrast(self.teacher, settings, objective) if objective.contrastive else None)

    def _make_generator(self, prior: Prior | None, settings: GeneratorSettings) -> Generator:
        if settings.kind == "network":
            return NetworkGenerator(prior, settings, self.spec, self.device)
        assert prior is not None
        if settings.kind in OF_ONE_PRIOR:
            assert isinstance(prior, Mixture)
            first, *others = prior.priors
            share = settings.batch_size // len(prior.priors)
            own = OF_ONE_PRIOR[settings.kind](
                first, replace(settings, batch_size=settings.batch_size - share * len(others))
            )
            return Beside(own, others, share) if others else own
        if settings.disputed:
            prior = Disputed(prior, self.teacher, self.student, settings.disputed)
        return DirectGenerator(prior, settings, rng(self.device, 0))

    def synthesize(self, order: int, weights: StudentWeights) -> tuple[BatchInfo, SyntheticBatch]:
        """Improve the generator whose turn it is against the given student and emit a labelled batch.

        Raises UserError if the teacher answers NaN.
        """
        started = time.perf_counter()
        self._take(weights)
        random = rng(self.device, self.seed, self.actor, order)
        index = order % len(self.slots)
        slot, kind = self.slots[index], self.slots[index].kind
        if self._is_due(slot, index):
            self._restart(slot, random)
        labels = wanted_actions(kind.settings.batch_size, self.teacher.config.actions, random)

        def objective(observations: Tensor, following: Following | None = None) -> Tensor:
            wanted = labels[: len(observations)]  # beside samples of other priors a generator makes fewer
            loss = generator_loss(observations, self.teacher, self.student, wanted, kind.objective, following)
            return loss if kind.contrast is None else loss + kind.contrast.loss(observations, random)

        value = slot.generator.improve(objective, random)
        self._tick(slot, value)
        emitted = self.spec.quantise(slot.generator.emit(random))
        if kind.contrast is not None:
            kind.contrast.remember(emitted)
        observations = views(emitted, kind.settings, self.spec, random)
        labelling = time.perf_counter()
        answers, agreement = self._label(observations)
        ended = time.perf_counter()
        info = BatchInfo(
            actor=self.actor,
            generator=index,
            generation=slot.generation,
            order=order,
            student_step=self.student_step,
            count=len(observations),
            agreement=agreement,
            objective=value,
            seconds=ended - started,
            teacher_seconds=ended - labelling,
        )
        return info, SyntheticBatch(observations.cpu().numpy(), answers.cpu().numpy(), info)

    def _take(self, weights: StudentWeights) -> None:
        if weights.step != self.student_step:
            tensors = {name: torch.tensor(array) for name, array in weights.tensors.items()}
            self.student.network.load_state_dict(tensors)
            self.student_step = weights.step

    def _is_due(self, slot: Slot, index: int) -> bool:
        settings = slot.kind.settings
        if slot.generation < 0 or settings.drawn_anew:
            return True
        every, patience = settings.reset_every, settings.stagnation
        # The first life of generator i is cut short, so that the worker's generators never restart together.
        lifetime = every - (every * index // len(self.slots)) if slot.generation == 0 else every
        return (every > 0 and slot.age >= lifetime) or (patience > 0 and slot.stale >= patience)

    def _restart(self, slot: Slot, random: torch.Generator) -> None:
        slot.generator.start(random)
        slot.generation, slot.age, slot.best, slot.stale = slot.generation + 1, 0, float("inf"), 0

    def _tick(self, slot: Slot, value: float) -> None:
        slot.age += 1
        slot.stale = 0 if value < slot.best else slot.stale + 1
        slot.best = min(slot.best, value)

    @torch.no_grad()
    def _label(self, observations: Tensor) -> tuple[Tensor, float]:
        answers = check_finite(answer(self.teacher, observations, self.learnt), "teacher")
        chosen = answers[:, : self.teacher.config.actions].argmax(-1)
        agreement = float((chosen == self.student(observations).argmax(-1)).float().mean())
        return answers, agreement

    def state_dict(self) -> dict[str, Any]:
        """The generators with their clocks and what they remember, for a run that must go on bit for bit."""
        return {
            "slots": [
                {
                    "clock": [slot.generation, slot.age, slot.best, slot.stale],
                    "generator": slot.generator.state_dict() if slot.generation >= 0 else {},
                }
                for slot in self.slots
            ],
            "memories": [None if kind.contrast is None else kind.contrast.memory for kind in self.kinds],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`, which before there were kinds had one memory."""
        for kind, memory in zip(self.kinds, state.get("memories") or [state["memory"]], strict=True):
            if kind.contrast is not None:
                kind.contrast.memory = memory.to(self.device)
        for slot, saved in zip(self.slots, state["slots"], strict=True):
            slot.generation, slot.age, slot.best, slot.stale = saved["clock"]
            if slot.generation >= 0 and saved["generator"]:
                slot.generator.load_state_dict(saved["generator"])
            elif not slot.kind.settings.drawn_anew:
                slot.generation = -1  # of a version that drew it anew at every order


def wanted_actions(count: int, actions: int, rng: torch.Generator) -> Tensor:
    """As many of each action as of another, in random order: (count,) int64.

    In random order because observations may come sorted by what the teacher answers (core.choice.Chosen), and the way
    from one class to another passes between the two.
    """
    return torch.randperm(count, generator=rng, device=rng.device) % actions
