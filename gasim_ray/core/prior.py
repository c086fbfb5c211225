"""Where generators start: distributions of observations that need no data.

A prior is knowledge, and each names its level: `bounds` uses shape, range and the teacher's own weights; `generic` uses
what any picture has (smoothness, edges, several scales).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import log, prod
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from gasim_ray.core.model import Model
from gasim_ray.core.observation import ObservationSpec
from gasim_ray.core.seeds import rng
from gasim_ray.errors import UserError

Knowledge = Literal["bounds", "generic", "domain"]


class Prior(ABC):
    """A distribution over observations within the bounds."""

    knowledge: Knowledge = "bounds"

    def __init__(self, teacher: Model, device: torch.device | str) -> None:
        self.spec: ObservationSpec = teacher.config.observation
        self.device = torch.device(device)
        self.low, self.high = (b.to(self.device) for b in self.spec.bounds())

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, *spec.shape) float32 on the prior's device, within the bounds, before quantisation."""


class Uniform(Prior):
    """Each element uniform within its bounds."""

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """See Prior."""
        unit = torch.rand((count, *self.spec.shape), generator=generator, device=self.device)
        return self.low + (self.high - self.low) * unit


class Gaussian(Prior):
    """Each element normal around the middle of its bounds, a quarter of their width as deviation, clamped."""

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """See Prior."""
        unit = torch.randn((count, *self.spec.shape), generator=generator, device=self.device)
        middle, spread = (self.low + self.high) / 2, (self.high - self.low) / 4
        return torch.minimum(torch.maximum(middle + spread * unit, self.low), self.high)


class Geometry(Prior):
    """Observations where many first-layer units of the teacher switch at once.

    Training moves the boundaries w·x + b = 0 of the first layer's units to where the training observations lie. Solving
    d of them, drawn at random, for an observation of d elements gives points of that region; those out of bounds are
    dropped. Shrinking the points towards their median by a log-uniform factor adds the finer scales.

    Raises UserError for images, for a teacher whose first layer has fewer units than the observation has elements,
    and where no solution lies within the bounds.
    """

    #: Smallest factor by which a point is shrunk towards the median.
    smallest_scale = 0.01
    #: How far from its boundary, in units of a unit's own input, a point may lie.
    margin = 0.1
    points = 16384

    def __init__(self, teacher: Model, device: torch.device | str) -> None:
        super().__init__(teacher, device)
        first = next((m for m in teacher.network.modules() if isinstance(m, nn.Linear)), None)
        size = prod(self.spec.shape)
        if self.spec.is_image or first is None or first.in_features != size or first.out_features < size:
            raise UserError("generator.prior: 'geometry' needs a vector teacher whose first layer is at least as wide")
        self.bank = self._solve(first).to(self.device)
        self.median = self.bank.median(0).values

    def _solve(self, first: nn.Linear) -> Tensor:
        generator, size = rng("cpu", 0), first.in_features
        weight, bias = first.weight.detach().double().cpu(), first.bias.detach().double().cpu()
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (self.spec.mean, self.spec.std))
        low, high = self.spec.bounds()
        found: list[Tensor] = []
        for _ in range(64):
            units = torch.rand((4096, len(bias)), generator=generator).topk(size).indices
            offset = self.margin * torch.randn((4096, size), generator=generator, dtype=torch.float64)
            solution, singular = torch.linalg.solve_ex(weight[units], (offset - bias[units]).unsqueeze(-1))
            points = solution.squeeze(-1) * std + mean
            inside = (singular == 0) & (points >= low).all(1) & (points <= high).all(1)
            found.append(points[inside].float())
            if sum(map(len, found)) >= self.points:
                break
        bank = torch.cat(found)[: self.points]
        if len(bank) < 64:
            raise UserError("generator.prior: 'geometry' finds no observation within the bounds; use 'uniform'")
        return bank

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """See Prior."""
        chosen = torch.randint(len(self.bank), (count,), generator=generator, device=self.device)
        exponent = torch.rand((count, 1), generator=generator, device=self.device) * log(self.smallest_scale)
        return self.median + (self.bank[chosen] - self.median) * exponent.exp()


class Fields(Prior):
    """Smooth random pictures: coarse grids of noise, enlarged, stretched to a random contrast (knowledge: generic)."""

    knowledge: Knowledge = "generic"
    #: Fewest and most grid cells along the longer side.
    cells = (3, 12)

    def __init__(self, teacher: Model, device: torch.device | str) -> None:
        super().__init__(teacher, device)
        if not self.spec.is_image:
            raise UserError("generator.prior: 'fields' makes pictures; a vector teacher takes 'geometry' or 'uniform'")

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """See Prior."""
        channels, height, width = self.spec.network_shape
        sizes = range(self.cells[0], self.cells[1] + 1)
        groups = torch.randint(len(sizes), (count,), generator=generator, device=self.device).bincount(
            minlength=len(sizes)
        )
        parts = []
        for cells, members in zip(sizes, groups.tolist(), strict=True):
            coarse = torch.randn((members, channels, cells, cells), generator=generator, device=self.device)
            parts.append(F.interpolate(coarse, (height, width), mode="bicubic") if members else coarse.new_empty(0))
        fields = torch.cat([p for p in parts if len(p)])
        low, high = fields.flatten(1).aminmax(dim=1)
        unit = (fields - low.reshape(-1, 1, 1, 1)) / (high - low).clamp_min(1e-6).reshape(-1, 1, 1, 1)
        images = self.low + (self.high - self.low) * unit
        return images.permute(0, 2, 3, 1) if self.spec.layout == "HWC" else images


#: Name -> prior: one line each.
PRIORS: dict[str, type[Prior]] = {"uniform": Uniform, "gaussian": Gaussian, "geometry": Geometry, "fields": Fields}


class Mixture(Prior):
    """Equal shares of several priors; raises UserError for a name that is not registered."""

    def __init__(self, names: Sequence[str], teacher: Model, device: torch.device | str) -> None:
        super().__init__(teacher, device)
        for name in names:
            if name not in PRIORS:
                raise UserError(f"generator.prior: {name!r} is not one of {', '.join(PRIORS)}")
        self.priors = [PRIORS[name](teacher, device) for name in names]
        levels: tuple[Knowledge, ...] = ("bounds", "generic", "domain")
        self.knowledge = max((p.knowledge for p in self.priors), key=levels.index, default="bounds")

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """See Prior."""
        shares = [count // len(self.priors) + (i < count % len(self.priors)) for i in range(len(self.priors))]
        return torch.cat([p.sample(n, generator) for p, n in zip(self.priors, shares, strict=True) if n])
