"""Suites of declared cells, and the lines recorded for them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from gasim_ray.config import DistillConfig, build_config, kinds_of, merged, plain
from gasim_ray.core.model import load_config
from gasim_ray.errors import UserError
from gasim_ray.evaluation.atari import is_atari

ROOT = Path(__file__).parent
#: The control that learns from the teacher's real observations: a row of each table, not a method.
REAL = "real"
#: The control that is trained on the data's labels as the teacher was; for classifiers.
LABELS = "labels"
#: Rows that saw data, with the names that tables give them; what follows a dash is the student's size.
CONTROLS = {REAL: "real observations", LABELS: "trained on the data"}

#: How names of tasks begin -> what has to stand beside every figure of theirs.
REMARKS = {"cifar10": "from JPEGs of quality about 75, not the original pixels"}

Kind = Literal["distill", "speed", "chaos"]


@dataclass(frozen=True)
class Cell:
    """One task, method and seed of a suite."""

    suite: str
    #: What is measured: a student, a ratio of speeds, or what a fault costs; the method then is the fault.
    kind: Kind
    task: str
    method: str
    seed: int
    #: What the cell needs: `cpu`, or `gpu`.
    size: Literal["cpu", "gpu"]
    #: Heading under which tables show it.
    group: str
    #: Episodes of each score, for policies.
    episodes: int
    #: The distillation as a tree; controls and `speed` cells take the settings of `gasim`.
    tree: dict[str, Any]
    #: Fields of PolicyTraining by which the runner makes the teacher, where it is a policy; empty if it does not.
    training: dict[str, Any] = field(default_factory=dict)
    #: Of a policy, how many of the snapshots play, too.
    played: int = 0
    #: Another name under which a line of the same settings counts, too.
    recorded_as: str = ""

    @cached_property
    def config(self) -> DistillConfig:
        """The distillation; raises UserError while the teacher is not made."""
        return build_config(self.tree)

    @property
    def control(self) -> str:
        """Which of CONTROLS this is, with a student's size behind it or without; empty for a method."""
        name = self.method.partition("-")[0]
        return name if name in CONTROLS else ""

    @property
    def teacher(self) -> Path:
        """The teacher's folder."""
        return Path(self.tree["teacher"])

    @property
    def unfinished_teacher(self) -> Path:
        """Where the runner trains it, sitting by sitting."""
        return self.teacher.with_name(f"{self.teacher.name}.unfinished")

    @property
    def has_teacher(self) -> bool:
        """Whether the teacher is there; without one the cell is pending."""
        return (self.teacher / "config.json").exists()

    @property
    def is_game(self) -> bool:
        """Whether the teacher plays one of Atari's games."""
        return is_atari(str(load_config(self.teacher).source.get("environment")))

    @property
    def name(self) -> str:
        """Unique within the suite."""
        return f"{self.task}-{self.method}-{self.seed}"

    @property
    def folder(self) -> Path:
        """Where its run is written."""
        return Path("runs") / "benchmarks" / self.suite / self.name

    @property
    def definition(self) -> str:
        """Changes when a setting or the teacher does; not with the code, which each line's commit names.

        A setting that is off counts for nothing, so that a new one that is off leaves what was recorded valid.
        """
        return self.defined_as(self.method)

    def defined_as(self, method: str) -> str:
        """The definition that it has under the name of a method."""
        teacher = load_config(self.teacher).to_json()
        cell = {"out": "", "episodes": self.episodes, "method": method, "teacher": teacher}
        if self.is_game:
            cell["states"] = "sticky"  # those of the lines before were from games without
        tree = plain(asdict(self.config))
        # What the learner reserves and how long an actor is waited for decide nothing; older lines know neither.
        del tree["student"]["cpus"], tree["generator"]["timeout"]
        drawn = {name for own in kinds_of(self.config) for name in own.generator.prior}
        for section, priors in (("scenes", {"scenes"}), ("worlds", {"worlds", "rally"})):
            if priors.isdisjoint(drawn):
                del tree[section]
        fields = without_off({**tree, **cell})
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


