"""Residual networks for small images: ResNet-18 and -34 (He et al. 2016a) and wide ones (Zagoruyko & Komodakis 2016).

As the data-free literature uses them on CIFAR-10: a 3x3 first convolution, no pooling before the blocks. Without
normalisation (`normalised: false`) every branch is scaled by a learned scalar that starts at 0 (SkipInit, De & Smith
2020), so that deep ones train; there are then no statistics of the data to match.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

#: Blocks in each of the four stages.
RESNET_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


def norm(channels: int, normalised: bool) -> nn.Module:
    """Batch normalisation, or nothing."""
    return nn.BatchNorm2d(channels) if normalised else nn.Identity()


def convolution(inputs: int, outputs: int, size: int, stride: int, normalised: bool) -> nn.Conv2d:
    """A convolution that keeps the size at stride 1; its bias is left to the normalisation."""
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=not normalised)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


class Branch(nn.Module):
    """Scales a residual branch by a learned scalar, 0 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> the same, scaled."""
        return self.scale * x


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, activation after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int, normalised: bool) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            convolution(inputs, outputs, 3, stride, normalised),
            norm(outputs, normalised),
            nn.ReLU(),
            convolution(outputs, outputs, 3, 1, normalised),
            norm(outputs, normalised) if normalised else Branch(),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(convolution(inputs, outputs, 1, stride, normalised), norm(outputs, normalised))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, height, width) -> (N, outputs, height / stride, width / stride)."""
        return torch.relu(self.branch(x) + self.shortcut(x))


class WideBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, activation before each convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int, normalised: bool) -> None:
        super().__init__()
        self.before = nn.Sequential(norm(inputs, normalised), nn.ReLU())
        self.branch = nn.Sequential(
            convolution(inputs, outputs, 3, stride, normalised),
            norm(outputs, normalised),
            nn.ReLU(),
            convolution(outputs, outputs, 3, 1, normalised),
            nn.Identity() if normalised else Branch(),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else convolution(inputs, outputs, 1, stride, normalised)

    @property
    def first(self) -> nn.Conv2d:
        """The convolution that reads the activations."""
        layer = self.branch[0]
        assert isinstance(layer, nn.Conv2d)
        return layer

    @property
    def between(self) -> nn.Sequential:
        """Normalisation and activation between the two."""
        return nn.Sequential(self.branch[1], self.branch[2])

    @property
    def second(self) -> nn.Conv2d:
        """The convolution whose sums are added."""
        layer = self.branch[3]
        assert isinstance(layer, nn.Conv2d)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, height, width) -> (N, outputs, height / stride, width / stride)."""
        active: Tensor = self.before(x)
        added: Tensor = self.branch(active) + (x if self.shortcut is None else self.shortcut(active))
        return added


def stages(
    block: type[nn.Module], inputs: int, widths: Sequence[int], counts: Sequence[int], normalised: bool
) -> nn.Sequential:
    """Blocks of each width; every stage but the first halves the picture."""
    layers: list[nn.Module] = []
    for stage, (width, count) in enumerate(zip(widths, counts, strict=True)):
        for index in range(count):
            layers.append(block(inputs, width, 2 if stage > 0 and index == 0 else 1, normalised))
            inputs = width
    return nn.Sequential(*layers)


class ResNet(nn.Module):
    """ResNet-18 or -34; `width` is the number of channels of the first stage, 64 in the paper.

    Raises ValueError for another depth.
    """

    def __init__(
        self, input_shape: tuple[int, ...], outputs: int, depth: int = 18, width: int = 64, normalised: bool = True
    ) -> None:
        super().__init__()
        if depth not in RESNET_BLOCKS:
            raise ValueError(f"depth {depth} is not one of {', '.join(map(str, RESNET_BLOCKS))}")
        widths = [width * 2**stage for stage in range(4)]
        self.stem = nn.Sequential(
            convolution(input_shape[0], width, 3, 1, normalised), norm(width, normalised), nn.ReLU()
        )
        self.stages = stages(BasicBlock, width, widths, RESNET_BLOCKS[depth], normalised)
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Float images (N, channels, height, width) -> logits (N, outputs)."""
        features: Tensor = self.stages(self.stem(x)).mean((2, 3))
        logits: Tensor = self.head(features)
        return logits


class WideResNet(nn.Module):
    """WRN-`depth`-`width`: (depth - 4) / 6 blocks in each of three stages of 16, 32 and 64 channels times the width.

    Raises ValueError for a depth that gives no whole number of blocks.
    """

    def __init__(
        self, input_shape: tuple[int, ...], outputs: int, depth: int = 16, width: int = 1, normalised: bool = True
    ) -> None:
        super().__init__()
        count, rest = divmod(depth - 4, 6)
        if rest or count < 1:
            raise ValueError(f"depth {depth} is not 4 more than a multiple of 6")
        self.normalised = normalised
        widths = [16 * width, 32 * width, 64 * width]
        self.stem = convolution(input_shape[0], 16, 3, 1, normalised)
        self.stages = stages(WideBlock, 16, widths, (count,) * 3, normalised)
        self.last = nn.Sequential(norm(widths[-1], normalised), nn.ReLU())
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Float images (N, channels, height, width) -> logits (N, outputs)."""
        features: Tensor = self.last(self.stages(self.stem(x))).mean((2, 3))
        logits: Tensor = self.head(features)
        return logits
