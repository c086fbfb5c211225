"""Observations that lie where a teacher's first layer switches: its weights as a map of what it was trained on."""

from __future__ import annotations

from functools import lru_cache
from math import log, prod

import torch
from torch import Tensor, nn

from gasim_ray.core.model import Model
from gasim_ray.core.observation import ObservationSpec
from gasim_ray.core.prior import Prior
from gasim_ray.core.seeds import rng
from gasim_ray.errors import UserError

#: Points that the teacher's geometry is kept as.
POINTS = 16384
#: How far from its boundary, in units of a unit's own input, such a point may lie.
MARGIN = 0.1
#: Numbers of the systems that are solved at once: half a gigabyte.
MOST_NUMBERS = 2**26


@lru_cache(maxsize=1)
def boundary_points(first: nn.Linear, spec: ObservationSpec) -> tuple[Tensor, Tensor]:
    """Observations where units of a teacher's first layer switch, and which elements were held; see Geometry.

    Points (N, elements) float32 within the bounds, N at most POINTS; held (elements,) bool. Kept for the layer asked
    for last, since several priors start from the same points and solving takes a second. Raises UserError if too few
    points lie within the bounds.
    """
    generator = rng("cpu", 0)
    weight = first.weight.detach().double().cpu()
    bias = torch.zeros(len(weight)).double() if first.bias is None else first.bias.detach().double().cpu()
    size = prod(spec.shape)
    mean, std = (torch.tensor(v, dtype=torch.float64).expand(size) for v in (spec.mean, spec.std))
    low, high = spec.bounds()
    flags = (low == 0) & (high == 1)
    held = torch.zeros_like(flags).expand(size) if flags.all() else flags.expand(size)
    free, found = int((~held).sum()), list[Tensor]()
    # Each system takes `size` squared numbers.
    rows = max(64, min(4096, MOST_NUMBERS // (max(1, free) * size)))
    for _ in range(64 * 4096 // rows):
        units = torch.rand((rows, len(bias)), generator=generator).topk(free).indices
        offset = MARGIN * torch.randn((rows, free), generator=generator, dtype=torch.float64)
        points = torch.randint(2, (rows, size), generator=generator).double()
        pushed = (weight[units][:, :, held] @ ((points - mean) / std)[:, held].unsqueeze(-1)).squeeze(-1)
        sides = (offset - bias[units] - pushed).unsqueeze(-1)
        solution, singular = torch.linalg.solve_ex(weight[units][:, :, ~held], sides)
        points[:, ~held] = solution.squeeze(-1) * std[~held] + mean[~held]
        inside = (singular == 0) & (points >= low).all(1) & (points <= high).all(1)
        found.append(points[inside].float())
        if sum(map(len, found)) >= POINTS:
            break
    bank = torch.cat(found)[:POINTS]
    if len(bank) < 64:
        raise UserError("generator.prior: 'geometry' finds no observation within the bounds; use 'uniform'")
    return bank, held


class Geometry(Prior):
    """Observations where many first-layer units of the teacher switch at once.

    Training moves the boundaries w·x + b = 0 of the first layer's units to where the training observations lie. Solving
    d of them, drawn at random, for an observation of d elements gives points of that region; those out of bounds are
    dropped. Shrinking the points towards their median by a log-uniform factor adds the finer scales: half of the
    samples by one factor, half by a factor for each element, because elements differ in scale.

    Elements with the bounds 0 and 1 are taken for flags: they are held at 0 or at 1, drawn at random, and the equations
    are solved for the other elements.

    Raises UserError for images, for a teacher whose first layer has fewer units than the observation has elements,
    and where no solution lies within the bounds.
    """

    #: Smallest factor by which a point is shrunk towards the median.
    smallest_scale = 0.01

    def __init__(self, teacher: Model, device: torch.device | str) -> None:
        super().__init__(teacher, device)
        first = next((m for m in teacher.network.modules() if isinstance(m, nn.Linear)), None)
        size = prod(self.spec.shape)
        if self.spec.is_image or first is None or first.in_features != size:
            raise UserError(
                "generator.prior: 'geometry' needs a vector teacher whose first layer is dense; use 'uniform'"
            )
        if first.out_features < size:
            raise UserError(
                f"generator.prior: 'geometry' needs a first layer of as many units as an observation has elements, "
                f"and the teacher's has {first.out_features} for {size}; use 'uniform'"
            )
        self.bank, self.held = (tensor.to(self.device) for tensor in boundary_points(first, self.spec))
        #: What each point is shrunk towards: the median, but its own value where that is held.
        self.centres = torch.where(self.held, self.bank, self.bank.median(0).values)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """See Prior."""
        return self._shrunk(self._shrink(count, generator), generator)

    def _shrink(self, count: int, generator: torch.Generator) -> Tensor:
        """Factors (count, elements): one for all elements of a sample in half of the samples, at random places."""
        exponent = torch.rand((count, self.bank.shape[1]), generator=generator, device=self.device)
        common = torch.rand((count, 1), generator=generator, device=self.device) < 0.5
        return (log(self.smallest_scale) * torch.where(common, exponent[:, :1], exponent)).exp()

    def _shrunk(self, factors: Tensor, generator: torch.Generator) -> Tensor:
        """A random point for each row of factors, shrunk by it towards its centre."""
        chosen = torch.randint(len(self.bank), (len(factors),), generator=generator, device=self.device)
        return self.centres[chosen] + (self.bank[chosen] - self.centres[chosen]) * factors


class Undecided(Geometry):
    """Points of the geometry at which the teacher's outputs differ little between actions.

    Where a teacher was trained, most states leave a choice: one action more or less changes little. Beyond, its outputs
    are extrapolated and diverge. So the points of least spread lie around the training observations: only they are
    kept, and samples are shrunk towards their median. Then each sample is the one of least spread among a few that are
    shrunk alike, since shrinking lessens the spread too. Raises UserError as Geometry does.
    """

    smallest_scale = 0.1
    #: Share of the geometry's points that is kept.
    kept = 1 / 16
    #: Samples of which the one of least spread is taken.
    candidates = 8

    def __init__(self, teacher: Model, device: torch.device | str) -> None:
        super().__init__(teacher, device)
        self.teacher = teacher.to(self.device)
        least = self._spread(self.bank).argsort()[: max(64, round(self.kept * len(self.bank)))]
        self.bank = self.bank[least]
        self.centres = torch.where(self.held, self.bank, self.bank.median(0).values)

    @torch.no_grad()
    def _spread(self, points: Tensor) -> Tensor:
        spread: Tensor = self.teacher(points).std(-1)
        return spread

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """See Prior."""
        shrink = self._shrink(count, generator).repeat_interleave(self.candidates, 0)
        points = self._shrunk(shrink, generator)
        least = self._spread(points).view(count, self.candidates).argmin(1)
        return points[least + self.candidates * torch.arange(count, device=self.device)]
