"""What a sweep is: a frozen tree read from tune_configs/<sweep>.yaml and the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentParser

from gasim_ray.config import build_config, merged, parse, plain, read_yaml
from gasim_ray.core.settings import check_range
from gasim_ray.errors import UserError, nearest
from gasim_ray.tasks import distillation_of
from gasim_ray.tuning.space import Dimension, check_values, parse_space, with_settings

#: Written into every sweep's folder; another number cannot be resumed.
FORMAT = 1
#: What a learner, its actors and their places are made of, what it learns and what it reads: PBT cannot change it
#: underway.
FIXED_BY_LEARNER = (
    "method",
    "actor_settings",
    "device",
    "local",
    "synchronous",
    "student.cpus",
    "student.init",
    "student.value_weight",
    "student.features_weight",
    "student.layers_weight",
    "generator.prior",
    "generator.kind",
    "generator.actors",
    "generator.per_actor",
    "generator.cpus",
    "generator.gpus",
)
#: What every trial reports.
PLAIN_METRICS = ("agreement", "kl", "regret", "seconds", "observations", "student_steps")
#: What only an evaluation on the task itself can tell.
TASK_METRICS = ("return", "accuracy")


@dataclass(frozen=True)
class EvaluationSettings:
    """Whether trials are also measured on the task itself. Steers nothing unless an objective names it."""

    section = "evaluate"

    enabled: bool = False
    """Measure each report's student in the environment or on the test images that the teacher is known by."""

    episodes: int = 20
    """Episodes of each measurement, for policies."""

    def __post_init__(self) -> None:
        check_range(self, {"episodes": 2})


@dataclass(frozen=True)
class ValidationSettings:
    """The observations that trials are compared on. No trial learns from them; see tuning.validation."""

    section = "validation"

    observations: int = 1024
    """Observations from each source."""

    student_steps: int = 600
    """Student steps of the distillations whose generators supply some of the sources."""

    def __post_init__(self) -> None:
        check_range(self, {"observations": 16, "student_steps": 1})


@dataclass(frozen=True)
class Sweep:
    """A search over the settings of a distillation."""

    section = "sweep"

    base: dict[str, Any]
    """Configuration of every trial: any tree of `gasim distill`, or `task: NAME` for what --task stands for."""

    space: dict[str, Any]
    """Dotted key -> distribution; see tune_configs/template.yaml."""

    objective: dict[str, Literal["max", "min"]] = field(default_factory=lambda: {"regret": "min"})
    """What is searched for, and in which direction; of several the first decides what is best."""

    searcher: Literal["random", "grid", "tpe", "nsga2"] = "tpe"
    """Where the next settings come from: `tpe` and `nsga2` are Optuna's."""

    scheduler: Literal["none", "asha", "median", "pbt"] = "none"
    """What stops trials early (asha, median), or copies the better ones' learners (pbt)."""

    trials: int = 20
    """Number of trials; a grid has as many as it has combinations."""

    seeds: int = 1
    """Distillations for each trial, one after another, with successive seeds; figures are their means."""

    concurrent: int | None = None
    """Trials at once, at most; None for as many as fit."""

    seconds: float | None = None
    """Wall time after which no more trials are run."""

    reports: int = 4
    """Reports of each trial's first distillation, evenly over its budget; every further one reports at its end."""

    retries: int = 2
    """Times that a trial which died is taken up from its last report."""

    seed: int = 0
    """Fixes what is searched, the validation observations, and the first seed of trials."""

    loggers: tuple[Literal["wandb", "mlflow"], ...] = ()
    """Where results are logged beside the folder, by Ray's own callbacks."""

    validation: ValidationSettings = field(default_factory=ValidationSettings)
    evaluate: EvaluationSettings = field(default_factory=EvaluationSettings)

    def __post_init__(self) -> None:
        check_range(
            self,
            {"trials": 1, "seeds": 1, "concurrent": 1, "seconds": 1, "reports": 1, "retries": 0, "seed": 0},
        )
        self._check_objective()
        if self.scheduler != "none" and self.reports < 2:
            raise UserError(
                f"sweep.reports: {self.reports} leaves {self.scheduler} no intermediate report to judge by; "
                "give 2 or more, or scheduler none"
            )
        if len(self.objective) > 1 and self.scheduler != "none":
            raise UserError(f"sweep.scheduler: {self.scheduler} follows one objective, not several; take none")
        if self.scheduler == "pbt" and self.searcher != "random":
            raise UserError(f"sweep.searcher: {self.searcher} with pbt, which searches by itself; take random")
        if self.scheduler == "pbt" and self.seeds > 1:
            raise UserError(f"sweep.seeds: {self.seeds} with pbt, which copies one learner; take 1")

    def _check_objective(self) -> None:
        if not self.objective:
            raise UserError("sweep.objective: empty; give a figure and its direction, such as regret: min")
        known = (*PLAIN_METRICS, *TASK_METRICS)
        for name in self.objective:
            if name not in known:
                raise UserError(f"sweep.objective: no trial reports {name!r}; {nearest(name, known)}")
            if name in TASK_METRICS and not self.evaluate.enabled:
                raise UserError(f"sweep.objective: {name} is reported only with evaluate.enabled: true")

    def tree(self) -> dict[str, Any]:
        """The distillation that every trial starts from; a task's name is resolved, and paths are absolute."""
        base = dict(self.base)
        task = base.pop("task", None)
        if task is not None and "teacher" in base:
            raise UserError(f"base.task: {task!r} beside base.teacher, which says what to distil; give one of them")
        named = distillation_of(str(task)) if task is not None else {}
        tree = merged(named, base)
        if isinstance(tree.get("teacher"), str):
            # Trials run in folders of their own.
            tree["teacher"] = str(Path(tree["teacher"]).resolve())
        tree.pop("out", None)
        return tree if "seed" in tree else {**tree, "seed": self.seed}

    def dimensions(self) -> tuple[Dimension, ...]:
        """The search space, checked against the tree; raises UserError."""
        build_config(self.tree())
        space = parse_space(self.space)
        check_values(self.tree(), space)
        if self.scheduler == "pbt":
            check_population(space)
        return space

    @property
    def last_report(self) -> int:
        """Reports of a trial that ends by itself."""
        return self.reports + self.seeds - 1

    def to_yaml(self) -> str:
        """The sweep as a file that `gasim tune` reads back."""
        # A sweep is resumed from anywhere, and a task's teacher is sought beneath the working folder.
        base = {key: value for key, value in self.tree().items() if key != "seed" or "seed" in self.base}
        resolved = replace(self, base=base)
        return yaml.safe_dump({"format": FORMAT, **plain(asdict(resolved))}, sort_keys=False)


