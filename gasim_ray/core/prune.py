"""A student that starts as the teacher cut down to its size: from weights alone, before any distillation.

Of each layer those units are kept from which the next layer's input can best be rebuilt, and the next layer's weights
take over what the dropped units carried (as ThiNet does for filters, Luo et al. 2017). What units answer is measured on
invented observations.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from gasim_ray.core.model import Model
from gasim_ray.core.prior import random_observations
from gasim_ray.core.seeds import rng

#: A layer that mixes all units of the one before it.
Layer = nn.Conv2d | nn.Linear
#: Observations on which a network of one's own is tried.
CHAIN_OBSERVATIONS = 256


def layers_of(model: Model) -> list[Layer]:
    """Convolutions and dense layers, in the order in which they were registered."""
    return [m for m in model.network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def kinds(model: Model) -> list[type[nn.Module]]:
    """The types of its innermost modules, activations included, in order."""
    return [type(m) for m in model.network.modules() if not list(m.children())]


def window(layer: Layer) -> tuple[Any, ...]:
    """How a convolution moves over its input; nothing for a dense layer."""
    return (layer.stride, layer.padding, layer.dilation, layer.groups) if isinstance(layer, nn.Conv2d) else ()


def prune_obstacle(teacher: Model, student: Model) -> str | None:
    """Why the student cannot be cut out of the teacher, in words; None if it is the same chain with fewer units."""
    wide, narrow = layers_of(teacher), layers_of(student)
    if any(getattr(m, "skips", False) for m in teacher.network.modules()):
        return "the teacher's layers are no chain but pass others by"
    if getattr(teacher.network, "value", None) is not None:
        return "the teacher is a dueling network, whose answers are a sum of two layers'"
    with_weights = [m for m in teacher.network.modules() if list(m.parameters(recurse=False))]
    if len(with_weights) != len(wide) or not wide:
        return "the teacher has other layers than convolutions and dense ones"
    if kinds(teacher) != kinds(student) or [window(m) for m in wide] != [window(m) for m in narrow]:
        return "the student's layers and activations are not the teacher's"
    units = (wide[0].weight.shape[1], narrow[0].weight.shape[1])
    for number, (big, small) in enumerate(zip(wide, narrow, strict=True), start=1):
        places, rest = divmod(big.weight.shape[1], units[0])
        if rest or big.weight.shape[2:] != small.weight.shape[2:] or (big.bias is None) != (small.bias is None):
            return f"layer {number} of the teacher does not continue the one before it as the student's does"
        if small.weight.shape[1] != places * units[1] or small.weight.shape[0] > big.weight.shape[0]:
            return f"layer {number} of the student is no part of the teacher's"
        units = (big.weight.shape[0], small.weight.shape[0])
    if any(":" in m.config.architecture["name"] and not is_chain(m) for m in (teacher, student)):
        return "the teacher's or the student's network does more than one layer after the other"
    return None


@torch.no_grad()
def is_chain(model: Model) -> bool:
    """Whether a layer's units may change places, and the next layer's inputs with them, as in a chain of layers.

    What a network of one's own does between its layers cannot be read from them.
    """
    whole, changed = (deepcopy(model).cpu().eval().computing(False, model.channels_last) for _ in range(2))
    layers, random = layers_of(changed), rng("cpu", 0)
    places = torch.arange(layers[0].weight.shape[1])
    for layer in layers:
        weight = by_unit(layer, len(places))[:, places]
        last = layer is layers[-1]
        places = torch.arange(len(weight)) if last else torch.randperm(len(weight), generator=random)
        layer.weight.copy_(weight[places].reshape(layer.weight.shape))
        if layer.bias is not None:
            layer.bias.copy_(layer.bias[places])
    observations = random_observations(model, CHAIN_OBSERVATIONS)
    answers = whole(observations)
    return bool((answers - changed(observations)).abs().max() <= 1e-3 * answers.std())


@torch.no_grad()
def cut_down(teacher: Model, student: Model, observations: Tensor) -> None:
    """Fill the student with the units of the teacher that matter most on the observations (N, *spec.shape).

    Both are on the CPU, and nothing stands in the way (`prune_obstacle`). The student answers with policy logits,
    whatever the teacher's outputs are, and may have another normaliser; clipping by the teacher's is not carried over.
    """
    bf16, teacher.bf16 = teacher.bf16, False
    inputs = list(with_layer_inputs(teacher, observations)[1].values())
    teacher.bf16 = bf16
    wide, narrow = layers_of(teacher), layers_of(student)
    mixing, offset = normaliser_change(teacher, student)
    for index, (big, small) in enumerate(zip(wide, narrow, strict=True)):
        weight = by_unit(big, len(mixing))
        rebuilt = torch.einsum("oup,uk->okp", weight, mixing)
        shift = torch.einsum("oup,u->o", weight, offset)
        if index + 1 < len(wide):
            following = by_unit(wide[index + 1], len(weight))
            if index + 2 == len(wide):
                following = following[: teacher.config.actions]  # without the state's value
            kept, mixing, offset = choose_units(inputs[index + 1], following, small.weight.shape[0])
        else:
            kept = torch.arange(len(small.weight))  # without the teacher's value, if it has one
        small.weight.copy_(rebuilt[kept].reshape(small.weight.shape))
        if small.bias is not None and big.bias is not None:
            small.bias.copy_((big.bias + shift)[kept])
    for parameter in narrow[-1].parameters():
        parameter.div_(teacher.config.output_scale)


def normaliser_change(teacher: Model, student: Model) -> tuple[Tensor, Tensor]:
    """What the teacher's network reads as a linear function of what the student's reads: (units, units), (units,)."""
    units = teacher.config.observation.network_shape[0]
    (mean, std), (own_mean, own_std) = (
        (torch.tensor(m.config.observation.mean).expand(units), torch.tensor(m.config.observation.std).expand(units))
        for m in (teacher, student)
    )
    return torch.diag(own_std / std), (own_mean - mean) / std


def by_unit(layer: Layer, units: int) -> Tensor:
    """A layer's weights as (outputs, units before it, weights from each of them)."""
    return layer.weight.reshape(layer.weight.shape[0], units, -1)


