"""Measures a cell: distils, or trains on the data, as it says, and scores the student; a line of results comes of it.

What takes longer than there is time is stopped with a checkpoint, and gone on with when it is measured again.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from benchmarks.cells import LABELS, REAL, Cell
from benchmarks.chaos import measure_fault
from benchmarks.provenance import provenance
from benchmarks.speed import measure_speed
from gasim_ray.actors.loop import Loop, Progress
from gasim_ray.core.model import Model, ModelConfig, load_model
from gasim_ray.errors import UserError
from gasim_ray.evaluation.agreement import answers, constant_kl, kl_nats, same_action
from gasim_ray.evaluation.compare import chance
from gasim_ray.evaluation.controls import untrained
from gasim_ray.evaluation.episodes import Observations
from gasim_ray.evaluation.modes import modes_of_run
from gasim_ray.evaluation.runs import distil_control, task_of_teacher
from gasim_ray.evaluation.tasks import TEACHER, Score
from gasim_ray.report.display import Display
from gasim_ray.run import Interrupted, continuing, distill, interruptible, knowledge_level
from gasim_ray.run_folder import RunFolder, read_state, write_atomically
from gasim_ray.teachers import load_teacher
from gasim_ray.training.classifier import ClassifierTraining, train_classifier
from gasim_ray.training.command import show

#: Seconds that starting and evaluating a cell may take, one of a game, and what two cores take besides for its thirty
#: plain and thirty sticky episodes, which are spread over the cores.
EVALUATION, GAME_EVALUATION, GAME_EPISODES = 25.0, 30.0, 150.0
#: Seconds that stopping with a checkpoint may take.
STOPPING = 20.0


@dataclass(frozen=True)
class Sitting:
    """The time that a call of the runner has; what a cell came to in it the next one goes on with."""

    #: How long it is.
    seconds: float = float("inf")
    #: When it began, of time.monotonic.
    begun: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds to its end."""
        return self.begun + self.seconds - time.monotonic()

    def over(self) -> bool:
        """Whether it is time to stop."""
        return self.left < STOPPING


ENDLESS = Sitting()


class Unfinished(Exception):  # noqa: N818
    """A sitting did not suffice for a cell."""


def record(cell: Cell, sitting: Sitting = ENDLESS) -> dict[str, Any]:
    """Run one cell and return its line; raises Unfinished if the next sitting has to go on with it."""
    teacher = load_teacher(cell.config.teacher)
    sittings = begin_or_go_on(cell)
    if cell.kind == "speed":
        result = measure_speed(cell.task, cell.config)
    elif cell.kind == "chaos":
        student, told = measure_fault(cell)
        result = {**score(cell, student), **told}
    else:
        make = {REAL: distil_on_data, LABELS: train_on_labels}.get(cell.control, distil_by_method)
        started = time.monotonic()
        student, told = make(cell, teacher, sitting)
        if sittings == 1:
            told["whole_seconds"] = time.monotonic() - started
        if sitting.left < evaluation_seconds(cell):
            raise Unfinished
        result = {**score(cell, student), **told, **({} if cell.control else found_on_the_way(cell))}
    line = {
        "suite": cell.suite,
        "task": cell.task,
        "method": cell.method,
        "knowledge": "data" if cell.control else knowledge_level(cell.config),
        "group": cell.group,
        "seed": cell.seed,
        "teacher_score": None,
        "student_score": None,
        "controls": {},
        "agreement": None,
        "budget_seconds": cell.config.budget.seconds,
        "environment_steps": 0,
        "teacher_parameters": teacher.parameter_count,
        **result,
        **provenance(),
        **({"sittings": sittings} if sittings > 1 else {}),
        "definition": cell.definition,
        "command": f"python -m benchmarks.run {cell.suite} "
        f"--only task={cell.task},method={cell.method},seed={cell.seed}" + " --size gpu" * (cell.size == "gpu"),
    }
    return line


def forget_sittings(cell: Cell) -> None:
    """Remove what the next sitting would go on with, of a cell whose line is kept."""
    sittings_file(cell).unlink(missing_ok=True)
    shutil.rmtree(RunFolder(cell.folder).checkpoint.parent, ignore_errors=True)


def sittings_file(cell: Cell) -> Path:
    """Beside a cell's folder, of which cell it is and how many sittings it has had."""
    return cell.folder.with_name(f"{cell.name}.json")


def begin_or_go_on(cell: Cell) -> int:
    """Count the sittings of a cell, this one included; what its folder holds of another definition is removed."""
    place = sittings_file(cell)
    before = json.loads(place.read_text()) if place.exists() else {}
    if before.get("definition") != cell.definition:
        shutil.rmtree(cell.folder, ignore_errors=True)
        before = {"sittings": 0}
    sittings = int(before["sittings"]) + 1
    content = json.dumps({"definition": cell.definition, "sittings": sittings})
    write_atomically(place, content.encode())
    return sittings


