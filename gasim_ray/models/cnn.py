"""Convolutional networks for pictures: RLlib's default CNN, NatureCNN (Mnih et al. 2015) and narrower ones."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gasim_ray.models.mlp import ACTIVATIONS, dense
from gasim_ray.models.shape import picture_shape

#: Channels, kernel, stride and (left, right, top, bottom) zero padding; a kernel or stride is one size or (h, w).
Filter = Sequence[Any]

#: Mnih et al. 2015, for 84x84 pictures.
NATURE: tuple[Filter, ...] = ((32, 8, 4), (64, 4, 2), (64, 3, 1))


#: What filters without a mean are multiplied by at the start. Own: a game's picture is mostly one level, which they do
#: not see, and its things stand out from it by a fraction of the range.
CONTRAST = 4.0


@torch.no_grad()
def start_centred(layer: nn.Conv2d) -> None:
    """Take a layer's filters' means from them, and raise what is left."""
    layer.weight -= layer.weight.mean((1, 2, 3), keepdim=True)
    layer.weight *= CONTRAST


class CentredConvolution(nn.Conv2d):
    """A convolution whose filters have no mean, whatever is learned: it sees contrasts, not levels."""

    def __init__(self, *sizes: Any) -> None:
        super().__init__(*sizes)
        start_centred(self)

    def forward(self, x: Tensor) -> Tensor:
        """As nn.Conv2d."""
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return functional.conv2d(x, weight, self.bias, self.stride)


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _padding(layer: Filter) -> list[int]:
    return [int(n) for n in layer[3]] if len(layer) > 3 else [0, 0, 0, 0]


def _convolution(channels: int, layer: Filter, rank: int, centred: bool) -> nn.Module:
    kernel, stride = _pair(layer[1]), _pair(layer[2])
    if centred:
        return CentredConvolution(channels, layer[0], kernel, stride)
    if not rank:
        return nn.Conv2d(channels, layer[0], kernel, stride)
    return nn.Sequential(nn.Conv2d(channels, rank, kernel, stride, bias=False), nn.Conv2d(rank, layer[0], 1))


def feature_shape(input_shape: tuple[int, ...], filters: Sequence[Filter]) -> tuple[int, int, int]:
    """(channels, height, width) after the convolutions of a (channels, height, width) picture."""
    channels, height, width = picture_shape(input_shape)
    for layer in filters:
        (kernel_h, kernel_w), (stride_h, stride_w) = _pair(layer[1]), _pair(layer[2])
        left, right, top, bottom = _padding(layer)
        height = (height + top + bottom - kernel_h) // stride_h + 1
        width = (width + left + right - kernel_w) // stride_w + 1
        channels = layer[0]
    return channels, height, width


class CNN(nn.Module):
    """Convolutions, then dense layers; with `dueling` a value stream of the same sizes (Wang et al. 2016).

    `centred` filters of the first convolution have no mean, so that a picture's level cannot matter, which a student
    from scratch does not learn from scenes.
    With a `rank` the first dense layer is a product of two, of which the first has so many units and no bias. With
    `ranks`, one for each convolution and 0 for a whole one, convolutions are likewise: one to so many channels without
    a bias, then one of single pixels.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        outputs: int,
        filters: Sequence[Filter] = NATURE,
        hidden: Sequence[int] = (512,),
        activation: str = "relu",
        hidden_activation: str = "relu",
        dueling: bool = False,
        rank: int = 0,
        ranks: Sequence[int] = (),
        centred: bool = False,
    ) -> None:
        super().__init__()
        features = prod(feature_shape(input_shape, filters))
        if features < 1:
            raise ValueError("the filters leave nothing of a picture of this size")
        if ranks and len(ranks) != len(filters):
            raise ValueError(f"{len(ranks)} ranks for {len(filters)} convolutions")
        if centred and ranks and ranks[0]:
            raise ValueError(f"centred filters, of which the rank cannot be {ranks[0]}; give 0 as the first of ranks")
        inputs = [input_shape[0], *(layer[0] for layer in filters)]
        self.convolutions = nn.ModuleList(
            _convolution(channels, layer, inner, centred and place == 0)
            for place, (channels, layer, inner) in enumerate(
                zip(inputs, filters, ranks or [0] * len(filters), strict=False)
            )
        )
        self.padding = [_padding(layer) for layer in filters]
        self.activation = ACTIVATIONS[activation]()
        self.head = dense([features, *hidden, outputs], hidden_activation, last_activation=False)
        if rank:
            inner = int(self.head[0].out_features)  # type: ignore[arg-type]
            self.head[0] = nn.Sequential(nn.Linear(features, rank, bias=False), nn.Linear(rank, inner))
        self.value = dense([features, *hidden, 1], hidden_activation, last_activation=False) if dueling else None

    def forward(self, x: Tensor) -> Tensor:
        """Float pictures (N, channels, height, width) -> logits or Q-values (N, outputs)."""
        for layer, padding in zip(self.convolutions, self.padding, strict=True):
            # Padding by nothing would be a copy.
            x = self.activation(layer(functional.pad(x, padding) if any(padding) else x))
        features = x.flatten(1)
        outputs: Tensor = self.head(features)
        if self.value is None:
            return outputs
        q_values: Tensor = self.value(features) + outputs - outputs.mean(1, keepdim=True)
        return q_values
