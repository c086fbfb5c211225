"""Records benchmark cells: python -m benchmarks.run SUITE [--only task=mnist,seed=0] [--budget-minutes 20].

Cells that have a result at their current definition are skipped; a cell that was interrupted goes on from its
checkpoint; what is left when the budget ends is said to be pending.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console

from benchmarks.cells import (
    LABELS,
    REAL,
    Cell,
    append_result,
    current_results,
    load_suite,
    matches,
    suite_names,
)
from benchmarks.chaos import measure_fault
from benchmarks.speed import measure_speed
from gasim_ray.actors.ray_workers import connect
from gasim_ray.core.model import Model, ModelConfig, load_model
from gasim_ray.errors import UserError, exit_code
from gasim_ray.evaluation.agreement import answers, kl_nats, same_action
from gasim_ray.evaluation.compare import chance
from gasim_ray.evaluation.controls import untrained
from gasim_ray.evaluation.episodes import Observations
from gasim_ray.evaluation.modes import modes_of_run
from gasim_ray.evaluation.runs import distil_control, task_of_teacher
from gasim_ray.evaluation.tasks import TEACHER, Score
from gasim_ray.report.display import Display
from gasim_ray.run import distill, knowledge_level
from gasim_ray.run_folder import RunFolder, versions
from gasim_ray.tasks import TASKS, training_of
from gasim_ray.teachers import load_teacher
from gasim_ray.training.classifier import ClassifierTraining, train_classifier
from gasim_ray.training.command import show

#: Seconds that starting and evaluating a game's cell may take: thirty plain episodes, and thirty sticky ones.
GAME_EVALUATION = 180.0
#: Seconds after a policy's training for its score over a hundred episodes.
POLICY_EVALUATION = 90.0


def main() -> int:
    """Record what is pending; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("suite", choices=suite_names())
    parser.add_argument("--only", default="", help="task=...,method=...,seed=... that a cell must have; a|b for either")
    parser.add_argument("--size", choices=("cpu", "gpu"), default="cpu", help="cells that this machine can run")
    parser.add_argument("--budget-minutes", type=float, default=float("inf"), help="start no cell that would end later")
    given = parser.parse_args()
    asked_for = (given.suite, given.only, given.size, given.budget_minutes)
    return exit_code("benchmarks", lambda: record_suite(*asked_for), "; the same command goes on")


def record_suite(suite: str, only: str, size: str, budget_minutes: float) -> None:
    """Run the pending cells that are asked for, within the budget, and say what stays pending."""
    done = current_results(suite)
    asked = [c for c in load_suite(suite) if c.name not in done and c.size == size and matches(c, only)]
    # Most policies' teachers are trained by a command of their own, in many sittings.
    waiting = [c for c in asked if not c.has_teacher and c.task not in TASKS and not c.training]
    pending = [c for c in asked if c not in waiting]
    deadline = time.monotonic() + 60 * budget_minutes
    connect()
    print(f"{suite}: {len(done)} cells recorded, {len(pending)} to run")
    while pending:
        cell = pending[0]
        if not cell.has_teacher and time.monotonic() < deadline:
            make_teacher(cell, deadline)
        if not cell.has_teacher or time.monotonic() + expected_seconds(cell) > deadline:
            break
        started = time.monotonic()
        line = record(cell)
        append_result(suite, line)
        score = line.get("ratio", line["student_score"])
        print(f"{cell.name}: {score:.4g} in {time.monotonic() - started:.0f} s; {len(pending) - 1} left", flush=True)
        pending.pop(0)
    if pending:
        print(f"pending: {', '.join(cell.name for cell in pending)}")
    for folder in dict.fromkeys(cell.teacher for cell in waiting):
        print(f"pending until there is a teacher in {folder}: `gasim teacher train --env ... --out {folder}`")


def make_teacher(cell: Cell, deadline: float) -> None:
    """Train a classifier of a named task, or a policy with the cell's training, as far as the budget allows.

    The next sitting goes on.
    """
    unfinished = cell.unfinished_teacher
    left = max(0.0, deadline - time.monotonic())
    if train_game(cell, unfinished, left) if cell.training else train_named(cell, unfinished, left):
        shutil.rmtree(unfinished / "checkpoint", ignore_errors=True)
        unfinished.rename(cell.teacher)


