"""Networks that are written for speed compute what their plain layers would."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gasim_ray.models.lenet import LeNet5, PooledConvolution


@pytest.mark.parametrize(("channels", "side", "padding"), [(1, 28, 2), (3, 32, 0), (6, 14, 0)])
def test_a_pooled_convolution_is_convolution_pooling_and_relu(channels: int, side: int, padding: int) -> None:
    layer = PooledConvolution(channels, 7, 5, padding=padding).double()
    plain = nn.Conv2d(channels, 7, 5, padding=padding).double()
    plain.load_state_dict(layer.state_dict())
    images = torch.randn(4, channels, side, side, dtype=torch.float64, requires_grad=True)
    outputs = layer(images), nn.functional.max_pool2d(plain(images), 2).relu()
    torch.testing.assert_close(*outputs)
    weight = torch.randn_like(outputs[0])
    gradients = [
        torch.autograd.grad((output * weight).sum(), [images, *part.parameters()])
        for output, part in zip(outputs, (layer, plain), strict=True)
    ]
    torch.testing.assert_close(*gradients)


def test_lenet_has_the_published_sizes() -> None:
    sizes = [sum(p.numel() for p in LeNet5((1, 28, 28), 10, width).parameters()) for width in (1.0, 0.5)]
    assert sizes == [61_706, 15_738]


def test_lenet_refuses_other_sizes() -> None:
    with pytest.raises(ValueError, match="28x28 or 32x32"):
        LeNet5((1, 30, 30), 10)
