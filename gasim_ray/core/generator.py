"""Generators: a network from a latent vector to an observation, or the observations themselves as parameters.

Both start, improve themselves against an objective, and emit a batch; methods choose between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, prod
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from gasim_ray.core.observation import ObservationSpec
from gasim_ray.core.prior import Prior
from gasim_ray.core.settings import GeneratorSettings

#: Channels of the wider layers of DAFL's generator.
PUBLISHED_WIDTH = 128

#: Gives the observations (N, *shape) that come a step after some.
Following = Callable[[], Tensor]


class Objective(Protocol):
    """What generators minimise."""

    def __call__(self, observations: Tensor, following: Following | None = None, /) -> Tensor:
        """Float observations (N, *shape) within bounds, and those that come next if they are known -> a scalar."""


class Generator(Protocol):
    """What an actor drives."""

    def start(self, rng: torch.Generator) -> None:
        """Forget everything and begin anew."""

    def improve(self, objective: Objective, rng: torch.Generator) -> float:
        """Take the settings' gradient steps; returns the objective before the last one, 0 if there was none."""

    def emit(self, rng: torch.Generator) -> Tensor:
        """A batch (N, *shape) of float observations within bounds, without gradient."""

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on exactly as now."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""


class DirectGenerator:
    """Observations drawn from a prior and moved a few steps, by their gradients or by Adam's rule.

    They are drawn anew for every order, which is re-initialisation at its limit, or moved on for some, as set.
    """

    def __init__(self, prior: Prior, settings: GeneratorSettings, probe: torch.Generator) -> None:
        self.prior, self.settings = prior, settings
        self.spread = element_spread(prior, probe)
        self.observations = torch.empty(0)
        #: What is emitted beside them, once.
        self.kept: list[Tensor] = []

    def start(self, rng: torch.Generator) -> None:
        """Draw a batch from the prior."""
        self.observations = self.prior.sample(self.settings.batch_size, rng)
        self.kept = [self.observations] if self.settings.keep_start and self.settings.steps else []

    def improve(self, objective: Objective, rng: torch.Generator) -> float:
        """See Generator."""
        value, steps = 0.0, self.settings.steps
        direction = AdamDirection() if self.settings.adam else unit_rms
        for step in range(steps):
            x = self.observations.detach().float().requires_grad_()
            loss = objective(x)
            (gradient,) = torch.autograd.grad(loss, x)
            along = direction(smooth(gradient * self.spread, self.settings.blur, self.prior.spec))
            length = self.settings.learning_rate * (1 - 0.7 * step / max(1, steps - 1))
            moved = x.detach() - length * self.spread * along
            self.observations = torch.minimum(torch.maximum(moved, self.prior.low), self.prior.high)
            value = float(loss.detach())
        return value

    def emit(self, rng: torch.Generator) -> Tensor:
        """The observations as they are now, the first time after those of the start if these are to be kept."""
        kept, self.kept = self.kept, []
        return torch.cat([*kept, self.observations]) if kept else self.observations

    def state_dict(self) -> dict[str, Any]:
        """The observations, unless every order draws new ones."""
        return {} if self.settings.drawn_anew else {"observations": self.observations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        if state:
            self.observations = state["observations"].to(self.prior.device)


class Beside:
    """Another generator's observations beside samples of priors that stay as drawn: what it finds, and a wide rest."""

    def __init__(self, own: Generator, priors: Sequence[Prior], count: int) -> None:
        self.own, self.priors, self.count = own, priors, count
        self.start, self.improve = own.start, own.improve
        self.state_dict, self.load_state_dict = own.state_dict, own.load_state_dict

    def emit(self, rng: torch.Generator) -> Tensor:
        """See Generator; `count` samples of each prior come last."""
        return torch.cat([self.own.emit(rng), *(prior.sample(self.count, rng) for prior in self.priors)])


class NetworkGenerator:
    """A network trained with Adam; where there is a prior, what it makes starts as a sample of that prior."""

    def __init__(
        self, prior: Prior | None, settings: GeneratorSettings, spec: ObservationSpec, device: torch.device
    ) -> None:
        self.prior, self.settings, self.spec, self.device = prior, settings, spec, device
        self.low, self.high = (b.to(device) for b in spec.bounds())
        self.first: dict[str, Tensor] | None = None

    def start(self, rng: torch.Generator) -> None:
        """New weights, new optimiser, and where they are learned new latent vectors.

        With `meta` the weights are those of the last start, moved towards what became of them (Reptile, Nichol et al.
        2018, as Fast-DFKD 2022 uses it).
        """
        if self.first is not None:
            self.first = moved_towards(self.first, self.network.state_dict(), self.settings.meta)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=rng, device=rng.device)))
            network = generator_network(self.settings, self.spec, self.prior is not None)
        self.network: nn.Module = network.to(self.device)
        if self.settings.meta:
            if self.first is not None:
                self.network.load_state_dict(self.first)
            self.first = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        self.latent = self._draw(rng).requires_grad_() if self.settings.fixed_latent else None
        learned = [*self.network.parameters(), *([] if self.latent is None else [self.latent])]
        self.optimiser = torch.optim.Adam(learned, lr=self.settings.learning_rate, betas=(0.5, 0.999))

    def _draw(self, rng: torch.Generator) -> Tensor:
        return torch.randn((self.settings.batch_size, self.settings.latent), generator=rng, device=self.device)

    def improve(self, objective: Objective, rng: torch.Generator) -> float:
        """See Generator."""
        value = 0.0
        for _ in range(self.settings.steps):
            loss = objective(self._make(rng))
            self.optimiser.zero_grad()
            torch.autograd.backward(loss)
            self.optimiser.step()
            value = float(loss.detach())
        return value

    @torch.no_grad()
    def emit(self, rng: torch.Generator) -> Tensor:
        """Latent vectors through the network: fresh ones, unless they are learned."""
        return self._make(rng)

    def _make(self, rng: torch.Generator) -> Tensor:
        count = self.settings.batch_size
        raw = self.spec.arranged(self.network(self._draw(rng) if self.latent is None else self.latent))
        if self.prior is not None:
            unit = (self.prior.sample(count, rng) - self.low) / (self.high - self.low)
            raw = raw + torch.logit(unit, eps=1e-4)
        return self.low + (self.high - self.low) * torch.sigmoid(raw)

    def state_dict(self) -> dict[str, Any]:
        """Weights, latent vectors, optimiser and the start that is learned."""
        return {
            "network": self.network.state_dict(),
            "latent": None if self.latent is None else self.latent.detach(),
            "optimiser": self.optimiser.state_dict(),
            "first": self.first,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.start(torch.Generator(device=self.device))
        self.network.load_state_dict(state["network"])
        if self.latent is not None:
            self.latent.data.copy_(state["latent"])
        first = state["first"]
        self.first = None if first is None else {name: tensor.to(self.device) for name, tensor in first.items()}
        self.optimiser.load_state_dict(state["optimiser"])


def moved_towards(start: dict[str, Tensor], end: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights between two state dicts; counters and other integers are taken from the end."""
    return {
        name: torch.lerp(tensor, end[name], share) if tensor.is_floating_point() else end[name].clone()
        for name, tensor in start.items()
    }


def element_spread(prior: Prior, rng: torch.Generator) -> Tensor:
    """Standard deviation of a prior's samples: (elements,) for vectors, a scalar for images."""
    sample = prior.sample(1024, rng).float()
    return sample.std(0).clamp_min(1e-6) if not prior.spec.is_image else sample.std().clamp_min(1e-6)


def unit_rms(gradient: Tensor) -> Tensor:
    """Scale each sample's gradient (N, *shape) to root mean square 1; an all-zero one stays zero."""
    rms = gradient.flatten(1).pow(2).mean(1).sqrt().clamp_min(1e-20)
    return gradient / rms.reshape(-1, *[1] * (gradient.dim() - 1))


class AdamDirection:
    """Adam's direction for successive gradients (Kingma & Ba 2015), with the decays that DeepInversion uses."""

    decays = 0.5, 0.9

    def __init__(self) -> None:
        self.steps = 0
        self.mean: Tensor | float = 0.0
        self.square: Tensor | float = 0.0

    def __call__(self, gradient: Tensor) -> Tensor:
        """The direction: of about 1 in every element."""
        first, second = self.decays
        self.steps += 1
        self.mean = first * self.mean + (1 - first) * gradient
        self.square = second * self.square + (1 - second) * gradient.square()
        mean, square = self.mean / (1 - first**self.steps), self.square / (1 - second**self.steps)
        return mean / (square.sqrt() + 1e-20)


def smooth(images: Tensor, sigma: float, spec: ObservationSpec) -> Tensor:
    """Gaussian blur of (N, *shape) along height and width; sigma 0 and vectors pass through."""
    if sigma == 0 or not spec.is_image:
        return images
    images = spec.channels_first(images)
    radius = ceil(2 * sigma)
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, -1)
    blurred = F.conv2d(images, kernel.unsqueeze(-1), padding=(radius, 0), groups=images.shape[1])
    blurred = F.conv2d(blurred, kernel.unsqueeze(-2), padding=(0, radius), groups=images.shape[1])
    return spec.arranged(blurred)


def generator_network(settings: GeneratorSettings, spec: ObservationSpec, starts_flat: bool) -> nn.Module:
    """A network (N, settings.latent) -> (N, *network_shape) before squashing into the bounds.

    Images: DAFL's generator (dense layer, two times upsampling and convolution, batch normalisation), for any size and
    channel count. `starts_flat` zeroes the last layer, so that at first only the prior is seen.
    """
    network = (
        ImageNetwork(settings.latent, spec.network_shape, settings.width or PUBLISHED_WIDTH)
        if spec.is_image
        else vector_network(settings.latent, prod(spec.network_shape))
    )
    last = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    if starts_flat:
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)
    return network