def last_state(folder: RunFolder) -> dict[str, Any] | None:
    """The checkpoint of the sittings before, if there is one that can be read."""
    try:
        return folder.last_state()
    except UserError:
        return None


def distil_by_method(cell: Cell, teacher: Model, sitting: Sitting) -> tuple[Model, dict[str, Any]]:
    """Distil with a method, without environment or data; raises Unfinished, see `record`."""
    folder = RunFolder(cell.folder)
    if not folder.summary.exists():
        resume = last_state(folder) is not None
        with Display(Console(stderr=True, quiet=not sys.stderr.isatty())) as display:
            try:
                distill(cell.config.at(cell.folder), display, resume, overwrite=True, stop=sitting.over)
            except Interrupted:
                if sitting.over():
                    raise Unfinished from None
                raise
    summary = folder.read_summary()
    told = {name: summary[name] for name in ("wall_seconds", "synthetic_observations")}
    steps = int(pd.read_csv(folder.path / "metrics.csv")["student_steps"].iloc[-1])
    return load_model(folder.student), {**told, "student_steps": steps}


def distil_on_data(cell: Cell, teacher: Model, sitting: Sitting) -> tuple[Model, dict[str, Any]]:
    """Distil the same student on the teacher's real observations; raises Unfinished, see `record`."""
    folder, config = RunFolder(cell.folder), cell.config.at(cell.folder)
    observations = task_of_teacher(config.teacher, cell.episodes).training_observations(teacher)
    state, progress = last_state(folder), Progress()

    def drive(loop: Loop) -> None:
        nonlocal progress
        if state is not None:
            loop.load_state_dict(state)
        with interruptible() as caught:
            loop.stop = lambda: caught() or sitting.over()
            progress = loop.run()
            folder.save_checkpoint(loop.state_dict())
            if caught():
                raise KeyboardInterrupt

    student = distil_control(config if state is None else continuing(config), teacher, observations, drive)
    if progress.spent < 1.0:
        raise Unfinished
    return student, {
        "wall_seconds": progress.seconds,
        "synthetic_observations": 0,
        "student_steps": progress.student_steps,
        "environment_steps": len(observations),
    }


def train_on_labels(cell: Cell, teacher: Model, sitting: Sitting) -> tuple[Model, dict[str, Any]]:
    """Train the same student on the data's labels as its teacher was, as many epochs.

    Raises UserError for a policy's teacher, and Unfinished, see `record`.
    """
    if "dataset" not in teacher.config.source:
        raise UserError(f"method: {LABELS} is for classifiers, and {cell.teacher} is a policy")
    source, architecture = teacher.config.source, dict(cell.config.student.architecture)
    training = ClassifierTraining(
        dataset=source["dataset"],
        groups=source.get("groups", ""),
        model=architecture.pop("name"),
        arguments=architecture,
        epochs=source["epochs"],
        seed=cell.seed,
        device=cell.config.device,
        budget_seconds=float("inf"),
        **source.get("training", {}),  # teachers of before it was kept were trained by default
    )
    folder = RunFolder(cell.folder).student
    student = train_classifier(limited(training, folder, sitting.left - STOPPING), folder, show, resume=True)
    own = student.config.source
    if own["epochs"] < training.epochs:
        raise Unfinished
    seen = len(task_of_teacher(cell.config.teacher, cell.episodes).training_observations(teacher))
    return student, {"wall_seconds": own["wall_seconds"], "synthetic_observations": 0, "environment_steps": seen}


def found_on_the_way(cell: Cell) -> dict[str, Any]:
    """What a distillation's folder tells: which hidden modes were invented, and what was learnt when."""
    modes = modes_of_run(cell.folder, task_of_teacher(cell.config.teacher, cell.episodes))
    held = {} if modes is None else {"mode_shares": modes.shares, "mode_recall": modes.recall}
    return {**held, **curve(cell, RunFolder(cell.folder))}


def curve(cell: Cell, folder: RunFolder) -> dict[str, Any]:
    """What the student had learnt when; nothing where no snapshots were kept.

    A classifier's `curve` is [seconds, score] of each snapshot. A policy, of which a score takes many episodes, has a
    `growth` of [seconds, synthetic observations, agreement, KL in nats] on the teacher's real states, and if some of
    its snapshots play `growth_scores` of [synthetic observations, return], where actions are sticky in a game.
    """
    task, snapshots = task_of_teacher(cell.config.teacher, cell.episodes), folder.read_snapshots()
    if snapshots and task.metric == "return":
        grown = growth(cell, folder, snapshots)
        # The later, the less changes from one to the next.
        players = sorted({int(number) - 1 for number in np.geomspace(1, len(grown), cell.played)})
        scores = []
        for index in players:
            played = task.measure({TEACHER: list(snapshots.values())[index]})[0][TEACHER]
            scores.append([grown[index][1], (played.sticky or played.interval).mean])
        return {"growth": grown, **({"growth_scores": scores} if scores else {})}
    points = [
        [seconds, task.measure({TEACHER: s.to(cell.config.device)})[0][TEACHER].interval.mean]
        for seconds, s in snapshots.items()
    ]
    return {"curve": points} if points else {}


