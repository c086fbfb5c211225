"""A student that starts as the teacher with layers of low rank.

A dense layer or a convolution W is replaced by two, of which the product is W's best approximation of that rank (Eckart
& Young 1936; for networks Denton et al. 2014): from weights alone, or where it matters on invented observations. All
other layers are the teacher's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from gasim_ray.core.distill import last_dense
from gasim_ray.core.model import Model
from gasim_ray.core.outputs import log_policy
from gasim_ray.core.prune import layers_of, rows_read, window
from gasim_ray.models.cnn import CentredConvolution

#: Observations whose answers are looked at together.
CHUNK = 256
#: Share of the mean variance that counts for directions which no observation shows.
RIDGE = 1e-3


def low_rank_layers(student: Model) -> list[str]:
    """Names of the layers that are two, of which the first has no bias."""
    tensors = student.network.state_dict()
    bases = [name.removesuffix(".0.weight") for name in tensors if name.endswith(".0.weight")]
    pairs = [base for base in bases if f"{base}.1.bias" in tensors and f"{base}.0.bias" not in tensors]
    return [base for base in pairs if tensors[f"{base}.0.weight"].dim() == tensors[f"{base}.1.weight"].dim()]


def is_centred(model: Model) -> bool:
    """Whether the first filters have no mean, whatever their weights are."""
    return any(isinstance(module, CentredConvolution) for module in model.network.modules())


def layer_settings(model: Model) -> list[object]:
    """What the shapes of its weights do not tell of a network: activations, and how convolutions move over pictures."""
    bare = {type(m) for m in model.network.modules() if not list(m.children()) and not list(m.parameters())}
    moves = {window(m) for m in layers_of(model) if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1}
    return [bare, moves, getattr(model.network, "padding", None)]


def svd_obstacle(teacher: Model, student: Model) -> str | None:
    """Why the student is not the teacher with low-rank layers, in words; None if it is."""
    if layer_settings(student) != layer_settings(teacher):
        return "activations, strides or padding of the student are not the teacher's"
    wanted = {name: list(tensor.shape) for name, tensor in student.network.state_dict().items()}
    low = low_rank_layers(student)
    if is_centred(student) != is_centred(teacher):
        return "the first filters of one of the two have no mean (`centred`), and those of the other do"
    if not low:
        return "the student has no layer of lower rank (`rank` and `ranks` of the architecture `cnn`)"
    if getattr(teacher.network, "value", None) is not None:
        return "the teacher is a dueling network, whose answers are a sum of two layers'"
    output = list(teacher.network.state_dict())[-1].removesuffix(".bias")
    if output in low and teacher.config.value and not student.config.value:
        return f"{output}, which answers the value too in the teacher, is of low rank in the student"
    for base in low:
        first, second = wanted.pop(f"{base}.0.weight"), wanted.pop(f"{base}.1.weight")
        if first[0] > (most := min(second[0], prod(first[1:]))):
            return f"rank {first[0]} is more than {base}.weight has; give at most {most}"
        wanted[f"{base}.weight"], wanted[f"{base}.bias"] = [second[0], *first[1:]], wanted.pop(f"{base}.1.bias")
    given = {name: list(tensor.shape) for name, tensor in teacher.network.state_dict().items()}
    if teacher.config.value and not student.config.value:
        for name in list(given)[-2:]:
            given[name][0] -= 1  # the state's value, which the student leaves out
    different = [name for name in {**given, **wanted} if given.get(name) != wanted.get(name)]
    if not different:
        return None
    name = different[0]
    return f"{name} is {given.get(name, 'absent')} in the teacher, {wanted.get(name, 'absent')} in the student"


def factor(teacher: Model, student: Model, observations: Tensor | None = None, value_weight: float = 0.0) -> None:
    """Fill the student with the teacher's layers, of lower rank where it has two for one; nothing stands in the way.

    With observations (N, *spec.shape) a layer is approximated where they lead and where the policy depends on it, or
    the value, with its weight in the student's loss.
    The student answers with policy logits, whatever the teacher's outputs are. Both are on the CPU.
    """
    filled, given = student.network.state_dict(), dict(teacher.network.state_dict())
    for base in low_rank_layers(student):
        first, second, shift = (filled[f"{base}.{name}"] for name in ("0.weight", "1.weight", "1.bias"))
        weight, bias = given.pop(f"{base}.weight").flatten(1), given.pop(f"{base}.bias")
        if observations is None:
            left, right = low_rank(weight, len(first))
        else:
            seen = use_of(teacher, base, observations, value_weight)
            left, right = low_rank_in_use(weight, len(first), seen)
            bias = bias + (weight - left @ right) @ seen.mean
        for tensor, value in ((first, right), (second, left), (shift, bias)):
            tensor.copy_(value.reshape(tensor.shape))
    for name, tensor in given.items():
        filled[name].copy_(tensor[: len(filled[name])] if tensor.dim() else tensor)
    with torch.no_grad():
        for parameter in last_dense(student).parameters():
            parameter.div_(teacher.config.output_scale)


def low_rank(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(outputs, rank) and (rank, inputs), of which the product is nearest to the weight (outputs, inputs)."""
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    half = s[:rank].sqrt()
    return (u[:, :rank] * half).float(), (half.unsqueeze(1) * v[:rank]).float()


