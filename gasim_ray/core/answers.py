"""What a student learns of a teacher's answer, as parts that stand beside one another in columns.

Policy logits always; the state's value with `student.value_weight`; what the last layer reads, with
`student.features_weight`; what the layers between the first and the last read, with `student.layers_weight` (Romero et
al. 2015, "FitNets", for all layers at once). A pool keeps the columns, whatever they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from gasim_ray.core.distill import last_dense, student_loss
from gasim_ray.core.model import Model
from gasim_ray.core.outputs import policy_logits
from gasim_ray.core.settings import StudentSettings
from gasim_ray.core.svd import low_rank_layers
from gasim_ray.errors import UserError

#: Most numbers of what a layer reads that are compared, always the same ones: a convolution reads thousands.
COMPARED = 768


def answer(model: Model, observations: Tensor, settings: StudentSettings) -> Tensor:
    """What a teacher or a student answers to observations (N, *spec.shape): (N, sum of `widths`) float32."""
    parts = answer_parts(model, observations, settings)
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def answer_parts(model: Model, observations: Tensor, settings: StudentSettings) -> list[Tensor]:
    """The parts of `answer`: logits, value, features, one for each layer between; those that are asked for."""
    with read_by(layers_read(model, settings)) as read:
        if settings.value_weight:
            outputs, value = model.with_value(observations)
            values = [value.unsqueeze(1)]
        else:
            outputs, values = model(observations), []
    if any(part.dim() < 2 for part in read):
        raise UserError(
            "student.features_weight, student.layers_weight: the network does not use all its layers as PyTorch's "
            "modules are used; set both to 0"
        )
    return [policy_logits(outputs, model.config.output_scale), *values, *read]


def layers_read(model: Model, settings: StudentSettings) -> list[nn.Module]:
    """The layers of which it counts what they read."""
    last = [last_dense(model)] if settings.features_weight else []
    between = inner_layers(model) if settings.layers_weight else []
    return [*last, *(model.network.get_submodule(name) for name in between)]


def inner_layers(model: Model) -> list[str]:
    """Names of the convolutions and dense layers between the first and those that answer; two of low rank are one."""
    low, last = low_rank_layers(model), last_layers(model)
    whole = [name for name, module in model.network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    found = dict.fromkeys(next((base for base in low if name.startswith(f"{base}.")), name) for name in whole)
    return [name for name in list(found)[1:] if model.network.get_submodule(name) not in last]


def last_layers(model: Model) -> list[nn.Module]:
    """The dense layer that answers, and that of a dueling network's value."""
    value = getattr(model.network, "value", None)
    return [last_dense(model), *(list(value.modules())[-1:] if isinstance(value, nn.Module) else [])]


@contextmanager
def read_by(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Fill a list with what these layers read in the next forward pass, (N, at most COMPARED) each, in their order."""
    read, kept = [torch.empty(0)] * len(layers), {id(layer): place for place, layer in enumerate(layers)}

    def keep(layer: nn.Module, inputs: Any) -> None:
        read[kept[id(layer)]] = some_of(inputs[0])

    hooks = [layer.register_forward_pre_hook(keep) for layer in layers]
    try:
        yield read
    finally:
        for hook in hooks:
            hook.remove()


def some_of(read: Tensor) -> Tensor:
    """What a layer read (N, ...) as float32 (N, at most COMPARED)."""
    flat = read.flatten(1).float()
    size = flat.shape[1]
    return flat if size <= COMPARED else flat.index_select(1, compared(size, flat.device))


@lru_cache
def compared(size: int, device: torch.device) -> Tensor:
    """Which of so many numbers are compared; the same on every device."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(0))[:COMPARED].to(device)


def widths(model: Model, settings: StudentSettings) -> list[int]:
    """How many columns each part of an answer has."""
    with torch.no_grad():
        parts = answer_parts(deepcopy(model).cpu().eval(), example(model), settings)
    return [part.shape[1] for part in parts]


def example(model: Model) -> Tensor:
    """One observation (1, *spec.shape)."""
    spec = model.config.observation
    return torch.zeros((1, *spec.shape), dtype=spec.torch_dtype)


def answer_loss(student: Tensor, teacher: Tensor, parts: Sequence[int], settings: StudentSettings) -> Tensor:
    """Loss (N,) of two answers (N, sum of parts): that of the policy, and the weighted squared errors of the rest.

    The error of what a layer reads is a share of its mean square in the teacher.
    """
    (own, *own_read), (given, *given_read) = (torch.split(answers, list(parts), 1) for answers in (student, teacher))
    loss = student_loss(own, given, settings)
    if settings.value_weight:
        loss = loss + settings.value_weight * (own_read.pop(0) - given_read.pop(0)).square().squeeze(1)
    weights = [settings.features_weight] if settings.features_weight else []
    weights += [settings.layers_weight] * (len(own_read) - len(weights))
    for weight, mine, aim in zip(weights, own_read, given_read, strict=True):
        loss = loss + weight * (mine - aim).square().mean(1) / aim.square().mean().clamp_min(1e-8)
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
    if settings.layers_weight:
        theirs, own = (read_shapes(model) for model in (teacher, student))
        if not theirs:
            raise UserError(
                "student.layers_weight: the teacher has no layer between the first and the last; set it to 0"
            )
        different = [name for name in {**theirs, **own} if theirs.get(name) != own.get(name) or not own[name]]
        if different:
            name = different[0]
            has, had = (f"reads {of[name]}" if name in of else "is none of those between" for of in (own, theirs))
            raise UserError(
                f"student.layers_weight: {name} {has} in the student, {had} in the teacher; give them the same layers, "
                "or set it to 0"
            )


@torch.no_grad()
def read_shapes(model: Model) -> dict[str, list[int]]:
    """What each layer between reads of one observation; nothing, if the network does not use it."""
    whole = deepcopy(model).cpu().eval()
    shapes: dict[str, list[int]] = {name: [] for name in inner_layers(whole)}
    for name in shapes:
        whole.network.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: shapes.update({name: list(inputs[0].shape[1:])})
        )
    whole(example(whole))
    return shapes
