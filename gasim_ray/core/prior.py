"""Where generators start: distributions of observations that need no data.

A prior is knowledge, and each names its level: `bounds` uses shape, range and the teacher's own weights; `generic` uses
what any picture has (smoothness, edges, several scales).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from math import ceil, log, prod
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from gasim_ray.core.model import Model
from gasim_ray.core.observation import ObservationSpec
from gasim_ray.core.outputs import policy_logits
from gasim_ray.core.prune import with_layer_inputs
from gasim_ray.core.seeds import rng
from gasim_ray.errors import UserError

Knowledge = Literal["bounds", "generic", "domain"]

#: Observations from which a prior's mean and deviation are taken.
STANDARDISING_SAMPLES = 8192
#: Points that the teacher's geometry is kept as.
POINTS = 16384
#: How far from its boundary, in units of a unit's own input, such a point may lie.
MARGIN = 0.1


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

    def standardised(self) -> ObservationSpec:
        """The spec with a normaliser that gives samples of this prior mean 0 and deviation 1; images keep theirs."""
        if self.spec.is_image:
            return self.spec
        sample = self.sample(STANDARDISING_SAMPLES, rng(self.device, 0)).cpu()
        mean, std = sample.mean(0), sample.std(0).clamp_min(1e-6)
        low, high = (tuple(bound.tolist()) for bound in self.spec.bounds())
        return replace(self.spec, low=low, high=high, mean=tuple(mean.tolist()), std=tuple(std.tolist()), clip=None)


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


@lru_cache(maxsize=1)
def boundary_points(first: nn.Linear, spec: ObservationSpec) -> tuple[Tensor, Tensor]:
    """Observations where units of a teacher's first layer switch, and which elements were held; see Geometry.

    Points (N, elements) float32 within the bounds, N at most POINTS; held (elements,) bool. Kept for the layer asked
    for last, since several priors start from the same points and solving takes a second. Raises UserError if too few
    points lie within the bounds.
    """
    generator = rng("cpu", 0)
    weight, bias = first.weight.detach().double().cpu(), first.bias.detach().double().cpu()
    size = prod(spec.shape)
    mean, std = (torch.tensor(v, dtype=torch.float64).expand(size) for v in (spec.mean, spec.std))
    low, high = spec.bounds()
    flags = (low == 0) & (high == 1)
    held = torch.zeros_like(flags).expand(size) if flags.all() else flags.expand(size)
    free, found = int((~held).sum()), list[Tensor]()
    for _ in range(64):
        units = torch.rand((4096, len(bias)), generator=generator).topk(free).indices
        offset = MARGIN * torch.randn((4096, free), generator=generator, dtype=torch.float64)
        points = torch.randint(2, (4096, size), generator=generator).double()
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
        if self.spec.is_image or first is None or first.in_features != size or first.out_features < size:
            raise UserError("generator.prior: 'geometry' needs a vector teacher whose first layer is at least as wide")
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
    """Points of the geometry on whose actions the teacher's outputs are spread little.

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


@lru_cache
def enlargements(cells: tuple[int, int], side: int) -> Tensor:
    """For each number of cells from the fewest to the most, the matrix that enlarges them to `side` pixels, bicubic.

    (counts, side, most cells); columns beyond the number of cells are zero.
    """
    least, most = cells
    matrices = torch.zeros((most - least + 1, side, most))
    for index, count in enumerate(range(least, most + 1)):
        unit = torch.eye(count).unsqueeze(0).unsqueeze(0)
        matrices[index, :, :count] = F.interpolate(unit, (side, count), mode="bicubic", align_corners=True)
    return matrices


