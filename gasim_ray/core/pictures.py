"""Pictures made of smooth random fields: fields themselves, lines, shapes, dead leaves. All are `generic` knowledge."""

from __future__ import annotations

from abc import abstractmethod
from functools import lru_cache
from math import log

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from gasim_ray.core.model import Model
from gasim_ray.core.observation import ObservationSpec
from gasim_ray.core.prior import Knowledge, Prior
from gasim_ray.errors import UserError


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


def has_normaliser(spec: ObservationSpec) -> bool:
    """Whether mean and deviation of what the teacher was trained on are stated, and not only a scale."""
    (low, high), mean = spec.picture_range, sum(spec.mean) / len(spec.mean)
    return low < mean < high and (spec.mean, spec.std) != ((0.0,), (1.0,))


def brightness(spec: ObservationSpec) -> float:
    """Mean within the bounds, 0 to 1, that the normaliser tells; one half where there is none."""
    low, high = spec.picture_range
    mean = sum(spec.mean) / len(spec.mean)
    return min(0.95, max(0.05, (mean - low) / (high - low))) if has_normaliser(spec) else 0.5


class Pictures(Prior):
    """What smooth random fields are made into: pictures as bright as the teacher's normaliser says (generic).

    Raises UserError for a vector teacher, and for pictures one pixel high or wide.
    """

    knowledge: Knowledge = "generic"
    #: Fewest and most cells of a field's grid.
    cells = (3, 12)

    def __init__(self, teacher: Model, device: torch.device | str) -> None:
        super().__init__(teacher, device)
        if not self.spec.is_image:
            raise UserError("generator.prior: pictures are for images; a vector teacher takes 'geometry' or 'uniform'")
        if min(self.spec.network_shape[1:]) < 2:
            raise UserError(f"generator.prior: pictures have no shape in {list(self.spec.shape)}; give 'uniform'")
        #: Mean brightness within the bounds, 0 to 1.
        self.brightness = brightness(self.spec)
        # An object that differs in brightness by t from its ground on a share s of the pixels has mean s t and mean
        # square s t², whose ratio the normaliser tells.
        amid = min(self.brightness, 1 - self.brightness)
        low, high = self.spec.picture_range
        std = sum(self.spec.std) / len(self.spec.std) / (high - low)
        contrast = amid + std**2 / amid if has_normaliser(self.spec) else 0.6
        #: Least difference in brightness of an object from its ground, if they are uniform from there to 1.
        self.least_tone = min(0.8, max(0.2, 2 * contrast - 1))

    @abstractmethod
    def unit(self, count: int, generator: torch.Generator) -> Tensor:
        """Bright shapes on a dark ground: (count, channels, height, width) in 0 to 1."""

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """See Prior; where the normaliser says that pictures are bright, dark shapes on a bright ground."""
        unit = self.unit(count, generator)
        unit = 1 - unit if self.brightness > 0.5 else unit
        images = self.low + (self.high - self.low) * unit
        return self.spec.arranged(images)

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
        self.middle = 1 - distance / self.radius**2

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
    #: Cells of the texture's grid: close to the pixels, so that it has an edge everywhere.
    grain = (20, 28)

    def __init__(self, teacher: Model, device: torch.device | str) -> None:
        super().__init__(teacher, device)
        height, width = self.spec.network_shape[1:]
        self.down = torch.linspace(-1, 1, height, device=device).reshape(1, 1, -1, 1)
        self.right = torch.linspace(-1, 1, width, device=device)

    def unit(self, count: int, generator: torch.Generator) -> Tensor:
        """See Pictures."""
        outline, parts, texture = (self.field(count, cells, generator) for cells in ((2, 6), (2, 8), self.grain))
        alike = self.uniform(count, 0, 1, generator) < 0.5
        outline, parts, texture = (torch.where(alike, mirrored(f), f) for f in (outline, parts, texture))
        tall, wide = (self.uniform(count, *self.half_axes, generator) for _ in range(2))
        inside = 1 - (self.down / tall) ** 2 - (self.right / wide) ** 2 + 0.7 * outline
        sharpness = self.uniform(count, log(6), log(60), generator).exp()
        first, second = (self.uniform(count, self.least_tone, 1.0, generator) for _ in range(2))
        where = torch.sigmoid(8 * (parts - self.uniform(count, -2.0, 2.0, generator)))
        tone = first + (second - first) * where + self.uniform(count, 0.0, 0.5, generator) * texture
        return torch.sigmoid(sharpness * inside) * tone.clamp(0, 1)


class Leaves(Shapes):
    """Dead leaves: a few soft ellipses and boxes, each over those before it, some as dark as the ground.

    Every other picture is its own mirror image (Lee, Mumford & Huang 2001; as a prior, Baradad et al. 2021).
    """

    #: Most leaves in a picture.
    most = 6

    def unit(self, count: int, generator: torch.Generator) -> Tensor:
        """See Pictures."""
        alike = self.uniform(count, 0, 1, generator) < 0.5
        bend, texture = (self.field(count, cells, generator) for cells in ((2, 6), self.grain))
        bend, texture = (torch.where(alike, mirrored(f), f) for f in (bend, texture))
        bent = self.uniform(count, 0.0, 0.15, generator) * bend
        sharpness = self.uniform(count, log(12), log(60), generator).exp()
        picture = torch.zeros_like(bend)
        for index in range(self.most):
            inside = self.leaf(count, 0.9 if index < 2 else 0.5, generator)
            inside = torch.where(alike, torch.maximum(inside, inside.flip(3)), inside)
            tone = self.uniform(count, self.least_tone, 1.0, generator)
            if index > 0:
                tone = tone * (self.uniform(count, 0, 1, generator) < 0.7)
            cover = torch.sigmoid(sharpness * (inside + bent))
            if index > 1:
                cover = cover * (self.uniform(count, 0, 1, generator) < 0.6)
            picture = picture + cover * (tone - picture)
        shaded: Tensor = picture * (1 + self.uniform(count, 0.0, 0.7, generator) * texture)
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


class Contrasted(Prior):
    """Another prior's images, the difference of each from its ground multiplied by its own 1 to 1 + `contrast`.

    For after a choice (core.choice.Chosen), which favours faint pictures. Raises UserError for a vector teacher.
    """

    def __init__(self, prior: Prior, teacher: Model, contrast: float) -> None:
        super().__init__(teacher, prior.device)
        if not self.spec.is_image:
            raise UserError(f"generator.contrast: {contrast} is for images; a vector teacher takes 0")
        self.prior, self.contrast, self.knowledge = prior, contrast, prior.knowledge
        self.ground = self.high if brightness(self.spec) > 0.5 else self.low

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """See Prior."""
        images = self.prior.sample(count, generator)
        factor = 1 + self.contrast * torch.rand((count, 1, 1, 1), generator=generator, device=self.device)
        stronger = self.ground + factor * (images - self.ground)
        return torch.minimum(torch.maximum(stronger, self.low), self.high)
