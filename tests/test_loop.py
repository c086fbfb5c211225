"""The loop between generators and learner, in one process and on a real Ray cluster of four CPUs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray
import tiny

from gasim_ray.actors.loop import Loop, Progress, mixed
from gasim_ray.actors.ray_workers import RayWorkers, check_resources
from gasim_ray.actors.workers import LocalWorkers, Workers
from gasim_ray.config import DistillConfig, build_config
from gasim_ray.errors import UserError
from gasim_ray.teachers import load_teacher


@dataclass
class Outcome:
    """What a run left behind."""

    progress: Progress
    #: The student's weights.
    student: dict[str, Any]
    #: The progress after each step.
    history: list[Progress] = field(default_factory=list)


def drive(
    config: DistillConfig, between: Callable[[Loop, Workers], None] = lambda loop, workers: None
) -> Outcome:
    """Run a configuration to its end, calling `between` after each step."""
    teacher = load_teacher(config.teacher)
    workers: Workers = LocalWorkers(teacher, config) if config.local else RayWorkers(teacher, config)
    history: list[Progress] = []

    def report(loop: Loop) -> None:
        history.append(Progress(**vars(loop.progress)))
        between(loop, workers)

    try:
        progress = Loop(workers, config, lambda: False, report).run()
        student = {name: t.clone() for name, t in workers.learner_state()["student"].items()}
    finally:
        workers.close()
    return Outcome(progress, student, history)


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return all(first[name].equal(second[name]) for name in first)


@pytest.fixture
def config(vector_teacher: Path) -> Callable[..., DistillConfig]:
    """A tiny configuration with changes."""
    return lambda **changed: build_config(tiny.tree(vector_teacher, **changed))


def test_student_steps_end_a_local_run(config: Callable[..., DistillConfig]) -> None:
    found = drive(config(local=True, budget={"student_steps": 21}))
    # Rounds of two batches with two steps each: the first round that reaches the limit is the last.
    assert found.progress.student_steps == 24
    assert found.progress.observations == 6 * 64
    assert (found.progress.spent, found.progress.staleness, found.progress.actors_alive) == (1.0, 0.0, 2)
    assert found.progress.pool_size == 6 * 64


def test_observations_end_a_local_run(config: Callable[..., DistillConfig]) -> None:
    found = drive(config(local=True, budget={"student_steps": None, "observations": 129}))
    assert found.progress.observations == 192
    assert [p.spent for p in found.history] == pytest.approx([0.0, 64 / 129, 128 / 129, 1.0])


def test_the_first_limit_that_is_reached_ends_a_run(config: Callable[..., DistillConfig]) -> None:
    found = drive(config(local=True, budget={"student_steps": 10**6, "observations": 64, "seconds": 3600}))
    assert found.progress.observations == 64


def test_seconds_end_a_run(config: Callable[..., DistillConfig]) -> None:
    found = drive(config(local=True, budget={"student_steps": None, "seconds": 0.2}))
    assert found.progress.seconds >= 0.2
    assert found.progress.student_steps > 0


def test_a_network_generator_is_restarted_while_a_run_goes_on(config: Callable[..., DistillConfig]) -> None:
    generator = {"kind": "network", "per_actor": 2, "reset_every": 2, "latent": 4}
    found = drive(config(local=True, generator=generator))
    # Ten rounds give each of the four generators five orders; the first lives of two are cut to one order.
    assert found.progress.reinitialisations == 2 * (2 + 2)


def test_the_running_mean_starts_at_the_first_value() -> None:
    assert mixed(float("nan"), 3.0) == 3.0
    assert mixed(1.0, 3.0) == pytest.approx(1.1)


@pytest.mark.parametrize("kind", ["direct", "network"])
def test_the_synchronous_mode_gives_what_one_process_gives(
    kind: str, config: Callable[..., DistillConfig], on_cluster: None
) -> None:
    generator = {"kind": kind, "per_actor": 2, "reset_every": 3, "latent": 4}
    local = drive(config(local=True, generator=generator))
    spread = drive(config(synchronous=True, generator=generator))
    assert same(local.student, spread.student)
    differing = {"seconds"}
    assert {k: v for k, v in vars(local.progress).items() if k not in differing} == {
        k: v for k, v in vars(spread.progress).items() if k not in differing
    }
    other = drive(config(local=True, generator=generator, seed=1))
    assert not same(local.student, other.student)


def test_an_asynchronous_run_ends_at_its_budget_and_measures_staleness(
    config: Callable[..., DistillConfig], on_cluster: None
) -> None:
    found = drive(config(budget={"student_steps": 100, "observations": 10**9}))
    p = found.progress
    # An update takes two steps; those under way when the limit is reached still count.
    assert 100 <= p.student_steps <= 104
    assert p.staleness > 0
    assert p.observations > 0
    assert p.pool_size == min(p.observations, 2000)
    assert (p.restarts, p.spent) == (0, 1.0)


def test_orders_under_way_are_bounded(config: Callable[..., DistillConfig], on_cluster: None) -> None:
    most: list[int] = []

    def count(loop: Loop, workers: Workers) -> None:
        per_actor = [sum(a == actor for a in loop.orders.values()) for actor in range(2)]
        waiting = [sum(a == actor for a, _, _ in loop.arrived) for actor in range(2)]
        most.append(max(o + w for o, w in zip(per_actor, waiting, strict=True)))
        assert len(loop.updates) <= 2

    drive(config(generator={"in_flight": 3}), count)
    assert max(most) == 3


def kill_once(loop: Loop, workers: Workers) -> None:
    """SIGKILL the first generator actor's process as soon as it has answered."""
    assert isinstance(workers, RayWorkers)
    if loop.progress.restarts == 0 and 0 in loop.answered and not hasattr(loop, "killed"):
        pid = ray.get(workers.generators[0].__ray_call__.remote(lambda actor: os.getpid()))
        assert pid != os.getpid()
        os.kill(pid, signal.SIGKILL)
        loop.killed = pid  # type: ignore[attr-defined]