def vector_network(latent: int, outputs: int) -> nn.Sequential:
    """(N, latent) -> (N, outputs)."""
    return nn.Sequential(
        nn.Linear(latent, 128), nn.LeakyReLU(0.2), nn.Linear(128, 128), nn.LeakyReLU(0.2), nn.Linear(128, outputs)
    )


class ImageNetwork(nn.Module):
    """(N, latent) -> (N, channels, height, width): DAFL's generator without its last batch normalisation."""

    def __init__(self, latent: int, shape: tuple[int, ...], channels_inside: int) -> None:
        super().__init__()
        wide, narrow = channels_inside, max(1, channels_inside // 2)
        channels, self.height, self.width = shape
        self.start = (wide, ceil(self.height / 4), ceil(self.width / 4))
        self.dense = nn.Linear(latent, prod(self.start))
        self.layers = nn.Sequential(
            nn.BatchNorm2d(wide),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(wide, wide, 3, padding=1),
            nn.BatchNorm2d(wide, 0.8),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(wide, narrow, 3, padding=1),
            nn.BatchNorm2d(narrow, 0.8),
            nn.LeakyReLU(0.2),
            nn.Conv2d(narrow, channels, 3, padding=1),
        )

    def forward(self, z: Tensor) -> Tensor:
        """See the class."""
        images: Tensor = self.layers(self.dense(z).reshape(-1, *self.start))
        return images[..., : self.height, : self.width]
