"""One trial of a sweep: ordinary distillations inside Ray Tune, that report to it and go on from its checkpoints."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import chdir, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from rich.console import Console

from gasim_ray.actors.loop import Loop, Progress
from gasim_ray.actors.resources import bundles
from gasim_ray.config import DistillConfig, build_config
from gasim_ray.core.model import Model, load_model
from gasim_ray.errors import UserError
from gasim_ray.report.display import Display
from gasim_ray.run import distill
from gasim_ray.run_folder import RunFolder, write_atomically
from gasim_ray.tuning.space import with_settings
from gasim_ray.tuning.sweep import EvaluationSettings, ValidationSettings
from gasim_ray.tuning.validation import Validation, make_validation

#: The key beneath which settings that were drawn before the sweep stand in Tune's configuration.
POINT = "settings"
#: Under which Tune is told which report it is: those of equal number are at an equal share of their budgets.
REPORT = "report"
#: What a checkpoint keeps beside the run: the figures of finished seeds.
STATE_FILE = "trial.json"
#: What Tune calls for each trial, with its settings.
Trainable = Callable[[dict[str, Any]], None]
#: Of the episodes that trials are measured in, which are not those of `gasim evaluate`: the best would be flattered.
EPISODES_SEED = 40_000
#: Seconds between checkpoints that a trial never reaches.
NEVER = 1e9


@dataclass(frozen=True)
class TrialPlan:
    """What all trials of a sweep share."""

    #: The distillation as a tree; a trial's settings are put over it.
    tree: Mapping[str, Any]
    #: Distillations, one after another.
    seeds: int = 1
    #: Reports of the first.
    reports: int = 4
    #: Whether reports are measured on the task itself too.
    evaluate: EvaluationSettings = field(default_factory=EvaluationSettings)
    #: Where the sweep was begun, beneath which data sets may lie; trials run elsewhere.
    place: str = field(default_factory=os.getcwd)

    def config(self, settings: Mapping[str, Any]) -> DistillConfig:
        """A trial's distillation; `settings` is Tune's configuration of it."""
        return build_config(with_settings(self.tree, settings.get(POINT, settings)))


def trainable(config: Mapping[str, Any]) -> Trainable:
    """What `tune.Tuner` takes: distils with the dotted keys of its `param_space` put over `config`.

    config: a tree as `gasim distill` takes it, its teacher's path absolute. Reports `agreement`, `kl` and `regret` on
    validation observations (made here; see tuning.validation), `seconds`, `observations`, `student_steps` and `spent`
    (share of the budget). Its resources are those of the learner and the generators.
    """
    return planned(TrialPlan(config), make_validation(dict(config), ValidationSettings(), seed=0, say=print))


def planned(plan: TrialPlan, validation: Validation) -> Trainable:
    """The trainable of a plan, with the resources of each trial's actors."""
    function: Trainable = tune.with_resources(
        tune.with_parameters(run_trial, plan=plan, validation=validation),
        lambda settings: tune.PlacementGroupFactory([{}, *placement(plan, settings)]),
    )
    return function


def placement(plan: TrialPlan, settings: Mapping[str, Any]) -> list[dict[str, float]]:
    """The bundles of a trial's actors; a placement group takes no bundle of nothing."""
    try:
        config = plan.config(settings)
    except UserError:
        config = plan.config({})  # settings that exclude each other: the trial itself fails and says why
    kept = [{name: amount for name, amount in bundle.items() if amount} for bundle in bundles(config)]
    return [bundle for bundle in kept if bundle]


