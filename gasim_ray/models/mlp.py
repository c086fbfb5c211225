"""Multi-layer perceptrons: students of vectors, and the default policies of RLlib."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "elu": nn.ELU, "silu": nn.SiLU}


def dense(sizes: Sequence[int], activation: str, last_activation: bool) -> nn.Sequential:
    """Linear layers from sizes[0] to sizes[-1] with an activation after each, or after each but the last."""
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(inputs, outputs))
        if last_activation or index < len(sizes) - 2:
            layers.append(ACTIVATIONS[activation]())
    return nn.Sequential(*layers)


class MLP(nn.Module):
    """Dense layers of these sizes, flattened inputs (N, *input_shape) -> (N, outputs)."""

    def __init__(
        self,
        input_shape: tuple[int, ...],
        outputs: int,
        hidden: Sequence[int] = (64, 64),
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.layers = dense([prod(input_shape), *hidden, outputs], activation, last_activation=False)

    def forward(self, x: Tensor) -> Tensor:
        """Float input (N, *input_shape) -> (N, outputs)."""
        result: Tensor = self.layers(x.flatten(1))
        return result


class DuelingMLP(nn.Module):
    """Q-values as value plus centred advantages (Wang et al. 2016, equation 9).

    `hidden` is the shared encoder; each stream has its own hidden layers after it.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        outputs: int,
        hidden: Sequence[int] = (256, 256),
        stream_hidden: Sequence[int] = (256,),
        activation: str = "tanh",
        stream_activation: str = "relu",
    ) -> None:
        super().__init__()
        self.encoder = dense([prod(input_shape), *hidden], activation, last_activation=True)
        features = hidden[-1] if hidden else prod(input_shape)
        self.advantage = dense([features, *stream_hidden, outputs], stream_activation, last_activation=False)
        self.value = dense([features, *stream_hidden, 1], stream_activation, last_activation=False)

    def forward(self, x: Tensor) -> Tensor:
        """Float input (N, *input_shape) -> Q-values (N, outputs)."""
        features = self.encoder(x.flatten(1))
        advantage: Tensor = self.advantage(features)
        q_values: Tensor = self.value(features) + advantage - advantage.mean(1, keepdim=True)
        return q_values
