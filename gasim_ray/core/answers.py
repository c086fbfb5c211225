"""What a student learns of a teacher's answer, as columns beside one another.

Policy logits always; the state's value with `student.value_weight`; what the last layer reads, with
`student.features_weight`. A pool keeps the columns, whatever they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gasim_ray.core.distill import last_dense, student_loss
from gasim_ray.core.model import Model
from gasim_ray.core.outputs import policy_logits
from gasim_ray.core.settings import StudentSettings
from gasim_ray.errors import UserError


def answer(model: Model, observations: Tensor, settings: StudentSettings) -> Tensor:
    """What a teacher or a student answers to observations (N, *spec.shape): (N, `columns`) float32."""
    read: list[Tensor] = []
    hook = None
    if settings.features_weight:
        hook = last_dense(model).register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].float()))
    try:
        if settings.value_weight:
            outputs, value = model.with_value(observations)
            read.insert(0, value.unsqueeze(1))
        else:
            outputs = model(observations)
    finally:
        if hook is not None:
            hook.remove()
    logits = policy_logits(outputs, model.config.output_scale)
    return torch.cat([logits, *read], 1) if read else logits


def columns(model: Model, settings: StudentSettings) -> int:
    """How many columns an answer has."""
    features = last_dense(model).in_features if settings.features_weight else 0
    return model.config.actions + (settings.value_weight > 0) + features


def answer_loss(student: Tensor, teacher: Tensor, actions: int, settings: StudentSettings) -> Tensor:
    """Loss (N,) of two answers (N, columns): that of the policy, and the weighted squared errors of the rest.

    The error of the features is a share of their mean square in the teacher.
    """
    loss = student_loss(student[:, :actions], teacher[:, :actions], settings)
    if settings.value_weight:
        loss = loss + settings.value_weight * (student[:, actions] - teacher[:, actions]).square()
    if settings.features_weight:
        first = actions + (settings.value_weight > 0)
        own, given = student[:, first:], teacher[:, first:]
        error = (own - given).square().mean(1) / given.square().mean().clamp_min(1e-8)
        loss = loss + settings.features_weight * error
    return loss


def check_answers(teacher: Model, student: Model, settings: StudentSettings) -> None:
    """Raise UserError if the settings ask for something that the teacher or the student does not answer."""
    if settings.value_weight and not teacher.config.value:
        raise UserError(
            f"student.value_weight: the teacher answers with {teacher.config.outputs} alone, not with a state's value; "
            "set it to 0"
        )
    if settings.features_weight:
        wide, narrow = (last_dense(model).in_features for model in (teacher, student))
        if wide != narrow:
            raise UserError(
                f"student.features_weight: the student's last layer reads {narrow} numbers, the teacher's {wide}; "
                "give them the same, or set it to 0"
            )
