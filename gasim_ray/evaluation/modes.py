"""Hidden modes: where classes were merged, which of the former classes a pool of invented images holds.

A judge, a classifier of the former classes that was trained on real data and had no part in the distillation, says what
each image looks most like.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gasim_ray.core.model import Model, load_model
from gasim_ray.errors import UserError
from gasim_ray.evaluation.agreement import answers
from gasim_ray.evaluation.datasets import SOURCES, Modes
from gasim_ray.evaluation.episodes import Observations
from gasim_ray.evaluation.tasks import DatasetTask, Task
from gasim_ray.run_folder import RunFolder
from gasim_ray.tasks import judge_folder

#: At most this many images of a pool are judged.
JUDGED = 20_000

#: A mode counts as held if its share is at least this part of an even one.
HELD = 0.2


@dataclass(frozen=True)
class ModeShares:
    """How a pool is spread over hidden modes."""

    #: Hidden mode -> share of the pool that looks most like it; they sum to 1.
    shares: dict[str, float]

    @property
    def recall(self) -> float:
        """Share of the modes that hold at least a fifth of an even share."""
        even = 1 / len(self.shares)
        return float(np.mean([share >= HELD * even for share in self.shares.values()]))


def modes_of_run(run: Path, task: Task) -> ModeShares | None:
    """How the pool of a run is spread over its task's hidden modes; None where no classes were merged.

    The judge is a teacher of the same data set unmerged. Raises UserError if there is none, or no checkpoint.
    """
    if not isinstance(task, DatasetTask) or task.dataset.modes is None:
        return None
    folder = judge_folder(task.dataset.name)
    if not (folder / "config.json").exists():
        named = task.dataset.name in SOURCES
        how = f"--task {folder.name}" if named else f"--dataset {task.dataset.name} --out {folder}"
        raise UserError(f"judge: none in {folder}; make it with: gasim teacher train {how}")
    pool = RunFolder(run).pool()
    # At random: orders lie one after another in it, each sorted by what the teacher answers.
    judged = np.random.default_rng(0).choice(len(pool), min(JUDGED, len(pool)), replace=False)
    return mode_shares(pool[judged], load_model(folder).frozen(), task.dataset.modes)


def mode_shares(observations: Observations, judge: Model, modes: Modes) -> ModeShares:
    """The spread of observations (N, *spec.shape) over the modes, as the judge sees them.

    Raises UserError if the judge tells another number of classes apart, or there are no observations.
    """
    if judge.config.actions != len(modes.names):
        raise UserError(
            f"judge: tells {judge.config.actions} classes apart where there were {len(modes.names)}; "
            "train one on the data set unmerged"
        )
    if len(observations) == 0:
        raise UserError("observations: none to spread over modes")
    seen = np.bincount(answers(judge, observations, "judge").argmax(1).numpy(), minlength=len(modes.names))
    return ModeShares({name: float(count / len(observations)) for name, count in zip(modes.names, seen, strict=True)})
