"""Settings of the algorithm's parts: what a method presets and a user overrides."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol

from gasim_ray.core.objectives import Divergence
from gasim_ray.errors import UserError

#: Wall time of a distillation for which no limit was given.
DEFAULT_SECONDS = 60.0


def check_range(settings: Any, minimum: dict[str, float], maximum: dict[str, float] | None = None) -> None:
    """Raise UserError naming the first field of a settings dataclass that lies outside its range; None passes."""
    names = [f.name for f in fields(settings)]
    for limits, sign, word in ((minimum, 1, "least"), (maximum or {}, -1, "most")):
        for name, limit in limits.items():
            assert name in names
            value = getattr(settings, name)
            if value is not None and not sign * value >= sign * limit:
                section = type(settings).section
                field_name = f"{section}.{name}" if section else name
                raise UserError(f"{field_name}: {value} is impossible; give at {word} {limit:g}")


@dataclass(frozen=True)
class StudentSettings:
    """The student and how it learns."""

    section = "student"

    architecture: dict[str, Any] = field(default_factory=lambda: {"name": "mlp"})
    """A registered architecture's name or package.module:factory under "name", its settings beside it."""

    init: Literal["random", "prune", "svd", "auto"] = "random"
    """Where its weights start: `random`; `prune`, the teacher cut down to its size, which needs the teacher's chain of
    layers with fewer units, or a wide residual network no deeper; `svd`, the teacher with layers of low rank, from its
    weights alone; `auto`, what fits of these, low rank where it matters on invented observations."""

    learning_rate: float = 3e-3
    """Adam's learning rate at the start; it falls to zero along a cosine of the budget spent."""

    batch_size: int = 256
    """Observations a student step."""

    steps: int = 10
    """Student steps for each synthetic batch that arrives."""

    temperature: float = 1.0
    """Temperature of the KL divergence from the teacher's policy."""

    logits_weight: float = 0.0
    """Weight of the mean absolute difference of policy logits, added to the KL divergence."""

    cpus: float = 1.0
    """CPUs that the learner actor reserves."""

    node_label: str = ""
    """Label of the nodes on which the learner may run, such as gasim=head (see `ray start --labels`); empty for any."""

    logits_alone: bool = False
    """Leave the KL divergence out, so that only the difference of logits counts."""

    value_weight: float = 0.0
    """Weight of the squared error of the state's value, which the student then answers too; 0 leaves it out."""

    features_weight: float = 0.0
    """Weight of the squared error of what the last layer reads, as a share of its mean square; 0 leaves it out."""

    layers_weight: float = 0.0
    """The same of what each layer between the first and the last reads, of which the pool keeps up to 3 KB a layer and
    observation; for a student with the teacher's layers, of any rank."""

    def __post_init__(self) -> None:
        check_range(
            self,
            {"learning_rate": 0, "batch_size": 1, "steps": 1, "temperature": 1e-3, "logits_weight": 0, "cpus": 0}
            | {"value_weight": 0, "features_weight": 0, "layers_weight": 0},
        )
        if self.node_label and not re.fullmatch(r"[\w./-]+=[\w.-]+", self.node_label):
            raise UserError(f"student.node_label: {self.node_label!r} is no label; give it as key=value")
        if self.logits_alone and not self.logits_weight:
            raise UserError("student.logits_weight: 0 with student.logits_alone leaves no loss; give it a weight")


#: Kind of generator -> the prior that it is made of.
MADE_OF = {"rendered": "scenes", "evolved": "worlds"}