def without_off(value: Any) -> Any:
    """Leave out, at every depth, the keys whose value is 0, false, none, empty or `random` (where a student starts)."""
    if isinstance(value, dict):
        kept = {key: without_off(inner) for key, inner in value.items()}
        return {key: inner for key, inner in kept.items() if inner and inner != "random"}
    return [without_off(inner) for inner in value] if isinstance(value, list) else value


def remark(task: str) -> str:
    """What has to stand beside every figure of a task; empty for most."""
    return next((text for start, text in REMARKS.items() if task.startswith(start)), "")


def suite_names() -> list[str]:
    """Every declared suite."""
    return sorted(path.stem for path in (ROOT / "suites").glob("*.yaml"))


def load_suite(name: str) -> list[Cell]:
    """All cells of a suite, method by method; raises UserError for an unknown suite or an impossible setting."""
    path = ROOT / "suites" / f"{name}.yaml"
    if not path.exists():
        raise UserError(f"suite: {name!r} is not known; known: {', '.join(suite_names())}")
    declared = yaml.safe_load(path.read_text())
    return [
        make_cell(name, declared, task, method, seed)
        for method in methods_of(declared)
        for task, settings in declared["tasks"].items()
        for seed in settings.get("methods", declared["methods"]).get(method, [])
    ]


def methods_of(declared: dict[str, Any]) -> list[str]:
    """Every method of a suite, in the order in which they are first named; a task may have its own."""
    named = [declared["methods"], *(settings.get("methods", {}) for settings in declared["tasks"].values())]
    return list(dict.fromkeys(method for methods in named for method in methods))


def make_cell(suite: str, declared: dict[str, Any], task: str, method: str, seed: int) -> Cell:
    """One cell with all its settings.

    A variant is a method with other settings under a name of its own; a size, behind a dash, adds settings to either.
    """
    described = declared["tasks"][task]
    settings = {key: value for key, value in described.items() if key not in ("group", "methods", "training")}
    sizes, (stem, _, size) = declared.get("sizes", {}), method.rpartition("-")
    name, sized = (stem, dict(sizes[size])) if size in sizes else (method, {})
    played = sized.pop("played", 0)
    variants = {**{control: {"method": "gasim"} for control in CONTROLS}, **declared.get("variants", {})}
    own = variants.get(name, {} if declared["kind"] == "chaos" else {"method": name})
    tree = merged(declared["config"], settings, own, sized, {"seed": seed})
    return Cell(
        suite=suite,
        kind=declared["kind"],
        task=task,
        method=method,
        seed=seed,
        size=declared["size"],
        group=described.get("group", suite),
        episodes=declared.get("episodes", 0),
        tree=tree,
        training=described.get("training", {}),
        played=played,
        recorded_as=declared.get("recorded_as", {}).get(method, ""),
    )


def matches(cell: Cell, only: str) -> bool:
    """Whether a cell has what `--only` asks for, `a|b` for either; raises UserError for a field that cells lack."""
    for condition in filter(None, only.split(",")):
        name, _, value = condition.partition("=")
        if name not in ("task", "method", "seed", "group"):
            raise UserError(f"only: {name!r} is not one of task, method, seed, group")
        if str(getattr(cell, name)) not in value.split("|"):
            return False
    return True


def results_path(suite: str) -> Path:
    """The recorded lines of a suite."""
    return ROOT / "results" / f"{suite}.jsonl"


def read_results(suite: str) -> list[dict[str, Any]]:
    """All recorded lines, oldest first."""
    path = results_path(suite)
    found = []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], start=1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{path}: line {number} is not whole ({error}); remove it, and record its cell") from error
    return found


def current_results(suite: str) -> dict[str, dict[str, Any]]:
    """Cell name -> its newest line at the current definition, under the cell's own name before another."""
    lines = {(line["task"], line["method"], line["seed"], line["definition"]): line for line in read_results(suite)}
    recorded = {key[:3] for key in lines}  # a definition takes a while, and of the other cells it is not needed
    found = {}
    for cell in load_suite(suite):
        for method in (cell.recorded_as, cell.method):
            key = (cell.task, method, cell.seed)
            if key in recorded and cell.has_teacher and (line := lines.get((*key, cell.defined_as(method)))):
                found[cell.name] = {**line, "method": cell.method}
    return found


def append_result(suite: str, line: dict[str, Any]) -> None:
    """Add one line."""
    path = results_path(suite)
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
