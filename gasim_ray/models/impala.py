"""The residual network of IMPALA (Espeholt et al. 2018, figure 3, right, without its recurrent layer)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn
from torch.nn import functional

from gasim_ray.models.shape import picture_shape


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))), all of one width."""

    #: Its layers are no chain (see core.prune).
    skips = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, height, width) -> the same."""
        inner: Tensor = self.second(functional.relu(self.first(functional.relu(x))))
        return x + inner


class Impala(nn.Module):
    """For each number of channels a convolution, a halving maximum and two residual blocks; then a dense layer."""

    def __init__(
        self, input_shape: tuple[int, ...], outputs: int, channels: Sequence[int] = (16, 32, 32), hidden: int = 256
    ) -> None:
        super().__init__()
        before, height, width = picture_shape(input_shape)
        stages: list[nn.Module] = []
        for count in channels:
            stages += [nn.Conv2d(before, count, 3, padding=1), nn.MaxPool2d(3, 2, 1)]
            stages += [ResidualBlock(count), ResidualBlock(count)]
            before, height, width = count, (height + 1) // 2, (width + 1) // 2
        self.stages = nn.Sequential(*stages)
        self.hidden = nn.Linear(prod((before, height, width)), hidden)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Float pictures (N, channels, height, width) -> logits or Q-values (N, outputs)."""
        features = functional.relu(self.stages(x)).flatten(1)
        outputs: Tensor = self.head(functional.relu(self.hidden(features)))
        return outputs