def train_named(cell: Cell, unfinished: Path, left: float) -> bool:
    """Go on with a named task's classifier for so many seconds; whether it is done."""
    gpu: dict[str, Any] = {"device": "cuda", "bf16": True, "channels_last": True} if cell.size == "gpu" else {}
    training = ClassifierTraining(**training_of(cell.task), **gpu)
    state = unfinished / "checkpoint" / "state.pt"
    spent = torch.load(state, weights_only=True, map_location="cpu")["seconds"] if state.exists() else 0.0
    limited = replace(training, budget_seconds=spent + left)
    return bool(train_classifier(limited, unfinished, show, resume=True).config.source["epochs"] == training.epochs)


def train_game(cell: Cell, unfinished: Path, left: float) -> bool:
    """Go on with a policy for so many seconds, its evaluation included; whether it is done."""
    from gasim_ray.training.rllib import PolicyTraining, train_policy  # RLlib takes seconds to import

    training = PolicyTraining(**cell.training)
    state = unfinished / "checkpoint" / "state.json"
    spent = json.loads(state.read_text())["state"]["seconds"] if state.exists() else 0.0
    limited = replace(training, budget_seconds=spent + max(0.0, left - POLICY_EVALUATION))
    steps = train_policy(limited, unfinished, show, resume=True).config.source["environment_steps"]
    return bool(steps >= training.max_steps)


def expected_seconds(cell: Cell) -> float:
    """What a cell takes: its distillation, the start of its actors and its evaluation."""
    seconds = cell.config.budget.seconds or 60.0
    if cell.kind == "chaos":
        return 2 * seconds + 60.0
    return seconds + (GAME_EVALUATION if cell.is_game else 25.0)


def record(cell: Cell) -> dict[str, Any]:
    """Run one cell and return its line."""
    teacher = load_teacher(cell.config.teacher)
    if cell.kind == "speed":
        result = measure_speed(cell.task, cell.config)
    elif cell.kind == "chaos":
        student, told = measure_fault(cell)
        result = {**score(cell, student), **told}
    elif cell.control == REAL:
        result = measure_real(cell, teacher)
    elif cell.control == LABELS:
        result = measure_labels(cell, teacher)
    else:
        result = measure_method(cell)
    return {
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
        "definition": cell.definition,
        "command": f"python -m benchmarks.run {cell.suite} "
        f"--only task={cell.task},method={cell.method},seed={cell.seed}",
    }


def measure_method(cell: Cell) -> dict[str, Any]:
    """Distil with a method, without environment or data, then score the student."""
    folder = RunFolder(cell.folder)
    config = cell.config.at(cell.folder)
    with Display(Console(stderr=True, quiet=not sys.stderr.isatty())) as display:
        try:
            distill(config, display, resume=folder.checkpoint.exists(), overwrite=True)
        except UserError:
            distill(config, display, overwrite=True)
    summary = folder.read_summary()
    student = load_model(folder.student)
    counts = {name: summary[name] for name in ("wall_seconds", "synthetic_observations")}
    modes = modes_of_run(cell.folder, task_of_teacher(cell.config.teacher, cell.episodes))
    held = {} if modes is None else {"mode_shares": modes.shares, "mode_recall": modes.recall}
    shutil.rmtree(folder.checkpoint.parent)
    return {**score(cell, student), **counts, **held, **curve(cell, folder)}


def curve(cell: Cell, folder: RunFolder) -> dict[str, Any]:
    """What the student had learnt when; nothing where no snapshots were kept.

    A classifier's `curve` is [seconds, score] of each snapshot. A policy, of which a score takes many episodes, has a
    `growth` of [seconds, synthetic observations, agreement, KL in nats] on the teacher's real states.
    """
    task, snapshots = task_of_teacher(cell.config.teacher, cell.episodes), folder.read_snapshots()
    if snapshots and task.metric == "return":
        return {"growth": growth(cell, folder, snapshots)}
    points = [
        [seconds, task.measure({TEACHER: s.to(cell.config.device)})[0][TEACHER].interval.mean]
        for seconds, s in snapshots.items()
    ]
    return {"curve": points} if points else {}


def growth(cell: Cell, folder: RunFolder, snapshots: dict[float, Model]) -> list[list[float]]:
    """See `curve`."""
    rows = pd.read_csv(folder.path / "metrics.csv")
    teacher, (_, states) = load_teacher(cell.config.teacher), teacher_reference(cell.config.teacher, cell.episodes)
    expected, scale, found = answers(teacher, states, TEACHER), teacher.config.output_scale, []
    for seconds, student in snapshots.items():
        made = float(np.interp(seconds, [0, *rows["seconds"]], [0, *rows["observations"]]))
        outputs = answers(student, states, "student")
        kl = kl_nats(expected, scale, outputs, student.config.output_scale)
        found.append([seconds, made, same_action(expected, outputs), kl])
    return found


