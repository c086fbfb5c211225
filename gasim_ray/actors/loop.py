"""The loop between generators and learner. It only passes references on, so it answers at once.

Asynchronous: every generator actor has a bounded number of orders under way; an order carries the latest student
weights. Batches that arrive go to the learner, which has up to two updates queued, so it never waits; an actor whose
batches were not yet taken gets no new order, so a slow learner slows the generators down.

Synchronous: one order for each actor, then one update, in a fixed order: repeatable.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gasim_ray.actors.workers import Answer, BatchLost, WorkerLost, Workers
from gasim_ray.config import DistillConfig
from gasim_ray.core.batch import BatchInfo
from gasim_ray.core.learner import LearnerReport
from gasim_ray.errors import UserError

#: Updates that wait at the learner or run there.
UPDATES_IN_FLIGHT = 2
#: Seconds that an update lasts at least if there are batches enough, so that what a call costs does not count.
UPDATE_SECONDS = 0.005
#: Batches that an update takes in at most.
UPDATE_BATCHES = 16
#: How much the newest batch counts in running means.
SMOOTHING = 0.05
#: Times for each actor that generators may be replaced, none of their batches being taken in meanwhile.
REPLACEMENTS = 10
#: Seconds between two looks for actors that have fallen silent.
SILENCE_SECONDS = 1.0
#: Seconds that the loop waits at most before it looks at clocks and interrupts again.
TICK_SECONDS = 0.2


@dataclass
class Progress:
    """Where a run stands; every field is a column of metrics.csv."""

    #: Seconds of distillation, those before a resume included.
    seconds: float = 0.0
    #: Share of the budget that is spent.
    spent: float = 0.0
    #: Synthetic observations that were handed to the learner; those that it refused do not count.
    observations: int = 0
    student_steps: int = 0
    #: Mean student loss of the last update.
    loss: float = float("nan")
    #: Running mean of teacher's and student's agreement on batches as they were made.
    agreement: float = float("nan")
    #: Running mean of the student steps between the weights that a batch was made against and its use.
    staleness: float = 0.0
    #: Observations in the pool.
    pool_size: int = 0
    #: Generators started anew by clock or stagnation.
    reinitialisations: int = 0
    #: Generator actors that were replaced: they died, fell silent, or the learner refused a batch of them.
    restarts: int = 0
    #: Generator actors that answered since they were started.
    actors_alive: int = 0
    #: Orders that generators have not yet answered.
    orders_in_flight: int = 0
    #: Running mean of the seconds in which a batch is labelled.
    teacher_seconds: float = float("nan")
    #: Share of its time in which the learner updates the student, since this process began.
    learner_busy: float = 0.0


@dataclass
class Loop:
    """Drives workers until the budget is spent or `stop` says so."""

    workers: Workers
    config: DistillConfig
    stop: Callable[[], bool]
    #: Called after every step with the loop; it may write a checkpoint of its `state_dict`.
    report: Callable[[Loop], None]
    #: Told of every generator actor that is replaced, and of batches that were lost.
    note: Callable[[str], None] = lambda message: None
    progress: Progress = field(default_factory=Progress)
    #: Seconds that `report` spent on what is no part of the run, such as an evaluation; they do not count.
    idle: float = 0.0

    def __post_init__(self) -> None:
        self.next_order = [0] * self.config.generator.actors
        #: Of each actor's generators, as it last told.
        self.generations: dict[tuple[int, int], int] = {}
        self.answered: set[int] = set()
        self.busy = 0.0
        self.weights = self.workers.student_weights()
        self.orders: dict[Answer, int] = {}
        #: Updates under way, and what they take in.
        self.updates: dict[Answer, list[BatchInfo]] = {}
        #: Orders of each actor that it has not answered, and batches of it that wait for the learner.
        self.asked = [0] * self.config.generator.actors
        self.held = [0] * self.config.generator.actors
        #: Running mean of the seconds that the learner takes for a batch.
        self.batch_seconds = float("nan")
        #: When each actor last answered, was started, or got an order while it had none.
        self.heard = [time.monotonic()] * self.config.generator.actors
        self.looked = time.monotonic()
        #: The first order of each actor as it is now; what the one before it made may still be on its way.
        self.first_order = [0] * self.config.generator.actors
        #: Replacements since a batch was last taken in.
        self.futile = 0
        self.arrived: list[tuple[int, Answer, BatchInfo]] = []

    def run(self) -> Progress:
        """Run to the end of the budget; returns the last progress."""
        before = self.progress.seconds
        started = time.perf_counter() - before
        step = self._round if self.config.ordered else self._pump
        while True:
            self.progress.seconds = time.perf_counter() - started - self.idle
            self.progress.orders_in_flight = len(self.orders)
            self.progress.learner_busy = min(1.0, self.busy / max(1e-9, self.progress.seconds - before))
            self.progress.spent = self._spent()
            self.report(self)
            if self.progress.spent >= 1.0 or self.stop():
                break
            step()
        self._finish_updates(list(self.updates))
        return self.progress

    def _spent(self) -> float:
        p = self.progress
        return self.config.budget.spent(p.seconds, p.observations, p.student_steps)

    def _round(self) -> None:
        for actor in range(len(self.next_order)):
            self._order(actor)
        for answer, actor in list(self.orders.items()):
            while not self._take_order(answer, actor):
                # The same order again, so that the run can be repeated.
                self.next_order[actor] -= 1
                self.first_order[actor] -= 1
                answer = self._order(actor)
        self.arrived.sort(key=lambda item: item[0])
        self._update(len(self.arrived))
        self._finish_updates(list(self.updates))

    def _pump(self) -> None:
        for actor in range(len(self.next_order)):
            for _ in range(self.config.generator.in_flight - self.asked[actor] - self.held[actor]):
                self._order(actor)
        for answer in self.workers.ready([*self.orders, *self.updates], TICK_SECONDS):
            if answer in self.orders:
                self._take_order(answer, self.orders[answer])
            elif answer in self.updates:
                self._finish_updates([answer])
        # Not before what has arrived was read: a checkpoint may have taken longer than an actor may be silent.
        self._replace_silent()
        while self.arrived and len(self.updates) < UPDATES_IN_FLIGHT:
            self._update(self._batches_at_once())
        if self.progress.observations and not self.updates:
            self._update(0)

    def _batches_at_once(self) -> int:
        """How many batches make an update that is worth a call; one until it is known how long they take."""
        if math.isnan(self.batch_seconds):
            return 1
        enough = UPDATE_SECONDS / max(self.batch_seconds, 1e-9)
        return int(min(max(enough, 1), UPDATE_BATCHES))

    def _order(self, actor: int) -> Answer:
        number = self.next_order[actor]
        self.next_order[actor] += 1
        if not self.asked[actor]:
            self.heard[actor] = time.monotonic()
        self.asked[actor] += 1
        answer = self.workers.order(actor, number, self.weights)
        self.orders[answer] = actor
        return answer

    def _take_order(self, answer: Answer, actor: int) -> bool:
        """Read what was ordered; False if it was lost, and its actor replaced."""
        del self.orders[answer]
        self.asked[actor] -= 1
        try:
            info: BatchInfo = self.workers.read(answer.summary, self.config.generator.timeout)
        except (WorkerLost, BatchLost) as error:
            if isinstance(error, BatchLost):  # the weights that it was given; a dead learner is told by this
                self.weights = self.workers.student_weights()
                self.workers.read(self.weights)
            self._replace(actor, str(error))
            return False
        self.arrived.append((actor, answer, info))
        self.held[actor] += 1
        self.answered.add(actor)
        self.heard[actor] = time.monotonic()
        p = self.progress
        # An actor that was replaced counts from 0 again.
        p.reinitialisations += max(0, info.generation - self.generations.get((info.actor, info.generator), 0))
        self.generations[info.actor, info.generator] = info.generation
        p.agreement = mixed(p.agreement, info.agreement)
        p.teacher_seconds = mixed(p.teacher_seconds, info.teacher_seconds)
        p.actors_alive = len(self.answered)
        return True

    def _replace_silent(self) -> None:
        """Replace actors that have not answered their orders for the settings' time."""
        timeout, now = self.config.generator.timeout, time.monotonic()
        if not timeout or now - self.looked < SILENCE_SECONDS:
            return
        self.looked = now
        for actor, asked in enumerate(self.asked):
            if actor not in self.answered and not self.workers.begun(actor):
                self.heard[actor] = now  # it waits for a node, or starts
            elif asked and now - self.heard[actor] > timeout:
                self._replace(actor, f"no answer for {timeout:g} s")

    def _replace(self, actor: int, reason: str) -> None:
        """Start a generator actor anew; raises UserError if that goes on without a batch."""
        if self.futile >= REPLACEMENTS * len(self.next_order):
            raise UserError(f"generator: actors fail again and again, none brings a batch (actor {actor}: {reason})")
        self.note(f"warning: generator actor {actor} is replaced: {reason}")
        lost = [answer for answer, who in self.orders.items() if who == actor]
        for answer in lost:
            del self.orders[answer]
        self.asked[actor] = 0
        self.answered.discard(actor)
        self.progress.restarts += 1
        self.progress.actors_alive = len(self.answered)
        self.futile += 1
        self.first_order[actor] = self.next_order[actor]
        self.heard[actor] = time.monotonic()
        self.workers.replace(actor)

    def _update(self, count: int) -> None:
        taken, self.arrived = self.arrived[:count], self.arrived[count:]
        answer = self.workers.update(self.progress.spent, [batch.payload for _, batch, _ in taken])
        self.updates[answer] = [info for _, _, info in taken]
        p = self.progress
        for actor, _, info in taken:
            self.held[actor] -= 1
            p.observations += info.count
            p.staleness = mixed(p.staleness, p.student_steps - info.student_step)

    def _finish_updates(self, answers: list[Answer]) -> None:
        for answer in answers:
            infos = self.updates.pop(answer)
            p = self.progress
            try:
                report: LearnerReport = self.workers.read(answer.summary)
            except BatchLost as error:
                self.note(f"warning: batches were lost on their way to the learner: {error}")
                p.observations -= sum(info.count for info in infos)
                continue
            self.weights = answer.payload
            for info, fault in report.refused:
                self._refuse(info, fault)
            if len(report.refused) < len(infos):
                self.futile = 0
            p.student_steps, p.loss, p.pool_size = report.student_step, report.loss, report.pool_size
            self.busy += report.seconds
            if infos:
                self.batch_seconds = mixed(self.batch_seconds, report.seconds / len(infos))

    def _refuse(self, info: BatchInfo, fault: str) -> None:
        """Replace the actor of a batch that the learner refused, unless it was replaced since."""
        self.progress.observations -= info.count
        if info.order >= self.first_order[info.actor]:
            self._replace(info.actor, f"a batch of it {fault}")

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps; between two steps of the loop."""
        return {
            "learner": self.workers.learner_state(),
            "generators": self.workers.generator_states() if self.config.ordered else [],
            "next_order": self.next_order,
            "progress": dict(vars(self.progress)),
            "generations": dict(self.generations),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint; an asynchronous run may have another number of actors than it had."""
        self.workers.restore(state["learner"], state["generators"])
        before, actors = list(state["next_order"]), self.config.generator.actors
        # An order's number makes its random numbers: none is to come again.
        self.next_order = before if len(before) == actors else [max(before)] * actors
        self.first_order = list(self.next_order)
        self.progress = Progress(**{**state["progress"], "actors_alive": 0})
        # Earlier versions counted them through, by numbers.
        self.generations = {key: count for key, count in state["generations"].items() if isinstance(key, tuple)}
        self.weights = self.workers.student_weights()


def mixed(mean: float, value: float) -> float:
    """Running mean that starts at the first value."""
    return value if mean != mean else (1 - SMOOTHING) * mean + SMOOTHING * value