@dataclass(frozen=True)
class Use:
    """What a layer reads, a convolution at each place, and how much the policy depends on what it answers."""

    #: (inputs,): mean of what is read.
    mean: Tensor
    #: (inputs, inputs): its covariance.
    covariance: Tensor
    #: (outputs, outputs): Fisher's information of the policy about what is answered, and the value's share.
    information: Tensor


def use_of(teacher: Model, layer: str, observations: Tensor, value_weight: float = 0.0) -> Use:
    """How a teacher uses the dense layer or convolution of that name on observations (N, *spec.shape)."""
    used, bf16 = teacher.network.get_submodule(layer), teacher.bf16
    read: list[Tensor] = []
    answered: list[Tensor] = []

    def keep(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        read.append(rows_read(used, inputs[0].detach()))
        answered.append(output.detach().requires_grad_())
        return answered[-1]

    count, total, squares, information = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())
    hook = used.register_forward_hook(keep)
    teacher.bf16 = False
    try:
        for part in torch.split(observations, CHUNK):
            information = information + informed(teacher, part, answered, value_weight)
            inputs = read.pop()
            count, total = count + len(inputs), total + inputs.sum(0, dtype=torch.float64)
            squares = squares + (inputs.T @ inputs).double()
    finally:
        teacher.bf16 = bf16
        hook.remove()
    mean = total / count
    return Use(mean.float(), squares / count - torch.outer(mean, mean), information / len(observations))


def informed(teacher: Model, observations: Tensor, answered: list[Tensor], value_weight: float) -> Tensor:
    """Sum over observations of Fisher's information of the policy about what the layer last answered, at each place.

    The loss is half of that to second order; to it comes the value's squared error with its weight.
    """
    outputs, value = teacher.with_value(observations) if value_weight else (teacher(observations), None)
    answer, found = answered.pop(), torch.zeros(())

    def gradient(of: Tensor) -> Tensor:
        """(N, outputs), or (N, places, outputs)."""
        (slope,) = torch.autograd.grad(of.sum(), answer, retain_graph=True)
        return slope.unsqueeze(1) if slope.dim() == 2 else slope.flatten(2).transpose(1, 2)

    for action in log_policy(outputs, teacher.config.output_scale).unbind(1):
        slope = gradient(action)
        found = found + torch.einsum("n,nlo,nlp->op", action.detach().exp(), slope, slope)
    if value is not None:
        slope = gradient(value)
        found = found + 2 * value_weight * torch.einsum("nlo,nlp->op", slope, slope)
    return found


def low_rank_in_use(weight: Tensor, rank: int, use: Use) -> tuple[Tensor, Tensor]:
    """As `low_rank`, nearest in the policy's answers, to second order, as if they did not depend on what is read."""
    (out, out_inverse), (into, into_inverse) = roots(use.information), roots(use.covariance)
    left, right = low_rank(out @ weight.double() @ into, rank)
    return (out_inverse @ left.double()).float(), (right.double() @ into_inverse).float()


def roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric root of a positive semidefinite matrix, a little of the identity added, and its inverse; float64."""
    values, vectors = torch.linalg.eigh(matrix.double())
    values = (values.clamp_min(0) + RIDGE * values.mean().clamp_min(1e-12)).sqrt()
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T
