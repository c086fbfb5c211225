"""A generator that moves what a scene is made of instead of its pixels, so that what it finds stays a scene.

Things are drawn with soft edges, so that the objective has a gradient along their places, sizes, speeds and tones (as
Liu et al. 2019, "Soft Rasterizer", have it for meshes).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gasim_ray.core.generator import Objective
from gasim_ray.core.scenes import Scenes, Things
from gasim_ray.core.settings import GeneratorSettings

#: Pixels over which an edge fades while things are moved.
SOFTNESS = 0.5
#: What is moved, and how far a step of Adam goes at learning rate 1: tones in shares of the bounds, the rest in pixels.
MOVED = {"ground": 0.1, "tone": 0.1, "size": 2.0, "way": 4.0, "speed": 1.0}


class RenderedGenerator:
    """Scenes whose things are moved along the objective's gradient; every order draws new ones."""

    def __init__(self, prior: Scenes, settings: GeneratorSettings) -> None:
        self.prior, self.settings = prior, settings
        self.things: Things | None = None

    def start(self, rng: torch.Generator) -> None:
        """Draw scenes."""
        self.things = self.prior.things(self.settings.batch_size, rng)

    def improve(self, objective: Objective, rng: torch.Generator) -> float:
        """See Generator."""
        assert self.things is not None
        moved = {name: torch.zeros_like(getattr(self.things, name)).requires_grad_() for name in MOVED}
        optimiser = torch.optim.Adam(moved.values(), lr=self.settings.learning_rate)
        value = 0.0
        for _ in range(self.settings.steps):
            loss = objective(self._stacked(self._after(moved), SOFTNESS))
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            value = float(loss.detach())
        with torch.no_grad():
            self.things = self._after(moved)
        return value

    def _after(self, moved: dict[str, Tensor]) -> Things:
        """The things, moved; what is not there stays away, and what stands still goes on standing."""
        assert self.things is not None
        far = {name: getattr(self.things, name) + MOVED[name] * step for name, step in moved.items()}
        there, moves = (self.things.tone != 0).any(1, keepdim=True), self.things.speed != 0
        sides = far["size"].new_tensor([len(side) for side in self.prior.sides])
        return replace(
            self.things,
            ground=far["ground"].clamp(0, 1),
            tone=far["tone"].clamp(-1, 1) * there,
            size=torch.minimum(far["size"].clamp_min(1), sides),
            way=far["way"],
            speed=far["speed"] * moves,
        )

    def _stacked(self, things: Things, softness: float) -> Tensor:
        """Float observations (N, *spec.shape) within bounds."""
        spec = self.prior.spec
        stacks = self.prior.pictured(things, softness).reshape(-1, *spec.network_shape)
        stacks = torch.minimum(torch.maximum(stacks, self.prior.low), self.prior.high)
        return stacks.permute(0, 2, 3, 1) if spec.layout == "HWC" else stacks

    @torch.no_grad()
    def emit(self, rng: torch.Generator) -> Tensor:
        """The scenes as they are now, with hard edges."""
        assert self.things is not None
        return self._stacked(self.things, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: every order starts anew."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""