@dataclass(frozen=True)
class GeneratorSettings:
    """The generators: what they are, where they start, when they are re-initialised."""

    section = "generator"

    kind: Literal["network", "direct", "rendered", "evolved"] = "direct"
    """`network` maps a latent vector to an observation; `direct` moves the observations themselves; `rendered` moves
    what scenes are made of; `evolved` lets worlds live on which the teacher speaks for, a generation a step."""

    prior: tuple[str, ...] = ("uniform",)
    """Distributions that observations start from, in equal shares; a network may have none. What is rendered or evolved
    is made of the first; the others' shares stay as they are drawn."""

    candidates: int = 0
    """Samples of the prior for each that is used: those are, which the teacher answers most decidedly, as many for
    each action; 0 takes them as they come, whatever `alignment` and `clusters` are."""

    alignment: float = 0.0
    """Power to which the gain of the teacher's last hidden dense layer, or its only dense one, counts in the choice
    among candidates (core.choice.Chosen)."""

    clusters: int = 0
    """Clusters of what the teacher's last hidden dense layer reads, of each of which as many candidates are chosen for
    an action; 0 chooses among all alike (core.choice.Chosen)."""

    disputed: int = 0
    """Observations that a direct generator draws for each that it starts from: those are, on which teacher and student
    differ most; 0 takes them as they come."""

    contrast: float = 0.0
    """Most by which the contrast of the prior's images is raised, each by its own share of it: 2 multiplies the
    difference from the ground by 1 to 3."""

    actors: int = 2
    """Generator actors."""

    per_actor: int = 1
    """Generators in each actor, of each kind that it has, with staggered clocks; of those that are drawn anew at every
    order one is enough."""

    batch_size: int = 256
    """Observations in a batch, which is what one order makes."""

    steps: int = 6
    """Gradient steps for each order; generations of evolved worlds."""

    learning_rate: float = 0.3
    """Adam's learning rate of a network; of a rendered one how far a step moves a scene (core.rendered); of a direct
    one the first step's length in standard deviations of the prior, to 0.3 of which the steps shorten."""

    adam: bool = False
    """Step a direct generator by Adam's rule, which comes closer to statistics of the whole batch, instead of along
    each sample's gradient at unit root mean square. A network always learns by Adam."""

    latent: int = 100
    """Size of a network's latent vector."""

    width: int = 0
    """Channels of an image network's wider layers; 0 for DAFL's 128."""

    fixed_latent: bool = False
    """Draw a network's latent vectors when it is re-initialised and train them along, instead of drawing new ones at
    every step."""

    meta: float = 0.0
    """Share of the way to where a network ended that its next start moves (Reptile); 0 starts from fresh weights."""

    keep_start: bool = False
    """Emit the observations that a direct generator started from beside what became of them."""

    blur: float = 0.0
    """Standard deviation in pixels of the blur of a direct generator's gradient."""

    views: int = 1
    """Copies of each observation that are labelled: the observation itself, and for images shifted ones."""

    mirror: bool = False
    """Mirror half of the shifted views, left for right."""

    shift: int = 2
    """Most pixels by which the further views of an image are shifted."""

    reset_every: int = 0
    """Orders after which a generator is re-initialised; 0 for never."""

    stagnation: int = 0
    """Orders without a better objective (or score) after which it is re-initialised; 0 for never. Where this and
    `reset_every` are 0, or nothing is moved since `steps` is, direct and rendered generators are drawn anew at every
    order."""

    in_flight: int = 2
    """Orders under way at once for each actor."""

    timeout: float = 900.0
    """Seconds without an answer after which a generator actor that has orders is replaced; 0 waits for ever."""

    cpus: float = 0.5
    """CPUs that each generator actor reserves."""

    gpus: float = 0.0
    """GPUs, fractions included, that each generator actor reserves."""

    def __post_init__(self) -> None:
        at_least_one = ("actors", "per_actor", "batch_size", "latent", "in_flight", "views")
        at_least_zero = (
            "steps",
            "learning_rate",
            "meta",
            "blur",
            "shift",
            "reset_every",
            "stagnation",
            "cpus",
            "gpus",
            "candidates",
            "alignment",
            "clusters",
            "disputed",
            "contrast",
            "width",
            "timeout",
        )
        check_range(self, dict.fromkeys(at_least_one, 1.0) | dict.fromkeys(at_least_zero, 0.0), {"meta": 1.0})
        if self.kind == "direct" and not self.prior:
            raise UserError("generator.prior: empty; a direct generator starts from at least one distribution")
        if self.kind != "direct" and self.disputed:
            raise UserError(f"generator.disputed: only a direct generator has candidates, not {self.kind}; set it to 0")
        wanted = MADE_OF.get(self.kind)
        moved = ("keep_start", "adam", "blur") if self.kind != "direct" else ()
        drawn = ("candidates", "contrast") if wanted or not self.prior else ()
        for name in (*moved, *drawn):
            if getattr(self, name):
                raise UserError(
                    f"generator.{name}: {getattr(self, name)} does not go with a generator of kind {self.kind}"
                    + ("" if self.prior else " and no prior")
                    + "; set it to 0"
                )
        if wanted and not self.steps:
            raise UserError(f"generator.steps: 0; a generator of kind {self.kind} needs at least 1")
        if wanted and tuple(self.prior[:1]) != (wanted,):
            raise UserError(
                f"generator.prior: {list(self.prior)}; a generator of kind {self.kind} takes [{wanted}] first"
            )

    @property
    def drawn_anew(self) -> bool:
        """Whether every order is a re-initialisation."""
        lives_on = self.steps > 0 and (self.reset_every > 0 or self.stagnation > 0)
        return self.kind in ("direct", "rendered") and not lives_on


