"""Networks as a user might write them, each with a mistake or a quirk: factories for `strange:NAME`."""

from __future__ import annotations

import torch


def broken(input_shape: tuple[int, ...], outputs: int) -> torch.nn.Module:
    """A factory of the user's with a mistake in it."""
    raise RuntimeError("no way\n  at all")


class TwoActions(torch.nn.Linear):
    """A student that answers for two actions, whatever it is asked for."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__(input_shape[0], 2)


class Unstored(torch.nn.Sequential):
    """A teacher that normalises by each batch's own statistics."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        norm = torch.nn.BatchNorm1d(input_shape[0], track_running_stats=False)
        super().__init__(norm, torch.nn.Linear(input_shape[0], outputs))


class Unread(torch.nn.Module):
    """A network whose construction goes well and whose use does not."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        raise ValueError("no vectors\n here")


class Chain(torch.nn.Module):
    """One layer after the other, with activations that are no modules."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int, width: int) -> None:
        super().__init__()
        self.first = torch.nn.Linear(input_shape[0], width)
        self.second = torch.nn.Linear(width, width)
        self.last = torch.nn.Linear(width, outputs)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        answers: torch.Tensor = self.last(self.second(self.first(observations).relu()).relu())
        return answers


class Shortcut(Chain):
    """The same layers, one of which is passed by."""

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        hidden = self.first(observations).relu()
        answers: torch.Tensor = self.last(hidden + self.second(hidden).relu())
        return answers


class Viewed(torch.nn.Module):
    """Flattens by `view`, which takes memory of one layout alone."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(input_shape[0], 3, 3)
        self.last = torch.nn.LazyLinear(outputs)
        self.last(self.first(torch.zeros(1, *input_shape)).flatten(1))

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        features = self.first(observations)
        answers: torch.Tensor = self.last(features.view(len(features), -1))
        return answers


class Named(Chain):
    """The same layers, which get what they read by its name."""

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        hidden = self.second(input=self.first(input=observations).relu()).relu()
        answers: torch.Tensor = self.last(input=hidden)
        return answers


class Functional(torch.nn.Module):
    """A network whose only layer is never called."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(input_shape[0], outputs)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(observations, self.layer.weight)