def with_layer_inputs(
    model: Model, observations: Tensor, layers: Sequence[nn.Module] | None = None
) -> tuple[Tensor, dict[nn.Module, Tensor]]:
    """The model's outputs, and what each of these layers (by default all) first read, (N, ...), in that order."""
    found: dict[nn.Module, Tensor] = {}

    def keep(layer: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
        found.setdefault(layer, [*inputs, *named.values()][0])

    asked = layers_of(model) if layers is None else layers
    hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in asked]
    try:
        return model(observations), found
    finally:
        for hook in hooks:
            hook.remove()


def rows_read(layer: nn.Module, inputs: Tensor) -> Tensor:
    """What a layer reads as rows (N * places, inputs): for a convolution what lies under its kernel, for others all."""
    if not isinstance(layer, nn.Conv2d):
        return inputs
    sizes = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return F.unfold(inputs, *sizes).transpose(1, 2).flatten(0, 1)  # type: ignore[arg-type]


def choose_units(inputs: Tensor, following: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Units to keep (count,), and all of them as a linear function of those: (units, count) and (units,).

    inputs: (N, units * places, ...) what the next layer reads; following: that layer's weights by unit. Greedy: each
    unit is the one that leaves least of the variance of the next layer's sums unexplained.
    """
    units = following.shape[1]
    samples = inputs.reshape(len(inputs), units, -1).transpose(1, 2).reshape(-1, units).double()
    mean = samples.mean(0)
    covariance = (samples - mean).T @ (samples - mean) / len(samples)
    weighed = torch.einsum("oup,ovp->uv", following.double(), following.double())
    left, kept = covariance.clone(), list[int]()
    floor = float(1e-9 * covariance.diagonal().max()) + 1e-12
    for _ in range(count):
        gain = torch.einsum("ju,uv,vj->j", left, weighed, left) / left.diagonal().clamp_min(floor)
        gain[kept] = -1.0
        best = int(gain.argmax())
        kept.append(best)
        left = left - torch.outer(left[:, best], left[best]) / left[best, best].clamp_min(floor)
    among = covariance[kept][:, kept] + floor * torch.eye(count)
    mixing = torch.linalg.solve(among, covariance[kept]).T
    return torch.tensor(kept), mixing.float(), (mean - mixing @ mean[kept]).float()
