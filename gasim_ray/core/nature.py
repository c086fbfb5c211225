"""Pictures of the world at large: overlapping things of any colour and texture that fill the whole frame (generic).

Dead leaves (Lee, Mumford & Huang 2001) whose ground and leaves have textures with the falling spectrum of natural
images (Field 1987); as training pictures for networks see Baradad et al. 2021.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

from gasim_ray.core.pictures import Leaves

#: Cells of the grids whose fields add up to a texture, from coarse to fine.
SCALES = ((2, 3), (4, 6), (8, 12), (16, 24))


class Nature(Leaves):
    """A textured ground and up to `most` textured leaves over it; every other picture is its own mirror image."""

    most = 8
    #: Deviation of the colours' channels from their common brightness.
    chroma = 0.15

    def unit(self, count: int, generator: torch.Generator) -> Tensor:
        """See Pictures; here neither bright nor dark is the ground."""
        bent = self.uniform(count, 0.0, 0.25, generator) * self.field(count, (2, 6), generator)
        sharpness = self.uniform(count, log(8), log(60), generator).exp()
        picture = self.surface(count, generator)
        # Larger things lie behind smaller ones.
        for largest in torch.linspace(1.2, 0.3, self.most).tolist():
            inside = self.leaf(count, largest, generator)
            there = self.uniform(count, 0, 1, generator) < 0.6
            cover = torch.sigmoid(sharpness * (inside + bent)) * there
            picture = picture + cover * (self.surface(count, generator) - picture)
        left = torch.arange(picture.shape[3], device=self.device) < picture.shape[3] / 2
        alike = self.uniform(count, 0, 1, generator) < 0.5
        return torch.where(alike & ~left, picture.flip(3), picture).clamp(0, 1)

    def surface(self, count: int, generator: torch.Generator) -> Tensor:
        """A colour with some texture over it: (count, channels, height, width)."""
        level = self.uniform(count, 0.05, 0.95, generator)
        channels = self.spec.network_shape[0]
        tint = torch.randn((count, channels, 1, 1), generator=generator, device=self.device)
        strength = self.uniform(count, 0.0, 0.35, generator)
        return level + self.chroma * tint * (channels > 1) + strength * self.texture(count, generator)

    def texture(self, count: int, generator: torch.Generator) -> Tensor:
        """Fields of all scales, of each picture's own slope of the spectrum, mostly the same in all channels.

        It is that of the first channel, in which it so is a third stronger.
        """
        slope = self.uniform(count, 0.3, 1.2, generator)
        total: Tensor | float = 0.0
        weights: Tensor | float = 0.0
        for octave, cells in enumerate(SCALES):
            weight = (-slope * octave * log(2)).exp()
            field = self.field(count, cells, generator)
            total = total + weight * (0.9 * field[:, :1] + 0.44 * field)
            weights = weights + weight.square()
        return total / torch.as_tensor(weights).sqrt()
