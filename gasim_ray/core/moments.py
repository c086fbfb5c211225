"""Mean and variance of each channel of a batch, at the cost of a product of matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over batch and positions of (N, channels, ...): two float32 tensors (channels,).

    On a CPU `mean` and `var` over images in bfloat16, channels last, take longer than the convolution before them, a
    product of matrices does not. Sums within a sample are rounded to the dtype of x, sums over samples are not.
    """
    mean, square = _Moments.apply(x)  # type: ignore[no-untyped-call]
    return mean, square - mean * mean


class _Moments(torch.autograd.Function):
    """(N, channels, ...) -> means of its channels and of their squares."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        rows = x.reshape(*x.shape[:2], -1).transpose(1, 2)
        ones = rows.new_ones(1, 1, rows.shape[1]).expand(len(rows), -1, -1)
        count = len(rows) * rows.shape[1]
        first, second = (torch.bmm(ones, each).float().sum((0, 1)) / count for each in (rows, rows * rows))
        return first, second

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        shape = (1, -1, *[1] * (x.dim() - 2))
        count = x.numel() // x.shape[1]
        first, second = ((g / count).to(x.dtype).reshape(shape) for g in gradients)
        return torch.addcmul(first, x, second, value=2.0)
