"""Records benchmark cells: python -m benchmarks.run SUITE [--only task=mnist,seed=0] [--budget-minutes 20].

Cells that have a result at their current definition are skipped; a cell that was interrupted, or that the budget did
not suffice for, goes on from its checkpoint; what is left when the budget ends is said to be pending.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.cells import Cell, append_result, current_results, load_suite, matches, suite_names
from benchmarks.measure import Sitting, Unfinished, evaluation_seconds, forget_sittings, limited, record
from gasim_ray.actors.ray_workers import connect
from gasim_ray.core.settings import DEFAULT_SECONDS
from gasim_ray.errors import UserError, exit_code
from gasim_ray.tasks import TASKS, training_of
from gasim_ray.training.classifier import ClassifierTraining, train_classifier
from gasim_ray.training.command import show

#: Seconds after a policy's training for its score over a hundred episodes.
POLICY_EVALUATION = 90.0
#: Fewest seconds that are worth a start of a cell that takes more than one sitting.
PART = 120.0


def main() -> int:
    """Record what is pending; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("suite", choices=suite_names())
    parser.add_argument("--only", default="", help="task=...,method=...,seed=... that a cell must have; a|b for either")
    parser.add_argument("--size", choices=("cpu", "gpu"), default="cpu", help="cells that this machine can run")
    parser.add_argument(
        "--budget-minutes", type=float, default=float("inf"), help="stop then; the next sitting goes on"
    )
    parser.add_argument(
        "--again", action="store_true", help="record what --only names anew, though it is: the newest line counts"
    )
    given = parser.parse_args()
    if given.again and not given.only:
        parser.error("--again goes with --only")
    asked_for = (given.suite, given.only, given.size, given.budget_minutes, given.again)
    return exit_code("benchmarks", lambda: record_suite(*asked_for), "; the same command goes on")


def record_suite(suite: str, only: str, size: str, budget_minutes: float, again: bool = False) -> None:
    """Run the pending cells that are asked for, `again` the recorded ones too, and say what stays pending."""
    done = {} if again else current_results(suite)
    asked = [c for c in load_suite(suite) if c.name not in done and c.size == size and matches(c, only)]
    # Most policies' teachers are trained by a command of their own, in many sittings.
    waiting = [c for c in asked if not c.has_teacher and c.task not in TASKS and not c.training]
    pending = [c for c in asked if c not in waiting]
    sitting = Sitting(60 * budget_minutes)
    connect()
    failed: list[str] = []
    print(f"{suite}: {len(done)} cells recorded, {len(pending)} to run")
    while pending:
        cell = pending[0]
        started = time.monotonic()
        try:
            if not cell.has_teacher and sitting.left > POLICY_EVALUATION * bool(cell.training) + PART:
                make_teacher(cell, sitting.left)
            if not cell.has_teacher or not has_time_for(cell, sitting):
                break
            line = record(cell, sitting)
            append_result(suite, line)
            forget_sittings(cell)
        except Unfinished:
            break
        except Exception as error:  # whatever it is, the other cells are not to wait for its mend
            if isinstance(error, UserError):
                print(f"{cell.name}: {error}", file=sys.stderr)
            else:
                traceback.print_exc()
            failed.append(pending.pop(0).name)
            continue
        score = line.get("ratio", line["student_score"])
        print(f"{cell.name}: {score:.4g} in {time.monotonic() - started:.0f} s; {len(pending) - 1} left", flush=True)
        pending.pop(0)
    if pending:
        print(f"pending: {', '.join(cell.name for cell in pending)}")
    for folder in dict.fromkeys(cell.teacher for cell in waiting):
        print(f"pending until there is a teacher in {folder}: `gasim teacher train --env ... --out {folder}`")
    if failed:
        raise UserError(f"{suite}: failed, see above: {', '.join(failed)}")


def make_teacher(cell: Cell, left: float) -> None:
    """Train a classifier of a named task, or a policy with the cell's training, as far as so many seconds allow.

    The next sitting goes on.
    """
    unfinished = cell.unfinished_teacher
    if train_game(cell, unfinished, left) if cell.training else train_named(cell, unfinished, left):
        shutil.rmtree(unfinished / "checkpoint", ignore_errors=True)
        unfinished.rename(cell.teacher)


def train_named(cell: Cell, unfinished: Path, left: float) -> bool:
    """Go on with a named task's classifier for so many seconds; whether it is done."""
    gpu: dict[str, Any] = {"device": "cuda", "bf16": True, "channels_last": True} if cell.size == "gpu" else {}
    training = ClassifierTraining(**training_of(cell.task), **gpu)
    trained = train_classifier(limited(training, unfinished, left), unfinished, show, resume=True)
    return bool(trained.config.source["epochs"] == training.epochs)


def train_game(cell: Cell, unfinished: Path, left: float) -> bool:
    """Go on with a policy for so many seconds, its evaluation included; whether it is done."""
    from gasim_ray.training.rllib import PolicyTraining, train_policy  # RLlib takes seconds to import

    training = PolicyTraining(**cell.training)
    state = unfinished / "checkpoint" / "state.json"
    spent = json.loads(state.read_text())["state"]["seconds"] if state.exists() else 0.0
    sitting = replace(training, budget_seconds=spent + max(0.0, left - POLICY_EVALUATION))
    steps = train_policy(sitting, unfinished, show, resume=True).config.source["environment_steps"]
    return bool(steps >= training.max_steps)


def has_time_for(cell: Cell, sitting: Sitting) -> bool:
    """Whether there is time for a cell, or for a part of one that takes more than any sitting of this length.

    One that a fresh sitting suffices for waits for that: generators' networks begin anew with each.
    """
    seconds = cell.config.budget.seconds or DEFAULT_SECONDS
    whole = 2 * seconds + 60.0 if cell.kind == "chaos" else seconds + evaluation_seconds(cell)
    long = cell.kind == "distill" and whole > sitting.seconds
    return sitting.left >= (max(PART, evaluation_seconds(cell)) if long else whole)


if __name__ == "__main__":
    sys.exit(main())
