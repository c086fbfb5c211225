"""How many orders a second one loop drives, beside plain Ray with the same actors and messages."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import ray

from benchmarks.null_actors import COUNT, NullGenerator, NullLearner
from gasim_ray.actors.loop import UPDATE_BATCHES, UPDATES_IN_FLIGHT, Loop
from gasim_ray.actors.ray_workers import RayWorkers, connect
from gasim_ray.config import DistillConfig

#: Seconds that each side is measured, after as many of warming up.
SECONDS = 5.0
#: What each generator reserves, so that hundreds fit on two cores.
SHARE = 0.001


class NullWorkers(RayWorkers):
    """Actors that do nothing."""

    def __init__(self, config: DistillConfig, generators: int) -> None:
        connect()
        self.config, self.gauges, self.placed = config, {}, False
        self.learner = ray.remote(NullLearner).options(num_cpus=SHARE).remote()
        kind = ray.remote(NullGenerator).options(num_cpus=SHARE)
        self.generators = [kind.remote(actor) for actor in range(generators)]
        self.ready_answers = [generator.__ray_ready__.remote() for generator in self.generators]
        ray.get([self.learner.__ray_ready__.remote(), *self.ready_answers])

    def memory(self) -> float:
        """Mean of what a generator's process has had at most, in bytes."""
        return float(np.mean(ray.get([actor.memory.remote() for actor in self.generators])))


def by_loop(workers: NullWorkers, config: DistillConfig) -> float:
    """Orders a second that the project's loop drives."""
    ended = time.monotonic() + 2 * SECONDS
    config = replace(config, generator=replace(config.generator, actors=len(workers.generators)))
    warm: list[int] = []

    def count(loop: Loop) -> None:
        if not warm and time.monotonic() > ended - SECONDS:
            warm.append(loop.progress.observations)

    loop = Loop(workers, config, lambda: time.monotonic() > ended, count)
    return (loop.run().observations - warm[0]) / COUNT / SECONDS


def by_plain_ray(workers: NullWorkers, config: DistillConfig) -> float:
    """Orders a second where nothing is counted, measured or replaced."""
    in_flight = config.generator.in_flight
    weights = workers.learner.weights.remote()
    asked: dict[Any, tuple[int, Any]] = {}
    updates: dict[Any, Any] = {}
    arrived: list[tuple[int, Any]] = []

    def ask(actor: int) -> None:
        summary, payload = workers.generators[actor].synthesize.options(num_returns=2).remote(0, weights)
        asked[summary] = (actor, payload)

    for actor in range(len(workers.generators)):
        for _ in range(in_flight):
            ask(actor)
    done, begun, ended = 0, time.monotonic() + SECONDS, time.monotonic() + 2 * SECONDS
    while (now := time.monotonic()) < ended:
        waiting = [*asked, *updates]
        ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0, fetch_local=False)
        if not ready:
            ready, _ = ray.wait(waiting, num_returns=1, fetch_local=False)
        for summary in ready:
            ray.get(summary)
            if summary in updates:
                weights = updates.pop(summary)
            else:
                arrived.append(asked.pop(summary))
        while arrived and len(updates) < UPDATES_IN_FLIGHT:
            taken, arrived = arrived[:UPDATE_BATCHES], arrived[UPDATE_BATCHES:]
            batches = [batch for _, batch in taken]
            summary, payload = workers.learner.update.options(num_returns=2).remote(0.0, *batches)
            updates[summary] = payload
            for actor, _ in taken:
                ask(actor)
            done += len(taken) if now >= begun else 0
    ray.get(list(updates))
    return done / SECONDS
