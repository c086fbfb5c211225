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