def check_population(space: Sequence[Dimension]) -> None:
    """Raise UserError for what PBT cannot change when it copies a learner."""
    for dimension in space:
        if dimension.when:
            raise UserError(
                f"space.{dimension.key}.when: pbt changes settings one by one, so none may depend on others"
            )
        if dimension.key in FIXED_BY_LEARNER or dimension.key.startswith("student.architecture"):
            raise UserError(f"space.{dimension.key}: pbt cannot change it in a running learner; take another scheduler")


def make_parser() -> ArgumentParser:
    """The parser of a sweep; its --help is the dataclass's documentation."""
    parser = ArgumentParser(prog="gasim tune", exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(Sweep, fail_untyped=True)
    return parser


def parse_sweep(file: Path, arguments: Sequence[str] = ()) -> Sweep:
    """A sweep from its file, with arguments over it; raises UserError in one line."""
    tree = read_yaml(str(file))
    made_by = tree.pop("format", FORMAT)
    if made_by != FORMAT:
        raise UserError(f"{file}: format {made_by} is of another version; this one reads {FORMAT}; start a new sweep")
    _check_keys(tree)
    of_base, rest = _of_base(arguments)
    try:
        tree["base"] = with_settings(tree["base"], of_base)
    except (TypeError, ValueError) as error:
        raise UserError(f"base: {', '.join(of_base)} lies beneath what is no section; leave it out") from error
    parser = make_parser()
    return Sweep(**parser.instantiate_classes(parse(parser, tree, rest)).as_dict())


def _of_base(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """What --base.KEY VALUE sets, by dotted key, and the other arguments: the parser would drop a section's others."""
    settings: dict[str, Any] = {}
    rest, left = [], list(arguments)
    while left:
        name, equals, value = left.pop(0).partition("=")
        if not name.startswith("--base."):
            rest.append(name + equals + value)
        elif equals or (left and not left[0].startswith("--")):
            given = value if equals else left.pop(0)
            try:
                settings[name.removeprefix("--base.")] = yaml.safe_load(given)
            except yaml.YAMLError as error:
                raise UserError(f"{name.removeprefix('--')}: {given!r} is no YAML; mend it") from error
        else:
            raise UserError(f"{name.removeprefix('--')}: no value; give one after it")
    return settings, rest


def _check_keys(tree: Mapping[str, Any]) -> None:
    known = [f.name for f in fields(Sweep)]
    for key in tree:
        if key not in known:
            near = get_close_matches(key, known, n=1, cutoff=0.4)
            raise UserError(f"{key}: no such key of a sweep; " + (f"did you mean {near[0]}?" if near else "see --help"))
    for key in ("base", "space"):
        if not isinstance(tree.get(key), Mapping):
            raise UserError(f"{key}: missing or no mapping; a sweep needs a base configuration and a space")
