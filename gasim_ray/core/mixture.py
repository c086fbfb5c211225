"""The registered priors, mixtures of them, and the choice among their samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import ceil

import torch
from torch import Tensor, nn

from gasim_ray.core.geometry import Geometry, Undecided
from gasim_ray.core.model import Model
from gasim_ray.core.nature import Nature
from gasim_ray.core.objectives import divergence
from gasim_ray.core.outputs import policy_logits
from gasim_ray.core.patches import Patches
from gasim_ray.core.pictures import Contours, Fields, Leaves, Shapes
from gasim_ray.core.prior import Gaussian, Knowledge, Prior, Uniform
from gasim_ray.core.prune import layers_of, with_layer_inputs
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


class Chosen(Prior):
    """Of another prior's observations those that the teacher answers most decidedly, as many for each action.

    A classifier's outputs are farthest apart on what it was trained on (the measure of Hendrycks et al. 2022 for what
    it has not seen). A picture of more contrast excites everything, so outputs are taken relative to the excitement of
    the first layer: that tells which of several priors resembles the data. Observation i of a sample has, among
    `candidates` times as many, one of the greatest outputs for action i modulo the number of actions.

    With `alignment` what also counts, to that power, is the gain of the last dense layer but one (the last, where there
    is no other): the squared norm of what it answers, without bias, over that of what it reads. Own: its weights have
    grown along what it was trained on, which so excites it more than anything else of the same strength.

    Raises UserError if there is alignment and the teacher has no dense layer.
    """

    def __init__(self, prior: Prior, teacher: Model, candidates: int, alignment: float = 0.0) -> None:
        super().__init__(teacher, prior.device)
        self.prior, self.teacher, self.candidates = prior, teacher.to(prior.device), candidates
        self.alignment, self.knowledge = alignment, prior.knowledge
        if alignment and not any(isinstance(layer, nn.Linear) for layer in layers_of(teacher)):
            raise UserError(f"generator.alignment: {alignment}, but the teacher has no dense layer; set it to 0")

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """See Prior."""
        drawn = self.prior.sample(count * self.candidates, generator)
        decided = self.decidedness(drawn)
        best = decided.topk(ceil(count / decided.shape[1]), dim=0).indices
        return drawn[best.flatten()[:count]]

    def decidedness(self, observations: Tensor) -> Tensor:
        """How much observations (N, *spec.shape) speak for each action (N, actions)."""
        # What all layers read is let go of part by part: together it would fill gigabytes.
        parts = [self._answered(part) for part in torch.split(observations, 1024)]
        outputs, excitement, gain = (torch.cat(figures) for figures in zip(*parts, strict=True))
        relative: Tensor = policy_logits(outputs, 1.0) / (excitement + 0.1 * excitement.median()).clamp_min(1e-6)
        return torch.where(relative > 0, relative * gain, relative / gain) if self.alignment else relative

    def _answered(self, observations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs (N, actions), excitement of the first layer (N, 1) and the gain to its power (N, 1)."""
        outputs, read = with_layer_inputs(self.teacher, observations)
        excitement = list(read.values())[:2][-1].flatten(1).norm(dim=1).unsqueeze(1)
        if not self.alignment:
            return outputs, excitement, torch.ones_like(excitement)
        return outputs, excitement, hidden_gain(read).unsqueeze(1).clamp_min(1e-6) ** self.alignment


def hidden_gain(read: dict[nn.Module, Tensor]) -> Tensor:
    """See Chosen: (N,), from what each layer read, in the order in which they did."""
    hidden = [layer for layer in read if isinstance(layer, nn.Linear)][-2:][0]
    inputs = read[hidden].float()
    answered = inputs @ hidden.weight.float().T
    return answered.flatten(1).square().sum(1) / inputs.flatten(1).square().sum(1).clamp_min(1e-12)


class Disputed(Prior):
    """Of another prior's observations those on which teacher and student differ most, by Jensen-Shannon divergence.

    It is bounded (ln 2), so that an observation counts for the disagreement and not for how sure of it both are. The
    student is the one that it holds at the time, whose weights its owner keeps up to date.
    """

    def __init__(self, prior: Prior, teacher: Model, student: Model, candidates: int) -> None:
        super().__init__(teacher, prior.device)
        self.prior, self.candidates = prior, candidates
        self.models = (teacher, student)
        self.knowledge = prior.knowledge

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """See Prior."""
        drawn = self.prior.sample(count * self.candidates, generator)
        parts = torch.split(drawn, 1024)
        teacher, student = (
            torch.cat([policy_logits(model(part), model.config.output_scale) for part in parts])
            for model in self.models
        )
        return drawn[divergence(teacher, student, "js", 1.0).topk(count).indices]
