"""LeNet-5 and its half, the pair on which data-free distillation is compared (Lopes et al. 2017; DAFL 2019)."""

from __future__ import annotations

from torch import Tensor, nn


class LeNet5(nn.Module):
    """LeNet-5 with ReLU and max-pooling; `width` 1.0 is the teacher, 0.5 the half-sized student.

    Three 5x5 convolutions of 6, 16 and 120 channels and dense layers of 84 and `outputs` (LeCun et al. 1998), each
    channel count times the width. Reads 28x28 (padded by 2) or 32x32 images.
    """

    def __init__(self, input_shape: tuple[int, ...], outputs: int, width: float = 1.0) -> None:
        super().__init__()
        channels, height, side = input_shape
        if height != side or side not in (28, 32):
            raise ValueError("LeNet-5 reads 28x28 or 32x32 images")
        # Pooling before ReLU is the same function at a quarter of the ReLU's work.
        c1, c3, c5, f6 = (int(n * width) for n in (6, 16, 120, 84))
        self.features = nn.Sequential(
            nn.Conv2d(channels, c1, 5, padding=(32 - side) // 2),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(c1, c3, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(c3, c5, 5),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(c5, f6),
            nn.ReLU(),
        )
        self.head = nn.Linear(f6, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Float images (N, channels, side, side) -> logits (N, outputs)."""
        logits: Tensor = self.head(self.features(x))
        return logits
