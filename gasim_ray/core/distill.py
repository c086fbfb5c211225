"""The two losses of the game, shared by every way of running it: pure functions of networks and observations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from gasim_ray.core import objectives
from gasim_ray.core.generator import Following
from gasim_ray.core.model import Model, ModelConfig, check_network
from gasim_ray.core.moments import moments
from gasim_ray.core.observation import ObservationSpec
from gasim_ray.core.outputs import kl, log_policy, policy_logits
from gasim_ray.core.settings import TERMS, GeneratorSettings, ObjectiveSettings, StudentSettings
from gasim_ray.errors import UserError


def new_student(
    teacher: Model, settings: StudentSettings, seed: int, observation: ObservationSpec | None = None
) -> Model:
    """A student with fresh weights that reads what the teacher reads and answers with policy logits.

    `observation` is the teacher's unless given; it may differ from that in the normaliser. Raises UserError if the
    architecture does not read it or answers for other actions.
    """
    config = ModelConfig(
        architecture=settings.architecture,
        observation=observation or teacher.config.observation,
        actions=teacher.config.actions,
        outputs="logits",
        value=settings.value_weight > 0,
        source={"teacher": teacher.config.source},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = Model(config)
    check_network(student, "student.architecture")
    return student.train()


def student_loss(student: Tensor, teacher: Tensor, settings: StudentSettings) -> Tensor:
    """Loss (N,) of policy logits (N, actions): T² KL(teacher || student) at temperature T (Hinton et al. 2015).

    With `logits_weight` the mean absolute difference of the centred logits is added; `logits_alone` leaves only that.
    """
    distance = settings.logits_weight * (student - teacher).abs().mean(-1)
    if settings.logits_alone:
        return distance
    t = settings.temperature
    loss = t * t * kl(log_policy(teacher, t), log_policy(student, t))
    return loss + distance if settings.logits_weight else loss


def generator_loss(
    observations: Tensor,
    teacher: Model,
    student: Model,
    labels: Tensor,
    settings: ObjectiveSettings,
    following: Following | None = None,
) -> Tensor:
    """The weighted sum of the terms that are switched on, a scalar.

    observations: (N, *shape) float within bounds; labels: (N,) int64, the actions that `label` and `logit` want;
    following: gives the observations a step later, which `bellman` asks for.
    """
    if not settings.any():  # of generators that go by something else
        return torch.zeros((), device=observations.device)
    with recorded(teacher, settings) as record:
        outputs, values = teacher.with_value(observations) if teacher.config.value else (teacher(observations), None)
    logits = policy_logits(outputs, teacher.config.output_scale)
    loss = logits.new_zeros(())
    if settings.one_hot:
        loss = loss + settings.one_hot * objectives.one_hot(logits).mean()
    if settings.label:
        loss = loss + settings.label * objectives.label(logits, labels).mean()
    if settings.logit:
        loss = loss + settings.logit * objectives.wanted_logit(logits, labels).mean()
    if settings.entropy:
        loss = loss + settings.entropy * objectives.information_entropy(logits)
    if settings.activation:
        loss = loss + settings.activation * objectives.activation(record.features).mean()
    if settings.adversarial:
        guess = policy_logits(student(observations), 1.0)
        terms = objectives.adversarial(logits, guess, settings.divergence, settings.bound, settings.masked)
        loss = loss + settings.adversarial * terms.mean()
    if settings.batch_norm:
        loss = loss + settings.batch_norm * objectives.batch_norm_statistics(record.statistics)
    if settings.total_variation:
        images = teacher.config.observation.normalise(observations)
        loss = loss + settings.total_variation * objectives.total_variation(images).mean()
    if settings.decided:
        loss = loss + settings.decided * objectives.decided(logits, settings.entropy_wanted).mean()
    if settings.value:
        assert values is not None
        loss = loss + settings.value * objectives.value_excess(values, settings.value_bound).mean()
    if settings.bellman:
        assert values is not None
        assert following is not None
        _, later = teacher.with_value(following())
        loss = loss + settings.bellman * objectives.bellman(values, later).mean()
    return loss


def check_objective(teacher: Model, generator: GeneratorSettings, settings: ObjectiveSettings) -> None:
    """Raise UserError if a term needs what the teacher lacks, or if generators are to improve and every term is 0."""
    spec, bf16 = teacher.config.observation, teacher.bf16
    teacher.bf16 = False  # which is for a GPU perhaps, and this is a CPU
    with torch.no_grad(), recorded(teacher, settings):
        teacher(torch.zeros((2, *spec.shape), dtype=spec.torch_dtype))
    teacher.bf16 = bf16
    if settings.total_variation and not teacher.config.observation.is_image:
        raise UserError("objective.total_variation: the teacher reads vectors, not images; set it to 0")
    if settings.contrastive and not teacher.config.observation.is_image:
        raise UserError("objective.contrastive: the teacher reads vectors, which have no shifted views; set it to 0")
    for name in ("value", "bellman"):
        if getattr(settings, name) and not teacher.config.value:
            raise UserError(f"objective.{name}: the teacher does not answer the value of a state; set it to 0")
    if settings.decided and teacher.config.outputs == "q_values":
        raise UserError(
            "objective.decided: the teacher answers with q_values, which have no entropy of their own; set it to 0"
        )
    most = log(teacher.config.actions)
    if settings.decided and settings.entropy_wanted > most:
        raise UserError(
            f"objective.entropy_wanted: {settings.entropy_wanted} is more than the entropy of {teacher.config.actions} "
            f"equal actions; give at most {most:.3g}"
        )
    if settings.bellman and generator.kind != "rendered":
        raise UserError(
            f"objective.bellman: a generator of kind {generator.kind} does not know what comes next; set it to 0, or "
            "generator.kind to rendered"
        )
    if generator.kind == "evolved":
        others = [name for name in (*TERMS, "value_bound", "entropy_wanted") if name != "adversarial"]
        used = next((name for name in others if getattr(settings, name)), None)
        if used:
            raise UserError(
                f"objective.{used}: {getattr(settings, used)}, but evolved generators go by the teacher's answers, "
                "worlds.value_bound and objective.adversarial alone; set it to 0"
            )
        last_dense(teacher, "generator.kind: evolved goes by what a teacher's last dense layer reads, and")
    elif generator.steps and not settings.any():
        raise UserError(
            f"generator.steps: {generator.steps} steps have nothing to improve, since every term of the objective "
            "is 0; give one of them a weight, or 0 steps"
        )


@dataclass
class Record:
    """What passed through a teacher in one forward pass."""

    #: Input (N, features) of the last dense layer.
    features: Tensor = field(default_factory=lambda: torch.empty(0))
    #: (mean, variance, running mean, running variance) of each batch-norm layer.
    statistics: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)


@contextmanager
def recorded(teacher: Model, settings: ObjectiveSettings) -> Iterator[Record]:
    """Record what the switched-on terms need of the teacher's next forward pass.

    Raises UserError if batch-norm statistics are asked for and the teacher stores none, or the pass uses no such layer.
    """
    record, hooks = Record(), []

    def keep_features(_: nn.Module, inputs: Any) -> None:
        record.features = inputs[0]

    def keep_statistics(layer: nn.Module, inputs: Any) -> None:
        assert isinstance(layer.running_mean, Tensor)
        assert isinstance(layer.running_var, Tensor)
        record.statistics.append((*moments(inputs[0]), layer.running_mean, layer.running_var))

    if settings.activation or settings.contrastive:
        hooks.append(last_dense(teacher).register_forward_pre_hook(keep_features))
    if settings.batch_norm:
        layers = teacher.batch_norms()
        if not layers:
            raise UserError("objective.batch_norm: the teacher has no batch-norm layer with statistics; set it to 0")
        hooks += [layer.register_forward_pre_hook(keep_statistics) for layer in layers]
    try:
        yield record
        if (settings.activation or settings.contrastive) and record.features.dim() < 2:
            raise UserError(
                "objective.activation, objective.contrastive: the teacher does not use its output layer as "
                "PyTorch's modules are used; set them to 0"
            )
        if settings.batch_norm and not record.statistics:
            raise UserError("objective.batch_norm: the teacher does not use its batch-norm layers; set it to 0")
    finally:
        for hook in hooks:
            hook.remove()


def last_dense(
    model: Model,
    why: str = "objective.activation, objective.contrastive, student.features_weight, student.layers_weight:",
) -> nn.Linear:
    """The dense layer that answers; raises UserError, which begins with `why`, if there is none."""
    outputs = model.config.actions + model.config.value
    found = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == outputs]
    if not found:
        raise UserError(f"{why} the model has no dense output layer; leave it out")
    return found[-1]


def views(observations: Tensor, settings: GeneratorSettings, spec: ObservationSpec, rng: torch.Generator) -> Tensor:
    """Observations (N, *shape) followed by further views of them, (views * N, *shape); vectors have one view only."""
    if not spec.is_image or settings.views == 1:
        return observations
    images = spec.channels_first(observations)
    further = [shifted(images, settings.shift, rng) for _ in range(settings.views - 1)]
    if settings.mirror:
        further = [half_mirrored(view, rng) for view in further]
    return spec.arranged(torch.cat([images, *further]))


def half_mirrored(images: Tensor, rng: torch.Generator) -> Tensor:
    """Images (N, channels, height, width), each as it is or its mirror image, by chance."""
    coin = torch.rand((len(images), 1, 1, 1), generator=rng, device=rng.device).to(images.device) < 0.5
    return torch.where(coin, images.flip(3), images)


def shifted(images: Tensor, most: int, rng: torch.Generator) -> Tensor:
    """Images (N, channels, height, width), each moved by its own -most to most pixels along both axes; edges repeat."""
    count, channels, height, width = images.shape
    device = images.device
    down, right = torch.randint(-most, most + 1, (2, count, 1, 1, 1), generator=rng, device=rng.device).to(device)
    rows = (torch.arange(height, device=device).reshape(1, 1, -1, 1) + down).clamp(0, height - 1)
    columns = (torch.arange(width, device=device) + right).clamp(0, width - 1)
    samples = torch.arange(count, device=device).reshape(-1, 1, 1, 1)
    return images[samples, torch.arange(channels, device=device).reshape(1, -1, 1, 1), rows, columns]


def with_source(model: Model, **entries: Any) -> Model:
    """Add entries to what the model's config says about its origin; returns the model."""
    model.config = replace(model.config, source={**model.config.source, **entries})
    return model
