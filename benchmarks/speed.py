"""Ratios of speed: both sides in one run, in turn, so that a machine that slows down slows down both."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from benchmarks.ppo_cost import by_plain_loop, by_rllib
from benchmarks.sweep_cost import by_loop, by_sweep, seconds_of
from gasim_ray.actors.loop import Loop
from gasim_ray.config import DistillConfig
from gasim_ray.core.mixture import Mixture
from gasim_ray.core.settings import DEFAULT_SECONDS
from gasim_ray.errors import UserError
from gasim_ray.run import start_workers
from gasim_ray.teachers import load_teacher

#: Times that each side is measured.
REPEATS = 3
#: Measures one side of a ratio.
Side = Callable[[DistillConfig], float]


def measure_speed(task: str, config: DistillConfig) -> dict[str, Any]:
    """The first side's figure over the second's; the median of the pairs' ratios.

    Raises UserError for a task that is not one of SIDES.
    """
    if task not in SIDES:
        raise UserError(f"task: {task!r} is not one of {', '.join(SIDES)}")
    unit, sides = SIDES[task]
    started = time.perf_counter()
    pairs = [tuple(side(config) for side in sides) for _ in range(REPEATS)]
    return {
        "ratio": median(first / second for first, second in pairs),
        unit: [median(column) for column in zip(*pairs, strict=True)],
        "repeats": REPEATS,
        "wall_seconds": time.perf_counter() - started,
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


def rate_of(variant: Callable[[DistillConfig], DistillConfig]) -> Side:
    """Measures observations a second of a whole run: generators, learner and what lies between them."""

    def measure(config: DistillConfig) -> float:
        seconds = (config.budget.seconds or DEFAULT_SECONDS) / (2 * REPEATS)
        run = variant(replace(config, budget=replace(config.budget, seconds=seconds)))
        workers = start_workers(load_teacher(run.teacher), run)
        try:
            progress = Loop(workers, run, stop=lambda: False, report=lambda loop: None).run()
        finally:
            workers.close()
        return progress.observations / progress.seconds

    return measure


def rate_of_prior(name: str) -> Side:
    """Measures stacks of frames a second that a prior draws on one core (threads: one)."""

    def measure(config: DistillConfig) -> float:
        mixture = Mixture((name,), load_teacher(config.teacher), "cpu", config.scenes)
        seconds = (config.budget.seconds or DEFAULT_SECONDS) / (2 * REPEATS)
        generator, drawn, threads = torch.Generator().manual_seed(config.seed), 0, torch.get_num_threads()
        torch.set_num_threads(1)
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            drawn += len(mixture.sample(1024, generator))
        torch.set_num_threads(threads)
        return drawn / (time.perf_counter() - started)

    return measure


#: Task -> the figure's name in a line, and how its two sides are measured.
SIDES: dict[str, tuple[str, tuple[Side, Side]]] = {
    "ray-over-local": ("observations_per_second", (rate_of(one_actor), rate_of(local))),
    "two-actors-over-one": ("observations_per_second", (rate_of(two_actors), rate_of(one_actor))),
    "rllib-over-plain-ppo": ("environment_steps_per_second", (by_rllib, by_plain_loop)),
    "scenes-over-uniform": ("stacks_per_second", (rate_of_prior("scenes"), rate_of_prior("uniform"))),
    "sweep-over-loop": ("seconds", (seconds_of(by_sweep), seconds_of(by_loop))),
}
