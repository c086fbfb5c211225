"""LeNet-5 and its half, the pair on which data-free distillation is compared (Lopes et al. 2017; DAFL 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from gasim_ray.models.shape import picture_shape


class PooledConvolution(nn.Conv2d):
    """A convolution, 2x2 max-pooling and ReLU in one: the same function as the three layers, faster on a CPU.

    The four outputs that are pooled come from one convolution of the input with every 2x2 block of pixels folded into
    channels (`pixel_unshuffle`): a quarter of the positions, and neither the whole output nor its indices are kept.
    The kernel is square, of odd size.
    """

    def __init__(self, inputs: int, outputs: int, size: int, padding: int = 0) -> None:
        super().__init__(inputs, outputs, size)
        self.margin = padding

    def forward(self, input: Tensor) -> Tensor:
        """(N, inputs, height, width) -> (N, outputs, (height - size + 1) / 2, ...); once padded, height is even."""
        placed = [F.pad(self.weight, (x, 1 - x, y, 1 - y)) for y in (0, 1) for x in (0, 1)]
        padded = F.pad(input, (self.margin,) * 4) if self.margin else input
        folded = F.pixel_unshuffle(padded, 2)
        bias = None if self.bias is None else self.bias.repeat(4)
        blocks = F.conv2d(folded, F.pixel_unshuffle(torch.cat(placed), 2), bias)
        return blocks.reshape(len(blocks), 4, -1, *blocks.shape[2:]).amax(1).relu()


class LeNet5(nn.Module):
    """LeNet-5 with ReLU and max-pooling; `width` 1.0 is the teacher, 0.5 the half-sized student.

    Three 5x5 convolutions of 6, 16 and 120 channels and dense layers of 84 and `outputs` (LeCun et al. 1998), each
    channel count times the width. Reads 28x28 (padded by 2) or 32x32 images.
    """

    def __init__(self, input_shape: tuple[int, ...], outputs: int, width: float = 1.0) -> None:
        super().__init__()
        channels, height, side = picture_shape(input_shape)
        if height != side or side not in (28, 32):
            raise ValueError("LeNet-5 reads 28x28 or 32x32 images")
        c1, c3, c5, f6 = (int(n * width) for n in (6, 16, 120, 84))
        self.features = nn.Sequential(
            PooledConvolution(channels, c1, 5, padding=(32 - side) // 2),
            PooledConvolution(c1, c3, 5),
            # The third convolution sees all of its 5x5 input at once.
            nn.Flatten(),
            nn.Linear(25 * c3, c5),
            nn.ReLU(),
            nn.Linear(c5, f6),
            nn.ReLU(),
        )
        self.head = nn.Linear(f6, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Float images (N, channels, side, side) -> logits (N, outputs)."""
        logits: Tensor = self.head(self.features(x))
        return logits
