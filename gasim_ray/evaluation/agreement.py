"""How alike two networks answer: the same action, and the same policy."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from gasim_ray.core.model import Model, ModelConfig, check_finite
from gasim_ray.core.outputs import kl, log_policy
from gasim_ray.errors import UserError

#: Observations that are answered at once, so that images of 84x84x4 fit into memory.
BATCH = 512


def check_same_task(teacher: ModelConfig, student: ModelConfig) -> None:
    """Raise UserError unless both read the same observations, normalisers aside, and choose among as many actions."""
    for name in ("shape", "dtype", "layout", "stack", "skip"):
        own, given = (getattr(model.observation, name) for model in (student, teacher))
        if own != given:
            own, given = (list(v) if isinstance(v, tuple) else f"{name} {v}" for v in (own, given))
            raise UserError(
                f"student.observation: {own} where the teacher reads {given}; evaluate the student with the teacher it "
                "was distilled from"
            )
    if teacher.actions != student.actions:
        raise UserError(
            f"student.actions: {student.actions} where the teacher has {teacher.actions}; "
            "evaluate the student with the teacher it was distilled from"
        )


def answers(model: Model, observations: npt.NDArray[Any], who: str = "model") -> Tensor:
    """Outputs (N, actions) float32, on the CPU, to observations (N, *spec.shape) in the environment's units.

    Raises UserError, naming `who`, if the shapes do not fit or an answer is NaN or infinite.
    """
    model.config.observation.check_batch(observations)
    model.eval()
    device = next(model.parameters()).device
    with torch.inference_mode():
        batches = [
            model(torch.tensor(observations[start : start + BATCH], device=device)).float().cpu()
            for start in range(0, len(observations), BATCH)
        ]
    outputs = torch.cat(batches) if batches else torch.empty(0, model.config.actions)
    return check_finite(outputs, who)


def same_action(teacher_outputs: Tensor, student_outputs: Tensor) -> float:
    """Fraction of the rows of two (N, actions) outputs whose greatest entry is in the same place."""
    return float((teacher_outputs.argmax(1) == student_outputs.argmax(1)).double().mean())


def kl_nats(teacher_outputs: Tensor, teacher_scale: float, student_outputs: Tensor, student_scale: float) -> float:
    """Mean KL(teacher || student), in nats, of the policies that two (N, actions) outputs stand for.

    The scales are those of `ModelConfig.output_scale`.
    """
    teacher, student = log_policy(teacher_outputs, teacher_scale), log_policy(student_outputs, student_scale)
    return float(kl(teacher, student).mean().clamp(min=0.0))  # rounding makes that of equal ones negative


def constant_kl(teacher_outputs: Tensor, teacher_scale: float) -> float:
    """Mean KL in nats of the policies that (N, actions) outputs stand for to their mean, the best that never looks."""
    teacher = log_policy(teacher_outputs, teacher_scale)
    mean = teacher.exp().mean(0, keepdim=True).clamp_min(1e-12).log()
    return float(kl(teacher, mean).mean())
