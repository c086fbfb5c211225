"""The loop between generators and learner, in one process and on a real Ray cluster of four CPUs."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray
import tiny
import torch

from gasim_ray.actors import resources
from gasim_ray.actors.loop import UPDATES_IN_FLIGHT, Loop, Progress, mixed
from gasim_ray.actors.ray_workers import RayWorkers, connect, not_started
from gasim_ray.actors.resources import check_resources, not_free, places
from gasim_ray.actors.workers import Answer, BatchLost, LocalWorkers, Workers
from gasim_ray.config import DistillConfig, build_config
from gasim_ray.core.batch import BatchInfo
from gasim_ray.core.learner import LearnerReport
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


def drive(config: DistillConfig, between: Callable[[Loop, Workers], None] = lambda loop, workers: None) -> Outcome:
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


class Losing(LocalWorkers):
    """Loses what `lost` says, once: what an order, or an update, was given."""

    def __init__(self, config: DistillConfig, lost: str) -> None:
        super().__init__(load_teacher(config.teacher), config)
        self.lost = lost
        self.replaced: list[int] = []
        self.numbers: list[tuple[int, int]] = []

    def order(self, actor: int, order: int, weights: Any) -> Answer:
        self.numbers.append((actor, order))
        return super().order(actor, order, weights)

    def read(self, summary: Any, timeout: float = 0.0) -> Any:
        if isinstance(summary, {"order": BatchInfo, "update": LearnerReport, "nothing": ()}[self.lost]):
            self.lost = "nothing"
            raise BatchLost("its node is gone")
        return super().read(summary, timeout)

    def replace(self, actor: int) -> None:
        self.replaced.append(actor)


@pytest.mark.parametrize(
    ("lost", "told", "restarts", "observations"),
    [
        ("order", "warning: generator actor 0 is replaced: its node is gone", 1, 320),
        ("update", "warning: batches were lost on their way to the learner: its node is gone", 0, 320),
    ],
)
def test_what_goes_with_a_node_is_lost_and_no_more(
    lost: str, told: str, restarts: int, observations: int, config: Callable[..., DistillConfig]
) -> None:
    given = config(local=True, budget={"student_steps": None, "observations": 300})
    workers, notes = Losing(given, lost), list[str]()
    progress = Loop(workers, given, lambda: False, lambda loop: None, notes.append).run()
    assert notes == [told]
    assert (progress.restarts, len(workers.replaced), progress.observations) == (restarts, restarts, observations)
    # A lost order is given again under its number, so that the run is the one that loses nothing; no other comes twice.
    assert workers.numbers.count((0, 0)) == 1 + restarts
    assert len(set(workers.numbers)) == len(workers.numbers) - restarts


def test_a_run_that_goes_on_with_other_actors_gives_no_order_twice(config: Callable[..., DistillConfig]) -> None:
    states: list[dict[str, Any]] = []

    def keep(loop: Loop, workers: Workers) -> None:
        states.append(loop.state_dict())

    drive(config(local=True, budget={"student_steps": 20}), keep)
    state = {**states[-1], "next_order": [3, 7], "generators": []}
    workers = LocalWorkers(load_teacher(config().teacher), config(local=True, generator={"actors": 3}))
    loop = Loop(workers, config(generator={"actors": 3}), lambda: False, lambda loop: None)
    loop.load_state_dict(state)
    assert loop.next_order == loop.first_order == [7, 7, 7]


def test_generators_that_begin_anew_are_not_counted_down(config: Callable[..., DistillConfig]) -> None:
    given = config(local=True, generator={"kind": "network", "reset_every": 2, "latent": 4})
    loop = Loop(LocalWorkers(load_teacher(given.teacher), given), given, lambda: False, lambda loop: None)
    state = loop.state_dict()
    before = {"generations": {(0, 0): 50, (1, 0): 50}, "progress": {**state["progress"], "reinitialisations": 100}}
    loop.load_state_dict({**state, **before})
    # Ten rounds, of which each generator's first life has two orders.
    assert loop.run().reinitialisations == 100 + 2 * 4


def test_the_running_mean_starts_at_the_first_value() -> None:
    assert mixed(float("nan"), 3.0) == 3.0
    assert mixed(1.0, 3.0) == pytest.approx(1.1)


def test_the_synchronous_mode_gives_what_one_process_gives(
    config: Callable[..., DistillConfig], on_cluster: None
) -> None:
    """Each run on Ray takes the whole cluster, so the second one starts when the actors of the first are gone."""
    generator = {"kind": "network", "per_actor": 2, "reset_every": 3, "latent": 4, "cpus": 1.5}
    local = drive(config(local=True, generator=generator))
    first, second = (drive(config(synchronous=True, generator=generator)) for _ in range(2))
    assert same(local.student, first.student)
    assert same(local.student, second.student)
    clocks = {"seconds", "teacher_seconds", "learner_busy"}
    figures = [{k: v for k, v in vars(run.progress).items() if k not in clocks} for run in (local, first, second)]
    assert figures[0] == figures[1] == figures[2]
    other = drive(config(local=True, generator=generator, seed=1))
    assert not same(local.student, other.student)


def test_an_asynchronous_run_is_bounded_and_measures_staleness(
    config: Callable[..., DistillConfig], on_cluster: None
) -> None:
    most: list[int] = []

    def count(loop: Loop, workers: Workers) -> None:
        under_way, waiting = list(loop.orders.values()), [actor for actor, _, _ in loop.arrived]
        most.append(max((under_way + waiting).count(actor) for actor in range(2)))
        assert len(loop.updates) <= 2

    found = drive(config(generator={"in_flight": 3}, budget={"student_steps": 100, "observations": 10**9}), count)
    p = found.progress
    assert max(most) == 3
    # A batch brings two steps; those of updates under way when the limit is reached still count.
    most_batches = 2 * 3
    assert 100 <= p.student_steps <= 100 + 2 * most_batches * (UPDATES_IN_FLIGHT + 1)
    assert p.staleness > 0
    assert p.observations > 0
    assert p.pool_size == min(p.observations, 2000)
    assert (p.restarts, p.spent) == (0, 1.0)


def pid_of(workers: Workers) -> int:
    """The process of the first generator actor."""
    assert isinstance(workers, RayWorkers)
    return int(ray.get(workers.generators[0].__ray_call__.remote(lambda actor: os.getpid())))


@dataclass
class Killer:
    """SIGKILLs the first generator actor after its first answer, and notes the process that takes its place.

    With orders under way, the process is halted first until all of them wait for it, so that they are lost together.
    """

    orders: int
    halted: int | None = None
    killed: bool = False
    successor: int | None = None

    def __call__(self, loop: Loop, workers: Workers) -> None:
        if self.halted is None and 0 in loop.answered:
            self.halted = pid_of(workers)
            os.kill(self.halted, signal.SIGSTOP)
        pending = [order.summary for order in loop.orders]
        if self.halted and not self.killed and len(pending) == self.orders and not loop.arrived:
            if pending and ray.wait(pending, timeout=0)[0]:
                return
            os.kill(self.halted, signal.SIGKILL)
            self.killed = True
            if pending:
                ray.wait(pending, num_returns=len(pending))
        if loop.progress.restarts and 0 in loop.answered and self.successor is None:
            self.successor = pid_of(workers)


@pytest.mark.parametrize("synchronous", [False, True])
def test_a_killed_generator_actor_is_replaced(
    synchronous: bool, config: Callable[..., DistillConfig], on_cluster: None
) -> None:
    killer = Killer(orders=0 if synchronous else 2)
    # Only what the one actor brings ends the run, so it cannot end without the actor in its place.
    budget = {"student_steps": None, "observations": 6_000}
    found = drive(config(synchronous=synchronous, budget=budget, generator={"actors": 1}), killer)
    assert found.progress.restarts == 1
    assert found.progress.observations >= 6_000
    assert killer.successor is not None
    assert killer.successor != killer.halted


def fails(error: BaseException) -> Any:
    """An actor whose constructor raises."""

    class Failing:
        def __init__(self) -> None:
            raise error

    return ray.remote(num_cpus=0)(Failing).remote()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            UserError("student.architecture: 'mine:Net' cannot be imported"),
            "student.architecture: 'mine:Net' cannot be",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "generator.actors: .* did not start .*lower"),
        (ModuleNotFoundError("No module named 'mine'"), "teacher: No module named 'mine' on a machine of the cluster"),
        (TypeError("a fault of the program"), None),
    ],
)
def test_why_an_actor_did_not_start_is_told_if_the_user_can_mend_it(
    error: BaseException, told: str | None, on_cluster: None
) -> None:
    with pytest.raises(ray.exceptions.RayActorError) as caught:
        ray.get(fails(error).__ray_ready__.remote())
    mistake = not_started(caught.value)
    assert mistake is None if told is None else re.match(told, str(mistake))
    assert "\n" not in str(mistake)


def test_generators_have_places_beside_the_learner_where_its_label_lets_it_be() -> None:
    def node(cpus: float, gpus: float = 0.0, **labels: str) -> dict[str, Any]:
        return {"Resources": {"CPU": cpus, "GPU": gpus}, "Labels": labels}

    nodes = [node(4, gasim="head"), node(5)]
    learner, two = {"CPU": 1.0, "GPU": 0.0}, {"CPU": 2.0, "GPU": 0.0}
    assert places(learner, two, nodes, {}) == 4
    assert places(learner, two, nodes, {"gasim": "head"}) == 3
    share = {"CPU": 0.5, "GPU": 0.6}
    assert places(share, share, [node(8, 1), node(8, 1)], {}) == 1
    third = {"CPU": 1.0, "GPU": 1 / 3}
    assert places({"CPU": 1.0, "GPU": 0.0}, third, [node(8, 1)], {}) == 3
    assert places(learner, {"CPU": 0.0, "GPU": 0.0}, [node(1)], {}) > 1000


def test_what_is_free_in_parts_is_no_place_for_an_actor(
    config: Callable[..., DistillConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(actors: int, *free: float, elastic: bool = False, cpus: float = 1.0) -> str:
        nodes = [{"Labels": {}, "Resources": {"CPU": amount}} for amount in free]
        monkeypatch.setattr(resources, "free_nodes", lambda: nodes)
        return not_free(config(generator={"actors": actors, "cpus": cpus}), elastic)

    assert missing(2, 1.5, 2.0) == missing(2, 3.0) == missing(5, 1.0, elastic=True) == ""
    assert "each needs a place on one node, and nodes have 1 free beside the learner" in missing(2, 1.5, 1.5)
    assert "2 actors and the learner reserve 3 CPU, 2 is free" in missing(2, 1.0, 1.0)
    for told in (missing(5, 0.5, 0.5, elastic=True), missing(1, 0.75, 0.75, cpus=0.5)):
        assert "student.cpus: no node has what the learner reserves ({'CPU': 1.0, 'GPU': 0.0}) free" in told


def test_more_actors_than_the_cluster_has_is_an_error_that_says_what_is_there(
    config: Callable[..., DistillConfig], on_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy = config(generator={"actors": 7})
    with pytest.raises(UserError, match=r"^generator\.actors: 7 actors .* reserve 4\.5 CPU, 4 .* free") as caught:
        drive(greedy)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"GPU, 0 .* free; lower generator\.actors or generator\.gpus"):
        check_resources(config(generator={"gpus": 0.5}), elastic=False)
    nodes = [{**node, "Resources": {"CPU": 2.0}} for node in ray.nodes() * 2]  # as if the four CPUs lay on two nodes
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(resources, "free_nodes", lambda: nodes)
    with pytest.raises(UserError, match=r"^generator\.cpus: no node has what one such actor reserves .*'CPU': 3"):
        check_resources(config(generator={"actors": 1, "cpus": 3}), elastic=False)
    check_resources(config(generator={"actors": 1, "cpus": 2}), elastic=False)
    # A place on each of the two, of which the learner takes one half.
    with pytest.raises(
        UserError, match=r"^generator\.actors: 2 actors, of which each .* have 1 free beside the learner"
    ):
        check_resources(config(generator={"actors": 2, "cpus": 1.4}), elastic=False)
    check_resources(config(generator={"actors": 3, "cpus": 1}), elastic=False)
    check_resources(config(generator={"actors": 9, "cpus": 0}), elastic=False)
    with pytest.raises(
        UserError, match=r"^device: cuda is not there \(no machine of the cluster has a GPU\); use cpu$"
    ):
        drive(config(device="cuda"))


def test_a_mistake_in_an_actor_arrives_as_it_was_raised(vector_teacher: Path, on_cluster: None) -> None:
    config = build_config(tiny.tree(vector_teacher, objective={"batch_norm": 1.0}, generator={"actors": 1}))
    with pytest.raises(UserError, match=r"^objective\.batch_norm"):
        drive(config)


def ask_until_dead(generator: Any) -> None:
    """Raises RayActorError at the first question that is not answered: `ray.kill` returns before its actor is dead."""
    for _ in range(10_000):
        ray.get(generator.state_dict.remote())


def test_a_checkpoint_does_without_a_generator_that_was_lost(
    config: Callable[..., DistillConfig], on_cluster: None
) -> None:
    settings = config(synchronous=True)
    workers = RayWorkers(load_teacher(settings.teacher), settings)
    try:
        ray.kill(workers.generators[0])
        with pytest.raises(ray.exceptions.RayActorError):
            ask_until_dead(workers.generators[0])
        states = workers.generator_states()
        assert [state is None for state in states] == [True, False]
        workers.replace(0)
        workers.restore(workers.learner_state(), states)
    finally:
        workers.close()


def test_a_process_has_its_threads_back_after_a_local_run(config: Callable[..., DistillConfig]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        drive(config(local=True))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001"])
def test_an_address_that_leads_to_no_cluster_is_named(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match=rf"^RAY_ADDRESS: {address} is for jobs .*give HOST:6379, unset it"):
        connect()
