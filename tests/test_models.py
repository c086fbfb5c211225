"""Networks that are written for speed compute what their plain layers would."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import nn

from gasim_ray.core.model import Model, ModelConfig
from gasim_ray.errors import UserError
from gasim_ray.models import build_network
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


@pytest.mark.parametrize(
    ("architecture", "millions"),
    [
        ({"name": "resnet", "depth": 18}, 11.17),
        ({"name": "resnet", "depth": 34}, 21.28),
        ({"name": "wide_resnet", "depth": 16, "width": 1}, 0.18),
        ({"name": "wide_resnet", "depth": 16, "width": 2}, 0.69),
        ({"name": "wide_resnet", "depth": 40, "width": 2}, 2.24),
    ],
)
def test_residual_networks_have_the_published_sizes(architecture: dict[str, Any], millions: float) -> None:
    with torch.device("meta"):
        network = build_network(architecture, (3, 32, 32), 10)
        assert network(torch.empty(2, 3, 32, 32)).shape == (2, 10)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize("name", ["resnet", "wide_resnet"])
def test_residual_networks_without_normalisation_have_none_and_learn(name: str) -> None:
    torch.manual_seed(0)
    network = build_network({"name": name, "width": 4, "normalised": False}, (1, 12, 12), 3)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in build_network({"name": name, "width": 2}, (1, 8, 8), 3).modules())
    before = [p.detach().clone() for p in network.parameters()]
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01)
    for _ in range(3):  # a branch whose scale is zero learns once that has moved
        optimiser.zero_grad()
        network(torch.randn(8, 1, 12, 12)).square().sum().backward()
        optimiser.step()
    assert not any(p.equal(was) for p, was in zip(network.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("architecture", "said"),
    [({"name": "resnet", "depth": 50}, "depth 50 is not one of 18, 34"), ({"name": "wide_resnet", "depth": 17}, "17")],
)
def test_residual_networks_of_other_depths_are_refused(architecture: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build_network(architecture, (3, 32, 32), 10)


def test_lenet_refuses_other_sizes() -> None:
    with pytest.raises(ValueError, match="28x28 or 32x32"):
        LeNet5((1, 30, 30), 10)


@pytest.mark.parametrize("architecture", [{"name": "resnet", "width": 4}, {"name": "wide_resnet"}])
def test_half_precision_and_channels_last_change_little(architecture: dict[str, Any]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Model(ModelConfig(architecture, tiny.COLOUR, 10, "logits")).eval()
        images = torch.rand(8, 3, 32, 32, requires_grad=True)
    exact = model(images)
    torch.testing.assert_close(model.computing(bf16=False, channels_last=True)(images), exact, atol=1e-4, rtol=1e-4)
    halved = model.computing(bf16=True, channels_last=True)(images)
    assert halved.dtype == torch.float32
    assert not torch.equal(halved, exact)
    torch.testing.assert_close(halved, exact, atol=0.1, rtol=0.1)
    (gradient,) = torch.autograd.grad(halved.sum(), images)
    assert gradient.abs().sum() > 0


def test_a_centred_network_does_not_see_a_pictures_level() -> None:
    torch.manual_seed(0)
    network = build_network(
        {"name": "cnn", "filters": [[4, 4, 2], [4, 3, 1]], "hidden": [8], "centred": True}, (2, 12, 12), 3
    )
    pictures = torch.randn(5, 2, 12, 12)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        torch.testing.assert_close(network(pictures), network(pictures + 3.0), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(network(pictures), network(3.0 * pictures), atol=1e-3)
