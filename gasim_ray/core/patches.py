"""Patches: pictures on which the units of the teacher's first convolution are at their boundary (bounds).

What core.geometry is for dense layers: a unit's boundary is where its answer is 0, and a network differs from a linear
one only there. On a flat ground units are picked here and there, and the picture is moved along each one's filter until
its answer is what was drawn for it: 0, give or take. So what is seen are sums of the teacher's own filters.
"""

from __future__ import annotations

from math import log

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from gasim_ray.core.model import Model
from gasim_ray.core.prior import Prior
from gasim_ray.errors import UserError

#: Least and greatest share of a picture's units that are picked; log-uniform.
PICKED = (1e-3, 0.1)
#: Share of the picked units that are put right at their boundary; the others are put about as far as answers reach.
AT_BOUNDARY = 0.5
#: Filters overlap, so that moving one unit moves its neighbours: this often all picked ones are put right.
ROUNDS = 3


class Patches(Prior):
    """Sums of the first convolution's filters, with units at their boundary.

    Raises UserError for a teacher whose first layer is no convolution.
    """

    def __init__(self, teacher: Model, device: torch.device | str) -> None:
        super().__init__(teacher, device)
        first = next((m for m in teacher.modules() if list(m.parameters(recurse=False))), None)
        if not isinstance(first, nn.Conv2d) or isinstance(first.padding, str):
            raise UserError("generator.prior: patches need a teacher whose first layer is a convolution; use 'uniform'")
        self.convolution, self.padding = first.to(self.device), first.padding

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """See Prior."""
        spec, layer = self.spec, self.convolution
        low, high = (float(bound.mean()) for bound in (self.low, self.high))

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=self.device)

        mean, std = (
            torch.tensor(values, device=self.device, dtype=torch.float32).reshape(-1, 1, 1)
            for values in (spec.mean, spec.std)
        )
        ground = low + (high - low) * uniform(count, 1, 1, 1)
        read = ((ground - mean) / std).expand(count, *spec.network_shape)
        answered = layer(read)
        share = torch.exp(log(PICKED[0]) + (log(PICKED[1]) - log(PICKED[0])) * uniform(count, 1, 1, 1))
        picked = uniform(*answered.shape) < share
        # As far as a picture of full contrast would take a unit.
        reach = layer.weight.flatten(1).abs().sum(1).reshape(-1, 1, 1) * (high - low) / std.mean() / 4
        aim = reach * torch.randn(answered.shape, generator=generator, device=self.device)
        aim = aim * (uniform(*answered.shape) > AT_BOUNDARY)
        squared = layer.weight.square().flatten(1).sum(1).clamp_min(1e-8).reshape(-1, 1, 1)
        for _ in range(ROUNDS):
            along = torch.where(picked, (aim - layer(read)) / squared, 0.0)
            read = read + self._back(along, read)
            read = torch.minimum(torch.maximum(read, (low - mean) / std), (high - mean) / std)
        pictures = (read * std + mean).clamp(low, high)
        return pictures.permute(0, 2, 3, 1) if spec.layout == "HWC" else pictures

    def _back(self, answers: Tensor, read: Tensor) -> Tensor:
        """The picture that answers stand for: each filter, times its unit's answer, where the unit looks."""
        layer = self.convolution
        pushed = F.conv_transpose2d(
            answers, layer.weight, None, layer.stride, self.padding, 0, layer.groups, layer.dilation
        )
        # Pixels at the far edges that no unit looks at.
        missing = [read.shape[3] - pushed.shape[3], read.shape[2] - pushed.shape[2]]
        return F.pad(pushed, (0, missing[0], 0, missing[1]))