def growth(cell: Cell, folder: RunFolder, snapshots: dict[float, Model]) -> list[list[float]]:
    """See `curve`."""
    rows = pd.read_csv(folder.path / "metrics.csv")
    teacher, (_, states) = load_teacher(cell.teacher), teacher_reference(cell.config.teacher, cell.episodes, "cpu")
    expected, scale, found = answers(teacher, states, TEACHER), teacher.config.output_scale, []
    for seconds, student in snapshots.items():
        made = float(np.interp(seconds, [0, *rows["seconds"]], [0, *rows["observations"]]))
        outputs = answers(student, states, "student")
        kl = kl_nats(expected, scale, outputs, student.config.output_scale)
        found.append([seconds, made, same_action(expected, outputs), kl])
    return found


def score(cell: Cell, student: Model) -> dict[str, Any]:
    """Score a student beside its teacher and the untrained control: classifiers on the cell's device, policies on CPUs,
    where they play in many processes.
    """
    task = task_of_teacher(cell.config.teacher, cell.episodes)
    device = "cpu" if task.metric == "return" else cell.config.device
    student, teacher = student.to(device), load_teacher(cell.config.teacher).to(device)
    own, observations = teacher_reference(cell.config.teacher, cell.episodes, device)
    found = task.measure({TEACHER: student})[0][TEACHER]
    expected, outputs = answers(teacher, observations, TEACHER), answers(student, observations, "student")
    plain = replace(student.config, source={})  # so that it is measured once for all students of a size
    fresh = untrained_score(json.dumps(plain.to_json()), cell.config.teacher, cell.episodes, device)
    scores = {"teacher": own, "student": found, "untrained": fresh}
    if task.metric == "return":
        scores["random"] = random_score(cell.config.teacher, cell.episodes)
    sticky = {name: each.sticky for name, each in scores.items() if each.sticky is not None}
    of_games = {
        "sticky": {name: interval.mean for name, interval in sticky.items()},
        "sticky_intervals": {name: [interval.low, interval.high] for name, interval in sticky.items()},
        "constant_kl": constant_kl(expected, teacher.config.output_scale),
    }
    return {
        **(of_games if sticky else {}),
        "metric": task.metric,
        "teacher_score": own.interval.mean,
        "student_score": found.interval.mean,
        "worst_class": found.worst_class,
        "worst_class_score": found.worst_class_accuracy,
        "controls": {name: each.interval.mean for name, each in scores.items() if name in ("untrained", "random")},
        "agreement": same_action(expected, outputs),
        "kl": kl_nats(expected, teacher.config.output_scale, outputs, student.config.output_scale),
        "student_parameters": student.parameter_count,
    }


@lru_cache
def teacher_reference(folder: str, episodes: int, device: str) -> tuple[Score, Observations]:
    """The teacher's own score and its real observations."""
    scores, observations = task_of_teacher(folder, episodes).measure({TEACHER: load_teacher(folder).to(device)})
    return scores[TEACHER], observations


@lru_cache
def untrained_score(config: str, folder: str, episodes: int, device: str) -> Score:
    """What a student of this configuration scores with fresh weights."""
    model = untrained(ModelConfig.from_json(json.loads(config))).to(device)
    return task_of_teacher(folder, episodes).measure({TEACHER: model})[0][TEACHER]


@lru_cache
def random_score(folder: str, episodes: int) -> Score:
    """What random actions score where the teacher plays."""
    random = chance(load_teacher(folder).config)
    return task_of_teacher(folder, episodes).measure({TEACHER: random})[0][TEACHER]


def limited(training: ClassifierTraining, folder: Path, left: float) -> ClassifierTraining:
    """The training with a budget of so many seconds beyond what the checkpoint in its folder has spent."""
    state = folder / "checkpoint" / "state.pt"
    spent = read_state(state)["seconds"] if state.exists() else 0.0
    return replace(training, budget_seconds=spent + max(0.001, left))


def evaluation_seconds(cell: Cell) -> float:
    """What starting and evaluating a cell takes."""
    if not cell.is_game:
        return EVALUATION
    return GAME_EVALUATION + GAME_EPISODES * (1 + cell.played / 2) * 2 / max(2, os.cpu_count() or 2)
