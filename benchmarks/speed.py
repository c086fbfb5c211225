"""Ratios of speed: both sides in one run, in turn, so that a machine that slows down slows down both."""

from __future__ import annotations

from dataclasses import replace
from statistics import median
from typing import Any

from benchmarks.sweep_cost import measure_cost
from gasim_ray.actors.loop import Loop
from gasim_ray.config import DistillConfig
from gasim_ray.errors import UserError
from gasim_ray.run import start_workers
from gasim_ray.teachers import load_teacher

#: The task that measures what a sweep costs beside a shell loop.
SWEEP_OVER_LOOP = "sweep-over-loop"
#: Times that each side is measured.
REPEATS = 3


def measure_speed(task: str, config: DistillConfig) -> dict[str, Any]:
    """Observations generated a second by the first side over the second; the median of the pairs' ratios.

    SWEEP_OVER_LOOP compares seconds instead. Raises UserError for another task that is not one of SIDES.
    """
    if task == SWEEP_OVER_LOOP:
        return measure_cost(config)
    if task not in SIDES:
        raise UserError(f"task: {task!r} is not one of {', '.join(SIDES)}")
    sides = SIDES[task]
    share = replace(config, budget=replace(config.budget, seconds=(config.budget.seconds or 60.0) / (2 * REPEATS)))
    pairs = [tuple(observations_per_second(side(share)) for side in sides) for _ in range(REPEATS)]
    return {
        "ratio": median(first / second for first, second in pairs),
        "observations_per_second": [median(column) for column in zip(*pairs, strict=True)],
        "repeats": REPEATS,
        "wall_seconds": config.budget.seconds,
        "synthetic_observations": None,
        "student_parameters": None,
    }


def one_actor(config: DistillConfig) -> DistillConfig:
    """One generator actor and the learner actor on Ray."""
    return replace(config, local=False, generator=replace(config.generator, actors=1))


def two_actors(config: DistillConfig) -> DistillConfig:
    """Two generator actors and the learner actor on Ray."""
    return replace(config, local=False, generator=replace(config.generator, actors=2))


def local(config: DistillConfig) -> DistillConfig:
    """The same in this process, one thing after another."""
    return replace(one_actor(config), local=True)


SIDES = {"ray-over-local": (one_actor, local), "two-actors-over-one": (two_actors, one_actor)}


def observations_per_second(config: DistillConfig) -> float:
    """Rate of a whole run: generators, learner and what lies between them."""
    workers = start_workers(load_teacher(config.teacher), config)
    try:
        progress = Loop(workers, config, stop=lambda: False, report=lambda loop: None).run()
    finally:
        workers.close()
    return progress.observations / progress.seconds
