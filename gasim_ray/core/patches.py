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
from gasim_ray.core.prior import Prior, uniform
from gasim_ray.errors import UserError

#: Least and greatest share of a picture's units that are picked; log-uniform.
PICKED = (1e-3, 0.1)
#: Share of the picked units that are put right at their boundary; the others are put about as far as answers reach.
AT_BOUNDARY = 0.5
#: Filters overlap, so that moving one unit moves its neighbours: this often all picked ones are put right.
ROUNDS = 3


class Patches(Prior):
    """Sums of the first convolution's filters, with units at their boundary.

    Raises UserError for a teacher whose first layer is no plain convolution.
    """

    def __init__(self, teacher: Model, device: torch.device | str) -> None:
        super().__init__(teacher, device)
        first = next((m for m in teacher.modules() if list(m.parameters(recurse=False))), None)
        # What derives from a convolution, such as one that pools or is centred, answers otherwise than its filters do.
        if type(first) is not nn.Conv2d or isinstance(first.padding, str):
            raise UserError(
                "generator.prior: patches need a teacher whose first layer is a plain convolution (with padding in "
                "numbers); use 'uniform'"
            )
        self.convolution, self.padding = first.to(self.device), first.padding
        #: Pixels that the network puts around a picture before the convolution reads it: left, right, top, bottom.
        self.around = around(teacher.to(self.device), first)

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """See Prior."""
        spec, layer = self.spec, self.convolution
        low, high = spec.picture_range
        mean, std = (
            torch.tensor(values, device=self.device, dtype=torch.float32).reshape(-1, 1, 1)
            for values in (spec.mean, spec.std)
        )
        ground = low + (high - low) * uniform(generator, (count, 1, 1, 1))
        read = ((ground - mean) / std).expand(count, *spec.network_shape)
        answered = layer(F.pad(read, self.around))
        share = torch.exp(log(PICKED[0]) + (log(PICKED[1]) - log(PICKED[0])) * uniform(generator, (count, 1, 1, 1)))
        picked = uniform(generator, tuple(answered.shape)) < share
        # As far as a picture of full contrast would take a unit.
        reach = layer.weight.flatten(1).abs().sum(1).reshape(-1, 1, 1) * (high - low) / std.mean() / 4
        aim = reach * torch.randn(answered.shape, generator=generator, device=self.device)
        aim = aim * (uniform(generator, tuple(answered.shape)) > AT_BOUNDARY)
        squared = layer.weight.square().flatten(1).sum(1).clamp_min(1e-8).reshape(-1, 1, 1)
        for _ in range(ROUNDS):
            along = torch.where(picked, (aim - layer(F.pad(read, self.around))) / squared, 0.0)
            read = read + self._back(along, read)
            read = read.clamp((low - mean) / std, (high - mean) / std)
        pictures = (read * std + mean).clamp(low, high)
        return spec.arranged(pictures)

    def _back(self, answers: Tensor, read: Tensor) -> Tensor:
        """The picture that answers stand for: each filter, times its unit's answer, where the unit looks."""
        layer = self.convolution
        pushed = F.conv_transpose2d(
            answers, layer.weight, None, layer.stride, self.padding, 0, layer.groups, layer.dilation
        )
        left, _, top, _ = self.around
        height, width = read.shape[2:]
        # Pixels at the far edges that no unit looks at, and without those around the picture.
        room = (0, max(0, left + width - pushed.shape[3]), 0, max(0, top + height - pushed.shape[2]))
        return F.pad(pushed, room)[:, :, top : top + height, left : left + width]


@torch.no_grad()
def around(teacher: Model, first: nn.Conv2d) -> tuple[int, int, int, int]:
    """Zeros that a network puts left and right of a picture, above and below, before its first convolution reads it.

    Raises UserError if what that reads is no picture of the network's size with zeros around it.
    """
    read: list[Tensor] = []
    hook = first.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    spec = teacher.config.observation
    bright = torch.full((1, *spec.shape), float(spec.bounds()[1].max()), device=first.weight.device)
    try:
        teacher(bright)
    finally:
        hook.remove()
    filled = read[0][0].abs().amax(0) > 0
    rows, columns = filled.any(1).nonzero()[:, 0], filled.any(0).nonzero()[:, 0]
    _, height, width = spec.network_shape
    if (len(rows), len(columns)) != (height, width):
        raise UserError("generator.prior: patches need a teacher whose first convolution reads the picture itself")
    left, top = int(columns[0]), int(rows[0])
    return left, filled.shape[1] - width - left, top, filled.shape[0] - height - top