def run_trial(settings: dict[str, Any], plan: TrialPlan, validation: Validation) -> None:
    """Distil once for each seed, from Tune's checkpoint where there is one."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    _Trial(plan.config(settings), plan, validation).run()


class _Trial:
    def __init__(self, config: DistillConfig, plan: TrialPlan, validation: Validation) -> None:
        # On the trial's own machine, unlike Tune's folder of the trial.
        self.folder = RunFolder(Path.cwd() / f"run-{tune.get_context().get_trial_id()}")
        # Reports are its checkpoints.
        self.config = replace(config, out=str(self.folder.path), checkpoint_seconds=NEVER)
        self.plan, self.validation = plan, validation
        self.finished: list[dict[str, float]] = []
        self.reported = 0
        self.progress = Progress()

    def run(self) -> None:
        resume = self._restore()
        while len(self.finished) < self.plan.seeds:
            config = replace(self.config, seed=self.config.seed + len(self.finished))
            distill(config, Display(Console(quiet=True)), resume, not resume, self._watch)
            figures = self._measure(load_model(self.folder.student))
            self.finished.append({**figures, **costs(self.progress)})
            self.reported = 0
            resume = False
            last = self.plan.reports + len(self.finished) - 1
            self._report({**mean_of(self.finished), "spent": len(self.finished) / self.plan.seeds, REPORT: last})

    def _watch(self, loop: Loop, student: Callable[[], Model]) -> None:
        self.progress = p = loop.progress
        due = int(p.spent * self.plan.reports)
        if self.finished or p.spent >= 1.0 or due <= self.reported:
            return
        self.reported = due
        figures = self._measure(student())
        self.folder.save_checkpoint(loop.state_dict())
        self._report({**figures, **costs(p), "spent": p.spent / self.plan.seeds, REPORT: due})

    def _measure(self, student: Model) -> dict[str, float]:
        figures = self.validation.score(student)
        if self.plan.evaluate.enabled:
            figures |= measure_on_task(self.config, student, self.plan)
        return figures

    def _report(self, figures: Mapping[str, float]) -> None:
        """Tell Tune; at its end a trial leaves the student alone."""
        state = {"finished": self.finished, "reported": self.reported}
        if len(self.finished) == self.plan.seeds:
            shutil.rmtree(self.folder.checkpoint.parent)
        # Tune keeps checkpoints, and copies the folder; the teacher is the same for all.
        self.folder.previous.unlink(missing_ok=True)
        shutil.rmtree(self.folder.teacher, ignore_errors=True)
        write_atomically(self.folder.path / STATE_FILE, json.dumps(state).encode())
        tune.report(dict(figures), checkpoint=tune.Checkpoint.from_directory(self.folder.path))

    def _restore(self) -> bool:
        """Take up Tune's checkpoint; returns whether a distillation is to be resumed.

        With PBT the checkpoint is another trial's: its learner goes on under this one's settings.
        """
        shutil.rmtree(self.folder.path, ignore_errors=True)
        checkpoint = tune.get_checkpoint()
        if checkpoint is None:
            return False
        with checkpoint.as_directory() as folder:
            shutil.copytree(folder, self.folder.path)
        state = json.loads((self.folder.path / STATE_FILE).read_text())
        self.finished, self.reported = state["finished"], state["reported"]
        if not self.reported:
            return False
        write_atomically(self.folder.path / "config.yaml", self.config.to_yaml().encode())
        return True


def costs(progress: Progress) -> dict[str, float]:
    """What a distillation has taken."""
    return {name: getattr(progress, name) for name in ("seconds", "observations", "student_steps")}


def mean_of(figures: list[dict[str, float]]) -> dict[str, float]:
    """Means of the same figures of several seeds."""
    return {name: float(np.mean([row[name] for row in figures])) for name in figures[0]}


def measure_on_task(config: DistillConfig, student: Model, plan: TrialPlan) -> dict[str, float]:
    """`return` in the teacher's environment or `accuracy` on the test images of its data set."""
    # Only here, so that a sweep which does not ask for it loads no environment.
    from gasim_ray.evaluation.runs import task_of_teacher
    from gasim_ray.evaluation.tasks import TEACHER

    with chdir(plan.place) if Path(plan.place).is_dir() else nullcontext():
        task = task_of_teacher(config.teacher, plan.evaluate.episodes, EPISODES_SEED, local=True)
    scores, _ = task.measure({TEACHER: student})
    return {task.metric: scores[TEACHER].interval.mean}