def measure_real(cell: Cell, teacher: Model) -> dict[str, Any]:
    """Distil the same student on the teacher's real observations, then score it."""
    task = task_of_teacher(cell.config.teacher, cell.episodes)
    observations = task.training_observations(teacher)
    started = time.perf_counter()
    student = distil_control(cell.config, teacher, observations)
    wall = time.perf_counter() - started
    used = {"wall_seconds": wall, "synthetic_observations": 0, "environment_steps": len(observations)}
    return {**score(cell, student), **used}


def measure_labels(cell: Cell, teacher: Model) -> dict[str, Any]:
    """Train the same student on the data's labels as its teacher was, as many epochs, then score it.

    Raises UserError for a policy's teacher.
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
    started, folder = time.perf_counter(), RunFolder(cell.folder).student
    student = train_classifier(training, folder, show, resume=(folder / "checkpoint").exists(), overwrite=True)
    wall = time.perf_counter() - started
    seen = len(task_of_teacher(cell.config.teacher, cell.episodes).training_observations(teacher))
    return {**score(cell, student), "wall_seconds": wall, "synthetic_observations": 0, "environment_steps": seen}


def score(cell: Cell, student: Model) -> dict[str, Any]:
    """Score a student beside its teacher and the untrained control."""
    teacher = load_teacher(cell.config.teacher)
    own, observations = teacher_reference(cell.config.teacher, cell.episodes)
    task = task_of_teacher(cell.config.teacher, cell.episodes)
    found = task.measure({TEACHER: student.to(cell.config.device)})[0][TEACHER]
    expected, outputs = answers(teacher, observations, TEACHER), answers(student, observations, "student")
    fresh = untrained_score(json.dumps(student.config.to_json()), cell.config.teacher, cell.episodes)
    scores = {"teacher": own, "student": found, "untrained": fresh}
    if task.metric == "return":
        scores["random"] = random_score(cell.config.teacher, cell.episodes)
    sticky = {name: each.sticky.mean for name, each in scores.items() if each.sticky is not None}
    return {
        **({"sticky": sticky} if sticky else {}),
        "metric": task.metric,
        "teacher_score": own.interval.mean,
        "student_score": found.interval.mean,
        "worst_class_score": found.worst_class_accuracy,
        "controls": {name: each.interval.mean for name, each in scores.items() if name in ("untrained", "random")},
        "agreement": same_action(expected, outputs),
        "kl": kl_nats(expected, teacher.config.output_scale, outputs, student.config.output_scale),
        "student_parameters": student.parameter_count,
    }


@lru_cache
def teacher_reference(folder: str, episodes: int) -> tuple[Score, Observations]:
    """The teacher's own score and its real observations."""
    scores, observations = task_of_teacher(folder, episodes).measure({TEACHER: load_teacher(folder)})
    return scores[TEACHER], observations


@lru_cache
def untrained_score(config: str, folder: str, episodes: int) -> Score:
    """What a student of this configuration scores with fresh weights."""
    model = untrained(ModelConfig.from_json(json.loads(config)))
    return task_of_teacher(folder, episodes).measure({TEACHER: model})[0][TEACHER]


@lru_cache
def random_score(folder: str, episodes: int) -> Score:
    """What random actions score where the teacher plays."""
    random = chance(load_teacher(folder).config)
    return task_of_teacher(folder, episodes).measure({TEACHER: random})[0][TEACHER]


def provenance() -> dict[str, Any]:
    """What every line says of where, with what and when it was made."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"hardware": hardware(), "versions": versions(), "commit": commit(), "date": today}


def hardware() -> str:
    """Processor, cores and GPU in words."""
    model = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [row.partition(":")[2].strip() for row in info.read_text().splitlines() if row.startswith("model name")]
        model = names[0] if names else model
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} cores of {model}{gpu}"


def commit() -> str:
    """The commit that is checked out; marked where code, suites or teachers differ from it."""
    what = ["--", "gasim_ray", "benchmarks/*.py", "benchmarks/suites", "benchmarks/teachers", "tune_configs"]
    found = git("rev-parse", "--short=10", "HEAD") or "unknown"
    return f"{found}-dirty" if git("status", "--porcelain", *what) else found


def git(*arguments: str) -> str:
    """What a git command prints; nothing if it fails."""
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
