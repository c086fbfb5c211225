"""What a run is measured on, and how its controls are distilled: on observations that no generator made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from gasim_ray.actors.loop import Loop
from gasim_ray.actors.workers import LocalWorkers
from gasim_ray.config import DistillConfig
from gasim_ray.core.device import check_device_is_there
from gasim_ray.core.model import Model, ModelConfig, load_config
from gasim_ray.core.prior import Prior, Uniform
from gasim_ray.core.settings import ObjectiveSettings
from gasim_ray.errors import UserError
from gasim_ray.evaluation.controls import Distil
from gasim_ray.evaluation.datasets import load_dataset
from gasim_ray.evaluation.episodes import Observations
from gasim_ray.evaluation.tasks import TEACHER, DatasetTask, EnvironmentTask, Task
from gasim_ray.run_folder import saved_config
from gasim_ray.storage import is_address
from gasim_ray.teachers import load_teacher


def task_for(
    folder: Path,
    env: str | None,
    dataset: str | None,
    data: Path | None,
    episodes: int,
    seed: int,
    groups: str | None = None,
) -> Task:
    """The environment or data set that is named, or else the one that the teacher in the folder was trained on.

    `groups` merges the data set's classes; None merges those that the teacher says. Raises UserError if neither is
    known, if it does not fit the teacher, or for groups without a data set.
    """
    teacher = load_config(folder)
    if not env and not dataset:
        env, dataset = source_of(teacher)
    if not env and not dataset:
        raise UserError(f"env: the teacher in {folder} does not say what it was trained on; give --env or --dataset")
    if env and (dataset or data):
        raise UserError(f"{'dataset' if dataset else 'data'}: {dataset or data}, but {env} is an environment; give one")
    if env and groups is not None:
        raise UserError(f"groups: {groups!r}, but {env} is an environment; they merge the classes of a --dataset")
    merged = teacher.source.get("groups", "") if groups is None else groups
    task: Task = EnvironmentTask(env, episodes, seed) if env else DatasetTask(load_dataset(str(dataset), data, merged))
    task.check(teacher, TEACHER)
    return task


def names_of(places: Sequence[str], runs: Sequence[Path]) -> list[tuple[str, Path]]:
    """Runs under their folders' names, or as they were given where a name repeats or is the teacher's."""
    names = [
        (Path(place.rstrip("/")) if is_address(place) else run.resolve()).name
        for place, run in zip(places, runs, strict=True)
    ]
    told = [
        place if names.count(name) > 1 or name == TEACHER else name for place, name in zip(places, names, strict=True)
    ]
    return list(zip(told, runs, strict=True))


@lru_cache
def task_of_teacher(folder: str, episodes: int, seed: int = 0, local: bool = False) -> Task:
    """The environment or the data set that a teacher was trained on; kept, as reading a data set takes a while.

    seed: of the episodes; local: play in this process. Raises UserError if the teacher does not say which.
    """
    teacher = load_config(Path(folder))
    env, dataset = source_of(teacher)
    if env:
        return EnvironmentTask(env, episodes, seed, local)
    if not dataset:
        raise UserError(
            f"evaluate.enabled: the teacher in {folder} does not say what it was trained on, as those do that were "
            "trained here; leave it out"
        )
    return DatasetTask(load_dataset(dataset, None, teacher.source.get("groups", "")))


def source_of(teacher: ModelConfig) -> tuple[str | None, str | None]:
    """The environment and the data set that a teacher names."""
    return teacher.source.get("environment"), teacher.source.get("dataset")


def control_distiller(run: Path) -> Distil:
    """Distils a run's student afresh on other observations; see `distil_control`."""
    config = saved_config(run)
    return lambda real: distil_control(config, load_teacher(config.teacher), real)


class Recorded(Prior):
    """Real observations, drawn with replacement: only for the control that shows what data would give."""

    def __init__(self, teacher: Model, observations: Observations, device: str) -> None:
        super().__init__(teacher, device)
        self.observations = torch.from_numpy(observations).to(self.device)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """See Prior."""
        chosen = torch.randint(len(self.observations), (count,), generator=generator, device=self.device)
        return self.observations[chosen].float()


def distil_control(
    config: DistillConfig, teacher: Model, real: Observations | None, drive: Callable[[Loop], object] = Loop.run
) -> Model:
    """The run's student, distilled in this process on real observations (N, *shape), or on uniform ones for None.

    The same student, seed and budget; observations are drawn afresh for each batch and never improved. `drive` runs the
    loop.
    """
    generator = replace(
        config.generator,
        kind="direct",
        prior=("uniform",),
        candidates=0,
        alignment=0.0,
        clusters=0,
        disputed=0,
        steps=0,
        views=1,
        actors=1,
        per_actor=1,
        gpus=0.0,
    )
    try:
        check_device_is_there(config.device)
    except UserError as error:
        raise UserError(
            f"device: the run learned on {config.device}, which is not here, and elsewhere its budget would be another "
            "one; evaluate it there, or leave its controls out with --no-controls"
        ) from error
    plain = replace(
        config,
        local=True,
        elastic=False,
        generator=generator,
        actor_settings=(),
        objective=ObjectiveSettings(),
        pool=replace(config.pool, replay=1.0),
    )
    teacher.computing(config.bf16, config.channels_last)
    prior = Uniform(teacher, config.device) if real is None else Recorded(teacher, real, config.device)
    workers = LocalWorkers(teacher, plain, prior)
    try:
        drive(Loop(workers, plain, stop=lambda: False, report=lambda loop: None))
    finally:
        workers.close()
    return workers.learner.student.computing(bf16=False, channels_last=False).eval()
