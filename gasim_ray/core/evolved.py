"""Worlds that are found instead of made: those live on which the teacher's own answers speak for.

A world in which the teacher plays as it was trained to looks so to the teacher: its policy depends on what happens
(mutual information of state and action) and is as sure as it was in its training, if it says how sure that was, most
of its units are on at some time and off at another, and its values are within what rewards allow and foretell each
other (Bellman's equation along the roll-out). Nothing here reads a frame of a game. Worlds are scored on fresh
roll-outs in each generation, so that luck does not live on. With an adversary those worlds live on, too, in which
the student answers otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import ceil
from typing import Any

import torch
from torch import Tensor

from gasim_ray.core import objectives
from gasim_ray.core.distill import last_dense
from gasim_ray.core.generator import Objective
from gasim_ray.core.outputs import log_policy
from gasim_ray.core.settings import GeneratorSettings
from gasim_ray.core.worlds import World, Worlds

#: Decisions of a roll-out by which a world is scored.
SCORED = 24
#: Share of a child's things that are drawn anew, and of those that are taken from its other parent.
FRESH, CROSSED = 0.15, 0.25
#: What the terms of the score weigh: units that are on and off, information, values out of bounds, Bellman's error,
#: and nats of entropy away from the policy's own.
COVERAGE, INFORMATION, EXCESS, BELLMAN, ENTROPY = 3.0, 1.0, 1.0, 0.5, 1.0


@dataclass(frozen=True)
class Seen:
    """What a teacher sees and answers along roll-outs of several worlds (N) over some decisions (T)."""

    #: (N, T, *spec.shape): observations.
    stacks: Tensor
    #: (N, T, actions): log-probabilities.
    policy: Tensor
    #: (N, T, units): what its last layer reads.
    features: Tensor
    #: (N, T): values of the states; None if it has none.
    values: Tensor | None


def score(seen: Seen, bound: float, entropy: float | None = None) -> Tensor:
    """How much a teacher's answers speak for each world, (N,).

    Values beyond `bound` speak against it, and a mean entropy other than the policy's own, in nats, if that is known.
    """
    policy = seen.policy.exp()
    mean = policy.mean(1)
    unsure = -(policy * seen.policy).sum(2).mean(1)
    information = -(mean * mean.clamp_min(1e-8).log()).sum(1) - unsure
    on = (seen.features > 0).float().mean(1)
    total = COVERAGE * ((on > 0) & (on < 1)).float().mean(1) + INFORMATION * information
    if entropy is not None:
        total = total - ENTROPY * (unsure - entropy).abs()
    if seen.values is None:
        return total
    excess = objectives.value_excess(seen.values, bound).mean(1)
    bellman = objectives.bellman(seen.values[:, :-1], seen.values[:, 1:]).mean(1)
    return total - EXCESS * excess - BELLMAN * bellman


@torch.no_grad()
def watch(prior: Worlds, worlds: World, steps: int, rng: torch.Generator) -> Seen:
    """Let the prior's teacher play in each world for some decisions."""
    teacher = prior.teacher
    features: list[Tensor] = []
    stacks, policies, values = [], [], []
    hook = last_dense(teacher).register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    try:
        for seen, outputs, value in prior.played(worlds, steps, rng):
            stacks.append(seen)
            policies.append(log_policy(outputs, teacher.config.output_scale))
            values += [] if value is None else [value]
    finally:
        hook.remove()
    return Seen(
        stacks=torch.stack(stacks, 1),
        policy=torch.stack(policies, 1),
        features=torch.stack(features, 1),
        values=torch.stack(values, 1) if values else None,
    )


class EvolvedGenerator:
    """A population of worlds; each step is a generation, of which the better half has children."""

    def __init__(self, prior: Worlds, settings: GeneratorSettings) -> None:
        self.prior, self.settings = prior, settings
        self.count = max(2, ceil(settings.batch_size / prior.settings.kept))
        self.worlds: World | None = None

    def start(self, rng: torch.Generator) -> None:
        """Draw worlds."""
        self.worlds = self.prior.draw(self.count, rng)

    @torch.no_grad()
    def improve(self, objective: Objective, rng: torch.Generator) -> float:
        """Take the settings' generations; returns minus the mean score before the last, less the objective of each."""
        assert self.worlds is not None
        value, own = 0.0, self.prior.teacher.config.source.get("entropy")
        for _ in range(self.settings.steps):
            seen = watch(self.prior, self.worlds, SCORED, rng)
            against = torch.stack([objective(stacks) for stacks in seen.stacks])
            found = score(seen, self.prior.settings.value_bound, own) - against
            parents = chosen(self.worlds, found.topk(self.count - self.count // 2).indices)
            self.worlds = joined(parents, self.children(parents, self.count // 2, rng))
            value = -float(found.mean())
        return value

    def children(self, parents: World, count: int, rng: torch.Generator) -> World:
        """Worlds of one parent, with some things of another and some that are new."""
        device = parents.ground.device

        def any_parents() -> World:
            return chosen(parents, torch.randint(len(parents.ground), (count,), generator=rng, device=device))

        first, second, new = any_parents(), any_parents(), self.prior.draw(count, rng)
        things = first.role.shape[1]
        # One more place for the ground and the steering.
        lot = torch.rand((count, things + 1), generator=rng, device=device)
        return mixed(mixed(first, second, lot < CROSSED), new, lot > 1 - FRESH)

    def emit(self, rng: torch.Generator) -> Tensor:
        """A batch of what the teacher sees in the worlds."""
        assert self.worlds is not None
        return self.prior.stacks(self.worlds, rng)[: self.settings.batch_size]

    def state_dict(self) -> dict[str, Any]:
        """The population."""
        assert self.worlds is not None
        return {f.name: getattr(self.worlds, f.name) for f in fields(World)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.worlds = World(**{name: tensor.to(self.prior.device) for name, tensor in state.items()})


def chosen(worlds: World, which: Tensor) -> World:
    """The worlds of these numbers."""
    return World(**{f.name: getattr(worlds, f.name)[which] for f in fields(World)})


def joined(first: World, second: World) -> World:
    """Both, one after the other."""
    return World(**{f.name: torch.cat([getattr(first, f.name), getattr(second, f.name)]) for f in fields(World)})


def mixed(first: World, second: World, taken: Tensor) -> World:
    """The first worlds with the things of the second that are `taken` (N, T + 1), the last: ground and steering."""
    own, rest = taken[:, :-1], taken[:, -1:]
    found = {}
    for f in fields(World):
        a, b = getattr(first, f.name), getattr(second, f.name)
        if f.name in ("ground", "steering"):
            mask = rest.reshape(-1, *[1] * (a.dim() - 1))
        elif f.name == "tone":
            mask = own.unsqueeze(1)
        else:
            mask = own.reshape(*own.shape, *[1] * (a.dim() - 2))
        found[f.name] = torch.where(mask, b, a)
    return World(**found)
