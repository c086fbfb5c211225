"""A generator that moves what a scene is made of instead of its pixels, so that what it finds stays a scene.

The gradient of the objective along places and sizes is that of soft edges (as Liu et al. 2019, "Soft Rasterizer", have
it for meshes), while what the networks see has hard ones.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gasim_ray.core.generator import Objective
from gasim_ray.core.scenes import Scenes, Things
from gasim_ray.core.settings import GeneratorSettings

#: Pixels over which an edge fades, as far as its gradient goes.
SOFTNESS = 0.5
#: What is moved, and how far a step of Adam goes at learning rate 1: tones in shares of the bounds, the rest in pixels.
MOVED = {"ground": 0.1, "tone": 0.1, "size": 2.0, "way": 4.0, "speed": 1.0}


class RenderedGenerator:
    """Scenes whose things are moved along the objective's gradient; drawn anew for every order, or as set."""

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
            now = self._after(moved)
            later = partial(self._soft, replace(now, way=now.way + now.speed))
            loss = objective(self._soft(now), later)
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
        given, prior = self.prior.settings, self.prior
        far = {name: getattr(self.things, name) + MOVED[name] * step for name, step in moved.items()}
        there, moves = (self.things.tone != 0).any(1, keepdim=True), self.things.speed != 0
        scale = prior.extent / 84
        # A band from border to border is longer than the largest thing, and may stay so.
        largest = torch.maximum(torch.minimum((given.largest * scale).clamp_min(1), prior.extent), self.things.size)
        return replace(
            self.things,
            ground=far["ground"].clamp(0, 1),
            tone=far["tone"].clamp(-given.contrast, given.contrast) * there,
            size=far["size"].clamp((given.smallest * scale).clamp_min(1), largest),
            way=far["way"],
            speed=far["speed"].clamp(-given.speed * scale, given.speed * scale) * moves,
        )

    def _soft(self, things: Things) -> Tensor:
        """Observations (N, *spec.shape) with a gradient to what they are made of."""
        return self._stacked(self.prior.pictured(things, SOFTNESS))

    def _stacked(self, pictured: Tensor) -> Tensor:
        """Float observations (N, *spec.shape) within bounds."""
        spec = self.prior.spec
        return spec.arranged(pictured.reshape(-1, *spec.network_shape).clamp(self.prior.low, self.prior.high))

    @torch.no_grad()
    def emit(self, rng: torch.Generator) -> Tensor:
        """The scenes as they are now, some of them noisy."""
        assert self.things is not None
        return self._stacked(self.prior.noisy(self.prior.pictured(self.things), rng))

    def state_dict(self) -> dict[str, Any]:
        """What the scenes are made of, unless every order draws new ones."""
        return {} if self.settings.drawn_anew else vars(self.things)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        if state:
            at = self.prior.device
            kept = tuple(tensor.to(at) for tensor in state["kept"])
            rest = {name: tensor.to(at) for name, tensor in state.items() if name != "kept"}
            self.things = Things(**rest, kept=kept)
