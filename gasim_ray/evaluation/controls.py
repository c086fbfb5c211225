"""What a student has to beat, and what it can at best reach; kept in the run's folder, since each is a distillation.

- `untrained`: the student's architecture with fresh weights.
- `random_observations`: the same student and budget, distilled on random observations within the bounds.
- `real_observations`: the same student and budget, distilled on the teacher's real observations; the upper bound.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import torch

from gasim_ray.core.model import Model, ModelConfig, load_config, load_model, save_model
from gasim_ray.errors import UserError
from gasim_ray.evaluation.atari import is_atari
from gasim_ray.evaluation.episodes import Observations
from gasim_ray.evaluation.tasks import EnvironmentTask, Task
from gasim_ray.teachers.folder import replaced_folder

ControlKind = Literal["untrained", "random_observations", "real_observations"]

CONTROL_KINDS: tuple[ControlKind, ...] = get_args(ControlKind)

#: Distils a run's student afresh, with its budget: on these real observations (N, *spec.shape), or on random ones
#: within the bounds where None is given.
Distil = Callable[[Observations | None], Model]


def control_models(
    run: Path, student: ModelConfig, teacher: Model, task: Task, distil: Distil | None
) -> dict[str, Model]:
    """The run's controls by kind; those made before for this student and task are loaded instead of being made again.

    Without `distil`, the distilled ones are left out unless they have been made before.
    """
    digest = hashlib.sha256((run / "student" / "model.safetensors").read_bytes()).hexdigest()
    made: dict[str, Model] = {}
    for kind in CONTROL_KINDS:
        folder = run / "controls" / kind
        source = {"control": kind, "task": task.name, "student_sha256": digest}
        if kind == "real_observations" and is_atari(task.name):
            source["states"] = "sticky"  # those of older controls were from games without
        if kind == "real_observations" and isinstance(task, EnvironmentTask):
            source["episodes"] = f"{task.episodes} of seed {task.seed}"  # of fewer it would learn from less
        if _source(folder) == source:
            made[kind] = load_model(folder)
        elif kind == "untrained":
            made[kind] = _keep(untrained(student), source, folder)
        elif distil is not None:
            real = task.training_observations(teacher) if kind == "real_observations" else None
            made[kind] = _keep(distil(real), source, folder)
    return made


def untrained(student: ModelConfig) -> Model:
    """The student's architecture with fresh weights, the same ones each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(student).eval()


def _source(folder: Path) -> dict[str, str] | None:
    try:
        return load_config(folder).source
    except UserError:  # there is none, or a kill left a part of one
        return None


def _keep(model: Model, source: dict[str, str], folder: Path) -> Model:
    """Save a control; its folder appears only when it is whole."""
    model.config = replace(model.config, source=source)
    with replaced_folder(folder) as place:
        save_model(model, place)
    return model.cpu().eval()