class Pictures(Prior):
    """What smooth random fields are made into: pictures as bright as the teacher's normaliser says (generic).

    Raises UserError for a vector teacher.
    """

    knowledge: Knowledge = "generic"
    #: Fewest and most cells of a field's grid.
    cells = (3, 12)

    def __init__(self, teacher: Model, device: torch.device | str) -> None:
        super().__init__(teacher, device)
        if not self.spec.is_image:
            raise UserError("generator.prior: pictures are for images; a vector teacher takes 'geometry' or 'uniform'")
        low, high = (float(bound.mean()) for bound in (self.low, self.high))
        mean = sum(self.spec.mean) / len(self.spec.mean)
        stated = self.spec.mean != (0.0,) or self.spec.std != (1.0,)
        #: Mean brightness within the bounds, 0 to 1; one half where there is no normaliser.
        self.brightness = min(0.95, max(0.05, (mean - low) / (high - low))) if stated else 0.5

    @abstractmethod
    def unit(self, count: int, generator: torch.Generator) -> Tensor:
        """Bright shapes on a dark ground: (count, channels, height, width) in 0 to 1."""

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """See Prior; where the normaliser says that pictures are bright, dark shapes on a bright ground."""
        unit = self.unit(count, generator)
        unit = 1 - unit if self.brightness > 0.5 else unit
        images = self.low + (self.high - self.low) * unit
        return images.permute(0, 2, 3, 1) if self.spec.layout == "HWC" else images

    def field(self, count: int, cells: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Coarse grids of normal noise, each of its own number of cells, enlarged: (count, channels, height, width)."""
        channels, height, width = self.spec.network_shape
        sizes = torch.randint(cells[1] - cells[0] + 1, (count,), generator=generator, device=self.device)
        coarse = torch.randn((count, channels, cells[1], cells[1]), generator=generator, device=self.device)
        rows, columns = (enlargements(cells, side).to(self.device)[sizes].unsqueeze(1) for side in (height, width))
        return rows @ coarse @ columns.transpose(2, 3)

    def uniform(self, count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
        """One number a picture, (count, 1, 1, 1)."""
        return low + (high - low) * torch.rand((count, 1, 1, 1), generator=generator, device=self.device)


class Fields(Pictures):
    """Smooth pictures of several scales, their contrast bent until they are as bright as the normaliser says."""

    def unit(self, count: int, generator: torch.Generator) -> Tensor:
        """See Pictures."""
        fields = self.field(count, self.cells, generator)
        low, high = (fields.amin((1, 2, 3), keepdim=True), fields.amax((1, 2, 3), keepdim=True))
        unit = (fields - low) / (high - low).clamp_min(1e-6)
        # A uniform variable to this power has the wanted mean.
        power = 1 / min(self.brightness, 1 - self.brightness) - 1
        bent: Tensor = unit ** (power ** self.uniform(count, 0.0, 1.0, generator))
        return bent


class Contours(Pictures):
    """Lines along the level sets of smooth fields, seen through a window: an object amid an empty ground."""

    #: Coarser than for Fields: a line has to be followed over a part of the picture.
    cells = (3, 7)
    #: Narrowest and widest line, in pixels on either side of its middle.
    half_widths = (0.5, 3.5)
    #: Where the window closes on average, in halves of the picture's sides from its middle.
    radius = 0.7

    def __init__(self, teacher: Model, device: torch.device | str) -> None:
        super().__init__(teacher, device)
        down, right = (torch.linspace(-1, 1, side, device=self.device) for side in self.spec.network_shape[1:])
        distance = down.square().unsqueeze(1) + right.square()
        self.middle = 1 * (1 - distance / self.radius**2)

    def unit(self, count: int, generator: torch.Generator) -> Tensor:
        """See Pictures."""
        fields = self.field(count, self.cells, generator)
        down, right = torch.gradient(fields, dim=(2, 3))
        slope = (down.square() + right.square()).sqrt().clamp_min(0.03)
        level = 0.5 * torch.randn((count, 1, 1, 1), generator=generator, device=self.device)
        half_width = self.uniform(count, *self.half_widths, generator)
        lines = (half_width - (fields - level).abs() / slope + 0.5).clamp(0, 1)
        window = self.middle + self.field(count, (2, 6), generator) + self.uniform(count, -0.4, 0.6, generator)
        return lines * torch.sigmoid(6 * window)


class Shapes(Pictures):
    """A filled shape amid an empty ground, of one or two tones and some texture, every other one its mirror image."""

    #: Shortest and longest half-axis of the ellipse that an outline is bent from, in halves of the picture's sides.
    half_axes = (0.35, 1.1)

    def __init__(self, teacher: Model, device: torch.device | str) -> None:
        super().__init__(teacher, device)
        height, width = self.spec.network_shape[1:]
        self.down = torch.linspace(-1, 1, height, device=device).reshape(1, 1, -1, 1)
        self.right = torch.linspace(-1, 1, width, device=device)

    def unit(self, count: int, generator: torch.Generator) -> Tensor:
        """See Pictures."""
        outline, parts, texture = (self.field(count, cells, generator) for cells in ((2, 6), (2, 8), (4, 14)))
        alike = self.uniform(count, 0, 1, generator) < 0.5
        outline, parts, texture = (torch.where(alike, mirrored(f), f) for f in (outline, parts, texture))
        tall, wide = (self.uniform(count, *self.half_axes, generator) for _ in range(2))
        inside = 1 - (self.down / tall) ** 2 - (self.right / wide) ** 2 + 0.7 * outline
        sharpness = self.uniform(count, log(3), log(15), generator).exp()
        first, second = (self.uniform(count, 0.2, 1.0, generator) for _ in range(2))
        where = torch.sigmoid(8 * (parts - self.uniform(count, -2.0, 2.0, generator)))
        tone = first + (second - first) * where + self.uniform(count, 0.0, 0.25, generator) * texture
        return torch.sigmoid(sharpness * inside) * tone.clamp(0, 1)


class Leaves(Shapes):
    """Dead leaves: a few soft ellipses and boxes, each over those before it, some as dark as the ground.

    Every other picture is its own mirror image (Lee, Mumford & Huang 2001; as a prior, Baradad et al. 2021).
    """

    #: Leaves in each picture.
    count = 6

    def unit(self, count: int, generator: torch.Generator) -> Tensor:
        """See Pictures."""
        alike = self.uniform(count, 0, 1, generator) < 0.5
        bend, texture = (self.field(count, cells, generator) for cells in ((2, 6), (4, 14)))
        bend, texture = (torch.where(alike, mirrored(f), f) for f in (bend, texture))
        bent = self.uniform(count, 0.0, 0.15, generator) * bend
        sharpness = self.uniform(count, log(12), log(60), generator).exp()
        picture = torch.zeros_like(bend)
        for index in range(self.count):
            inside = self.leaf(count, 0.9 if index < 2 else 0.5, generator)
            inside = torch.where(alike, torch.maximum(inside, inside.flip(3)), inside)
            tone = self.uniform(count, 0.2, 1.0, generator)
            if index > 0:
                tone = tone * (self.uniform(count, 0, 1, generator) < 0.7)
            cover = torch.sigmoid(sharpness * (inside + bent))
            if index > 1:
                cover = cover * (self.uniform(count, 0, 1, generator) < 0.6)
            picture = picture + cover * (tone - picture)
        shaded: Tensor = picture * (1 + self.uniform(count, 0.0, 0.35, generator) * texture)
        return shaded.clamp(0, 1)

    def leaf(self, count: int, largest: float, generator: torch.Generator) -> Tensor:
        """How far inside a turned ellipse or box each pixel is, in halves of the sides: (count, 1, height, width)."""
        tall, wide = (self.uniform(count, log(0.08), log(largest), generator).exp() for _ in range(2))
        down, right = (self.uniform(count, -0.6, 0.6, generator) for _ in range(2))
        angle = self.uniform(count, -1.0, 1.0, generator) ** 3 * 1.6
        y, x = self.down - down, self.right - right
        along, across = (x * angle.cos() + y * angle.sin()) / wide, (y * angle.cos() - x * angle.sin()) / tall
        round_ = (along.square() + across.square()).sqrt()
        square = torch.maximum(along.abs(), across.abs())
        distance = torch.where(self.uniform(count, 0, 1, generator) < 0.5, round_, square)
        return (1 - distance) * (tall * wide).sqrt()


def mirrored(fields: Tensor) -> Tensor:
    """Fields (N, channels, height, width) that are the same left and right, of the same deviation."""
    return (fields + fields.flip(3)) / 2**0.5


#: Name -> prior: one line each.
PRIORS: dict[str, type[Prior]] = {
    "uniform": Uniform,
    "gaussian": Gaussian,
    "geometry": Geometry,
    "undecided": Undecided,
    "fields": Fields,
    "contours": Contours,
    "shapes": Shapes,
    "leaves": Leaves,
}


def most_knowledge(names: Sequence[str]) -> Knowledge:
    """The highest level among these registered priors; `bounds` if there is none."""
    levels: tuple[Knowledge, ...] = ("bounds", "generic", "domain")
    return max((PRIORS[name].knowledge for name in names), key=levels.index, default="bounds")


class Mixture(Prior):
    """Equal shares of several priors; raises UserError for a name that is not registered."""

    def __init__(self, names: Sequence[str], teacher: Model, device: torch.device | str) -> None:
        super().__init__(teacher, device)
        for name in names:
            if name not in PRIORS:
                raise UserError(f"generator.prior: {name!r} is not one of {', '.join(PRIORS)}")
        self.priors = [PRIORS[name](teacher, device) for name in names]
        self.knowledge = most_knowledge(names)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """See Prior."""
        shares = [count // len(self.priors) + (i < count % len(self.priors)) for i in range(len(self.priors))]
        return torch.cat([p.sample(n, generator) for p, n in zip(self.priors, shares, strict=True) if n])


class Chosen(Prior):
    """Of another prior's observations those that the teacher answers most decidedly, as many for each action.

    A classifier's outputs are farthest apart on what it was trained on (the measure of Hendrycks et al. 2022 for what
    it has not seen). A picture of more contrast excites everything, so outputs are taken relative to the excitement of
    the first layer: that tells which of several priors resembles the data. Observation i of a sample has, among
    `candidates` times as many, one of the greatest outputs for action i modulo the number of actions.
    """

    def __init__(self, prior: Prior, teacher: Model, candidates: int) -> None:
        super().__init__(teacher, prior.device)
        self.prior, self.teacher, self.candidates = prior, teacher.to(prior.device), candidates
        self.knowledge = prior.knowledge

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """See Prior."""
        drawn = self.prior.sample(count * self.candidates, generator)
        decided = torch.cat([self.decidedness(part) for part in torch.split(drawn, 1024)])
        best = decided.topk(ceil(count / decided.shape[1]), dim=0).indices
        return drawn[best.flatten()[:count]]

    def decidedness(self, observations: Tensor) -> Tensor:
        """Centred outputs (N, actions) to observations (N, *spec.shape), over the norm of the first layer's answer."""
        outputs, inputs = with_layer_inputs(self.teacher, observations)
        excitement = inputs[min(1, len(inputs) - 1)].flatten(1).norm(dim=1, keepdim=True)
        relative: Tensor = policy_logits(outputs, 1.0) / (excitement + 0.1 * excitement.median()).clamp_min(1e-6)
        return relative