@pytest.mark.parametrize("synchronous", [False, True])
def test_a_killed_generator_actor_is_replaced(
    synchronous: bool, config: Callable[..., DistillConfig], on_cluster: None
) -> None:
    pids: set[int] = set()

    def kill(loop: Loop, workers: Workers) -> None:
        kill_once(loop, workers)
        if loop.progress.restarts and 0 in loop.answered and not pids:
            assert isinstance(workers, RayWorkers)
            pids.add(ray.get(workers.generators[0].__ray_call__.remote(lambda actor: os.getpid())))
            assert loop.killed not in pids  # type: ignore[attr-defined]

    # Only what generators bring ends the run, so it cannot end before the actor is missed.
    budget = {"student_steps": None, "observations": 6_000}
    found = drive(config(synchronous=synchronous, budget=budget), kill)
    assert found.progress.restarts >= 1
    assert found.progress.observations >= 6_000
    assert pids


def test_more_actors_than_the_cluster_has_is_an_error_that_says_what_is_there(
    config: Callable[..., DistillConfig], on_cluster: None
) -> None:
    greedy = config(generator={"actors": 7})
    with pytest.raises(UserError, match=r"^generator\.actors: 7 actors .* reserve 4\.5 CPU, 4 .* free") as caught:
        drive(greedy)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"GPU, 0 .* free; lower generator\.actors or generator\.gpus"):
        check_resources(config(generator={"gpus": 0.5}))


def test_one_run_after_another_finds_the_actors_of_the_first_gone(
    config: Callable[..., DistillConfig], on_cluster: None
) -> None:
    for _ in range(3):
        whole = config(generator={"actors": 2, "cpus": 1.5}, budget={"student_steps": 4})
        assert drive(whole).progress.student_steps >= 4


def test_a_mistake_in_an_actor_arrives_as_it_was_raised(vector_teacher: Path, on_cluster: None) -> None:
    config = build_config(tiny.tree(vector_teacher, objective={"batch_norm": 1.0}))
    with pytest.raises(UserError, match=r"^objective\.batch_norm"):
        drive(config)
