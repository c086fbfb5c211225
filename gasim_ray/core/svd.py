"""A student that starts as the teacher with low-rank dense layers: from weights alone, without any observation.

A dense layer W is replaced by two, of which the product is W's best approximation of that rank (Eckart & Young 1936;
for networks Denton et al. 2014). All other layers are the teacher's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gasim_ray.core.model import Model


def low_rank_layers(student: Model) -> list[str]:
    """Names of the dense layers that are two, of which the first has no bias."""
    tensors = student.network.state_dict()
    bases = [name.removesuffix(".0.weight") for name in tensors if name.endswith(".0.weight")]
    pairs = [base for base in bases if f"{base}.1.bias" in tensors and f"{base}.0.bias" not in tensors]
    return [base for base in pairs if tensors[f"{base}.0.weight"].dim() == tensors[f"{base}.1.weight"].dim() == 2]


def svd_obstacle(teacher: Model, student: Model) -> str | None:
    """Why the student is not the teacher with low-rank layers, in words; None if it is."""
    wanted = {name: list(tensor.shape) for name, tensor in student.network.state_dict().items()}
    low = low_rank_layers(student)
    if not low:
        return "the student has no layer of lower rank (the setting `rank` of the architecture `cnn`)"
    if getattr(teacher.network, "value", None) is not None:
        return "the teacher is a dueling network, whose answers are a sum of two layers'"
    for base in low:
        first, second = wanted.pop(f"{base}.0.weight"), wanted.pop(f"{base}.1.weight")
        if first[0] > min(second[0], first[1]):
            return f"rank {first[0]} is more than {base}.weight has; give at most {min(second[0], first[1])}"
        wanted[f"{base}.weight"], wanted[f"{base}.bias"] = [second[0], first[1]], wanted.pop(f"{base}.1.bias")
    given = {name: list(tensor.shape) for name, tensor in teacher.network.state_dict().items()}
    if teacher.config.value and not student.config.value:
        for name in list(given)[-2:]:
            given[name][0] -= 1  # the state's value, which the student leaves out
    different = [name for name in {**given, **wanted} if given.get(name) != wanted.get(name)]
    if not different:
        return None
    name = different[0]
    return f"{name} is {given.get(name, 'absent')} in the teacher, {wanted.get(name, 'absent')} in the student"


@torch.no_grad()
def factor(teacher: Model, student: Model) -> None:
    """Fill the student with the teacher's layers, of lower rank where it has two for one; nothing stands in the way.

    The student answers with policy logits, whatever the teacher's outputs are.
    """
    filled, given = student.network.state_dict(), dict(teacher.network.state_dict())
    for base in low_rank_layers(student):
        first, second = filled[f"{base}.0.weight"], filled[f"{base}.1.weight"]
        left, right = low_rank(given.pop(f"{base}.weight"), len(first))
        first.copy_(right)
        second.copy_(left)
        filled[f"{base}.1.bias"].copy_(given.pop(f"{base}.bias"))
    for name, tensor in given.items():
        filled[name].copy_(tensor[: len(filled[name])] if tensor.dim() else tensor)
    for parameter in list(student.network.parameters())[-2:]:
        parameter.div_(teacher.config.output_scale)


def low_rank(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(outputs, rank) and (rank, inputs), of which the product is nearest to the weight (outputs, inputs)."""
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    half = s[:rank].sqrt()
    return (u[:, :rank] * half).float(), (half.unsqueeze(1) * v[:rank]).float()
