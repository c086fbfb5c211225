"""The registered priors, and mixtures of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from gasim_ray.core.geometry import Geometry, Undecided
from gasim_ray.core.model import Model
from gasim_ray.core.nature import Nature
from gasim_ray.core.patches import Patches
from gasim_ray.core.pictures import Contours, Fields, Leaves, Shapes
from gasim_ray.core.prior import Gaussian, Knowledge, Prior, Uniform
from gasim_ray.core.scenes import Scenes, SceneSettings
from gasim_ray.core.worlds import Rally, Worlds, WorldSettings
from gasim_ray.errors import UserError

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
    "nature": Nature,
    "scenes": Scenes,
    "patches": Patches,
    "worlds": Worlds,
    "rally": Rally,
}


def most_knowledge(names: Sequence[str]) -> Knowledge:
    """The highest level among these registered priors; `bounds` if there is none."""
    levels: tuple[Knowledge, ...] = ("bounds", "generic", "domain")
    return max((PRIORS[name].knowledge for name in names), key=levels.index, default="bounds")


class Mixture(Prior):
    """Equal shares of several priors; raises UserError for a name that is not registered.

    `scenes` and `worlds` are what the priors of these names are made of, if they are among them.
    """

    def __init__(
        self,
        names: Sequence[str],
        teacher: Model,
        device: torch.device | str,
        scenes: SceneSettings | None = None,
        worlds: WorldSettings | None = None,
    ) -> None:
        super().__init__(teacher, device)
        for name in names:
            if name not in PRIORS:
                raise UserError(f"generator.prior: {name!r} is not one of {', '.join(PRIORS)}")
        made: dict[str, Callable[[Model, torch.device | str], Prior]] = {
            **PRIORS,
            "scenes": partial(Scenes, settings=scenes),
            "worlds": partial(Worlds, settings=worlds),
            "rally": partial(Rally, settings=worlds),
        }
        self.priors = [made[name](teacher, device) for name in names]
        self.knowledge = most_knowledge(names)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """See Prior."""
        shares = [count // len(self.priors) + (i < count % len(self.priors)) for i in range(len(self.priors))]
        drawn = [p.sample(n, generator) for p, n in zip(self.priors, shares, strict=True) if n]
        # Scenes are drawn so fast that one more copy would take a fifth of the time.
        return drawn[0] if len(drawn) == 1 else torch.cat(drawn)