@dataclass(frozen=True)
class ObjectiveSettings:
    """Weights of the terms that generators minimise (see core.objectives); 0 leaves a term out."""

    section = "objective"

    one_hot: float = 0.0
    """Cross-entropy to the teacher's own choice."""

    label: float = 0.0
    """Cross-entropy to the action wanted of each observation; all actions are wanted equally often."""

    logit: float = 0.0
    """Minus the centred policy logit of that action, which goes on rising where cross-entropy is satisfied."""

    entropy: float = 0.0
    """Negative entropy of the batch's mean policy."""

    activation: float = 0.0
    """Minus the activation before the teacher's last layer."""

    adversarial: float = 0.0
    """Minus the divergence between teacher and student."""

    divergence: Divergence = "kl"
    """Which divergence."""

    bound: float = 4.0
    """Where the divergence is clipped, in nats (in logits for l1)."""

    masked: bool = False
    """Count only observations on which teacher and student still agree."""

    batch_norm: float = 0.0
    """Distance to the teacher's stored batch-norm statistics."""

    total_variation: float = 0.0
    """Total variation of images."""

    contrastive: float = 0.0
    """Likeness of each image to others and to earlier ones, against that to a shifted view of itself."""

    value: float = 0.0
    """How far the teacher's value of a state lies beyond `value_bound`; for a teacher that answers it."""

    value_bound: float = 0.0
    """Largest value, of either sign, that rewards allow; 1 suits a game with one point at stake, 0 wants none."""

    decided: float = 0.0
    """Squared distance, in nats, of the entropy of the teacher's policy on an observation from `entropy_wanted`."""

    entropy_wanted: float = 0.0
    """Entropy in nats that the teacher's policy had when it was trained; 0 is a policy that is sure."""

    bellman: float = 0.0
    """Squared error of a scene's value against that of the scene a step later, whatever the reward between them; for
    generators of kind rendered, which know what comes next."""

    def __post_init__(self) -> None:
        check_range(self, dict.fromkeys((*TERMS, "bound", "value_bound", "entropy_wanted"), 0.0))

    def any(self) -> bool:
        """Whether a term is on."""
        return any(getattr(self, name) for name in TERMS)


#: The fields of ObjectiveSettings that are weights of terms.
TERMS = (
    "one_hot",
    "label",
    "logit",
    "entropy",
    "activation",
    "adversarial",
    "batch_norm",
    "total_variation",
    "contrastive",
    "value",
    "decided",
    "bellman",
)


class Synthesis(Protocol):
    """What a generator worker takes of a configuration."""

    @property
    def student(self) -> StudentSettings:
        """What the student learns of an answer."""

    @property
    def generator(self) -> GeneratorSettings:
        """The generators."""

    @property
    def objective(self) -> ObjectiveSettings:
        """What they minimise."""

    @property
    def seed(self) -> int:
        """The run's."""


@dataclass(frozen=True)
class PoolSettings:
    """The pool and how it is replayed."""

    section = "pool"

    capacity: int = 100_000
    """Observations kept."""

    replay: float = 1.0
    """Share of a student batch that comes from the pool; the rest comes from the newest synthetic batch."""

    hard: float = 0.0
    """Share of the replayed observations that is picked for a high stored loss."""

    fade: float = 0.0
    """Share of the budget, at its end, in which `hard` falls to 0, so that the student ends on what is common."""

    def __post_init__(self) -> None:
        check_range(self, {"capacity": 1, "replay": 0, "hard": 0, "fade": 0}, {"replay": 1, "hard": 1, "fade": 1})

    def hard_share(self, progress: float) -> float:
        """The share `hard` when this share of the budget is spent."""
        left = max(0.0, 1.0 - progress)
        return self.hard * min(1.0, left / self.fade) if self.fade else self.hard


@dataclass(frozen=True)
class BudgetSettings:
    """When a distillation ends: at the first limit reached. None is no limit; with no limit at all it is 60 seconds."""

    section = "budget"

    seconds: float | None = None
    """Wall time of distillation, evaluation and start-up excluded."""

    observations: int | None = None
    """Synthetic observations that the learner has received."""

    student_steps: int | None = None
    """Student steps."""

    def __post_init__(self) -> None:
        check_range(self, {"seconds": 0.1, "observations": 1, "student_steps": 1})

    def spent(self, seconds: float, observations: int, student_steps: int) -> float:
        """Share of the budget that is used up, 0 to 1."""
        pairs = ((seconds, self.seconds), (observations, self.observations), (student_steps, self.student_steps))
        shares = [used / limit for used, limit in pairs if limit is not None]
        return min(1.0, max(shares, default=seconds / DEFAULT_SECONDS))
