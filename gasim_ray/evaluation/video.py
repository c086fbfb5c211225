"""A video of a teacher and its students, each playing the same episode, side by side as they see it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from gasim_ray.core.model import Model, load_config, load_model, same_model
from gasim_ray.errors import UserError
from gasim_ray.evaluation.episodes import watch_episode
from gasim_ray.evaluation.tasks import TEACHER, EnvironmentTask, Task
from gasim_ray.report.samples import frames_of
from gasim_ray.run_folder import RunFolder, saved_config

#: Steps that are shown at most: a minute of a game that is played at 15 actions a second.
MOST_STEPS = 900
#: Milliseconds of a picture: four frames at 60 a second.
PICTURE_MS = 67
#: Pixels of an observation's pixel, and height of the line above it.
SCALE, HEADER = 3, 16
FORMATS = (".gif", ".webp")


def check_video(path: Path, runs: Sequence[Path], tasks: Sequence[Task]) -> None:
    """Raise UserError unless the file's format is known and the runs' teachers play one environment that they see."""
    if path.suffix not in FORMATS:
        raise UserError(f"video: {path} is of no known format; give a file that ends in {' or '.join(FORMATS)}")
    if len({task.name for task in tasks}) > 1:
        raise UserError(f"video: the runs play {', '.join(sorted({task.name for task in tasks}))}; give runs of one")
    if not isinstance(tasks[0], EnvironmentTask):
        raise UserError(f"video: {tasks[0].name} is a data set; only what plays an environment can be shown")
    first, *others = (Path(saved_config(run).teacher) for run in runs)
    for other in others:
        if not same_model(first, other):
            raise UserError(f"video: the runs have the teachers {first}, {other}; give runs of one")
    for run in runs:
        if not load_config(Path(saved_config(run).teacher)).observation.is_image:
            raise UserError(f"video: the teacher of {run} reads vectors; only what sees pictures can be shown")


def save_video(path: Path, runs: Mapping[str, Path], task: Task) -> None:
    """Write the first MOST_STEPS steps of episode 0 of the task's seed, runs under their names; see `check_video`."""
    assert isinstance(task, EnvironmentTask)
    models = {TEACHER: load_model(saved_config(next(iter(runs.values()))).teacher)}
    models |= {name: load_model(RunFolder(run).student) for name, run in runs.items()}
    film = pictures(models, task)
    path.parent.mkdir(parents=True, exist_ok=True)
    next(film).save(path, save_all=True, append_images=film, duration=PICTURE_MS, loop=0)


def pictures(models: Mapping[str, Model], task: EnvironmentTask) -> Iterator[Image.Image]:
    """All models beside each other, a picture a step; one whose episode has ended stays as it was."""
    playing = [strips(name, model, task) for name, model in models.items()]
    shown: list[Image.Image] = []
    for newest in islice(zip_longest(*playing), MOST_STEPS):
        shown = [before if strip is None else strip for strip, before in zip_longest(newest, shown)]
        sheet = Image.new("RGB", (sum(strip.width for strip in shown), max(strip.height for strip in shown)))
        left = 0
        for strip in shown:
            sheet.paste(strip, (left, 0))
            left += strip.width
        yield sheet


def strips(name: str, model: Model, task: EnvironmentTask) -> Iterator[Image.Image]:
    """What one model sees, under its name and its return so far."""
    for observation, gained in watch_episode(model, task.name, task.seed):
        frame = (255 * frames_of(observation, model.config.observation)[-1]).round().astype(np.uint8)
        seen = Image.fromarray(np.repeat(frame, 3 // frame.shape[2], axis=2))
        strip = Image.new("RGB", (SCALE * seen.width, SCALE * seen.height + HEADER))
        strip.paste(seen.resize((SCALE * seen.width, SCALE * seen.height), Image.Resampling.NEAREST), (0, HEADER))
        ImageDraw.Draw(strip).text((4, 2), f"{name}: {gained:g}", fill="white")
        yield strip
