"""Compares a run's student with its teacher and with its controls."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gasim_ray.core.model import Model, ModelConfig, load_model
from gasim_ray.core.outputs import kl, log_policy
from gasim_ray.errors import UserError
from gasim_ray.evaluation.agreement import answers, check_same_task, kl_nats, same_action
from gasim_ray.evaluation.atari import is_atari
from gasim_ray.evaluation.controls import Distil, control_models
from gasim_ray.evaluation.episodes import Observations
from gasim_ray.evaluation.intervals import Interval
from gasim_ray.evaluation.latency import latency_ms
from gasim_ray.evaluation.modes import ModeShares, modes_of_run
from gasim_ray.evaluation.tasks import TEACHER, Metric, Score, Task
from gasim_ray.report.samples import save_worst
from gasim_ray.run_folder import RunFolder, saved_config

STUDENT = "student"
#: Atari's games only: actions drawn at random, from which normalised scores count.
CHANCE = "random_actions"

#: Size of the batch whose latency is measured beside that of one observation.
LATENCY_BATCH = 256
#: Real pictures among which those are looked for on which student and teacher differ most.
WORST_OF = 2_000


@dataclass(frozen=True)
class Row:
    """One model of an evaluation."""

    #: `teacher`, `student` or a control's name.
    name: str
    #: How well it does.
    score: Score
    #: Fraction of the real observations on which it chooses the teacher's action.
    agreement: float
    #: KL(teacher || model) on them, in nats.
    kl: float
    #: Number of weights and biases.
    parameters: int
    #: Median milliseconds on one CPU thread for one observation.
    latency_one_ms: float
    #: The same for LATENCY_BATCH observations.
    latency_batch_ms: float
    #: Atari's games only: its return above random actions' as a share of the teacher's above them.
    normalised: float | None = None
    #: The same of its return where actions are sticky.
    sticky_normalised: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Teacher, student and controls of one run, measured on the same task."""

    #: The run's folder name.
    run: str
    #: Environment id or data set.
    task: str
    #: What the scores are: mean return, or accuracy as a fraction.
    metric: Metric
    #: Number of the teacher's real observations on which agreement and KL were taken.
    observations: int
    #: Teacher first, then student, then controls.
    rows: tuple[Row, ...]
    #: Merged classifiers: how what was invented is spread over the former classes.
    modes: ModeShares | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready description with the fields above."""
        tree = asdict(self)
        if self.modes is not None:
            tree["modes"]["recall"] = self.modes.recall
        return tree

    def scores(self) -> dict[str, float]:
        """Mean score of each row by its name."""
        return {row.name: row.score.interval.mean for row in self.rows}


def evaluate_run(run: Path, task: Task, distil: Distil | None) -> Evaluation:
    """Measure a run's teacher, student and controls on a task and write their scores into its summary.

    `distil` makes the two distilled controls; None leaves them out unless an earlier evaluation has made them.

    Raises UserError if the run, its teacher or its student cannot be read, or teacher, student and task do not fit
    each other.
    """
    folder = RunFolder(run)
    summary = folder.read_summary()
    student = load_model(folder.student)
    teacher = load_model(saved_config(run).teacher).frozen()
    check_same_task(teacher.config, student.config)
    task.check(teacher.config, TEACHER)
    controls = control_models(run, student.config, teacher, task, distil)
    if is_atari(task.name):
        controls[CHANCE] = chance(teacher.config)
    models = {TEACHER: teacher, STUDENT: student, **controls}
    evaluation, observations = evaluate_models(run.resolve().name, models, task)
    if teacher.config.observation.is_image:
        show_worst(run / "worst.png", teacher, student, observations)
    try:
        evaluation = replace(evaluation, modes=modes_of_run(run, task))
    except UserError as error:
        print(f"hidden modes: not measured ({error})", file=sys.stderr)
    scores = evaluation.scores()
    folder.write_summary(
        {
            **summary,
            "evaluated": {
                **{name: getattr(task, name) for name in ("name", "episodes", "seed") if hasattr(task, name)},
                "observations": evaluation.observations,
            },
            "metric": evaluation.metric,
            "teacher_score": scores[TEACHER],
            "student_score": scores[STUDENT],
            "controls": {name: scores[name] for name in controls},
            "agreement": next(row.agreement for row in evaluation.rows if row.name == STUDENT),
        }
    )
    return evaluation


def show_worst(path: Path, teacher: Model, student: Model, observations: Observations) -> None:
    """Draw the real pictures on which the student's policy is farthest from the teacher's."""
    # At random, since images may be sorted by their classes.
    some = np.random.default_rng(0).choice(len(observations), min(WORST_OF, len(observations)), replace=False)
    observations = observations[some]
    mine, theirs = (log_policy(answers(m, observations), m.config.output_scale).float() for m in (student, teacher))
    distance = kl(theirs, mine).numpy()
    save_worst(path, observations, theirs.exp().numpy(), mine.exp().numpy(), distance, teacher.config.observation)


def evaluate_models(run: str, models: Mapping[str, Model], task: Task) -> tuple[Evaluation, Observations]:
    """Measure models, one of them named `TEACHER`, which have been checked to fit the task; and on what.

    Raises UserError if one answers NaN.
    """
    scores, observations = task.measure(models)
    teacher = models[TEACHER]
    expected = answers(teacher, observations, TEACHER)
    rows = [
        _row(name, model, scores[name], answers(model, observations, name), expected, teacher.config.output_scale)
        for name, model in models.items()
    ]
    if CHANCE in scores:
        # What it answers is a draw, not a policy.
        even = kl_nats(expected, teacher.config.output_scale, torch.zeros_like(expected), 1.0)
        alike = 1 / teacher.config.actions
        rows = [replace(row, agreement=alike, kl=even) if row.name == CHANCE else row for row in rows]
        rows = [_normalised(row, scores) for row in rows]
    return Evaluation(run, task.name, task.metric, len(observations), tuple(rows)), observations


def chance(teacher: ModelConfig) -> Model:
    """A policy of random actions where the teacher plays."""
    return Model(replace(teacher, architecture={"name": "chance"}, outputs="logits", output_scale=1.0, value=False))


def normalised(score: Interval | None, teacher: Interval | None, random: Interval | None) -> float | None:
    """(score - random) / (teacher - random), as Mnih et al. 2015 normalise by humans; None for a teacher no better."""
    if score is None or teacher is None or random is None:
        return None
    span = teacher.mean - random.mean
    return (score.mean - random.mean) / span if span > 0 else None


def _normalised(row: Row, scores: Mapping[str, Score]) -> Row:
    own, teacher, random = row.score, scores[TEACHER], scores[CHANCE]
    return replace(
        row,
        normalised=normalised(own.interval, teacher.interval, random.interval),
        sticky_normalised=normalised(own.sticky, teacher.sticky, random.sticky),
    )


def _row(name: str, model: Model, score: Score, outputs: Tensor, expected: Tensor, teacher_scale: float) -> Row:
    return Row(
        name,
        score,
        same_action(expected, outputs),
        kl_nats(expected, teacher_scale, outputs, model.config.output_scale),
        model.parameter_count,
        latency_ms(model, 1),
        latency_ms(model, LATENCY_BATCH),
    )
