"""The same workers as Ray actors, spread over the cluster's nodes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import (
    GetTimeoutError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.util import get_current_placement_group
from ray.util.metrics import Gauge
from torch import Tensor

from gasim_ray.actors.resources import check_resources, label, learner_gpus
from gasim_ray.actors.status import leave_status, take_status_back
from gasim_ray.actors.workers import (
    Answer,
    BatchLost,
    WorkerLost,
    keep_memory,
    make_learner,
    make_prior,
    make_synthesizer,
    use_threads,
)
from gasim_ray.config import DistillConfig
from gasim_ray.core.device import check_device_is_there
from gasim_ray.core.learner import Learner
from gasim_ray.core.model import Model
from gasim_ray.core.synthesizer import Synthesizer
from gasim_ray.errors import UserError

log = logging.getLogger("gasim")


def connect() -> None:
    """Join the cluster that RAY_ADDRESS or this machine names, or start one here; does nothing if connected.

    Raises UserError for an address that leads to none.
    """
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "")
    mend = "give HOST:6379, unset it to start Ray here, or run the command there by `ray job submit`"
    if "://" in address:
        raise UserError(f"RAY_ADDRESS: {address} is for jobs or for Ray's client; {mend}")
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        # Not ray.init("auto"): that joins the private Ray of any other program on this machine.
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError) as error:
        if not address:
            raise UserError(f"Ray: this machine's cluster is gone ({first_line(error)}); run `ray stop`") from error
        raise UserError(f"RAY_ADDRESS: {address}: no cluster there ({first_line(error)}); {mend}") from error


class GeneratorActor:
    """A Synthesizer in a process of its own."""

    def __init__(self, teacher: Model, config: DistillConfig, actor: int) -> None:
        self.name = f"{config.run_folder().name} generator {actor}"
        log.warning("%s: begins on %s", self.name, ray.util.get_node_ip_address())
        use_threads(config.generator.cpus)
        keep_memory()
        device = "cuda" if config.generator.gpus > 0 else "cpu"
        check_device_is_there(device)
        prior = make_prior(teacher, config, device)
        self.synthesizer: Synthesizer = make_synthesizer(teacher, config, actor, device, prior)

    def __repr__(self) -> str:
        """What Ray's log lines of the actor begin with."""
        return self.name

    def synthesize(self, order: int, weights: Any) -> Any:
        """See Synthesizer."""
        return self.synthesizer.synthesize(order, weights)

    def state_dict(self) -> Any:
        """See Synthesizer; as arrays."""
        return as_arrays(self.synthesizer.state_dict())

    def load_state_dict(self, state: Any) -> None:
        """See Synthesizer."""
        self.synthesizer.load_state_dict(state)


class LearnerActor:
    """A Learner in a process of its own."""

    def __init__(self, teacher: Model, config: DistillConfig) -> None:
        self.name = f"{config.run_folder().name} learner"
        log.warning("%s: begins on %s", self.name, ray.util.get_node_ip_address())
        check_device_is_there(config.device)
        use_threads(config.student.cpus)
        keep_memory()
        self.learner: Learner = make_learner(teacher, config, config.device, make_prior(teacher, config, "cpu"))

    def __repr__(self) -> str:
        """What Ray's log lines of the actor begin with."""
        return self.name

    def update(self, progress: float, *batches: Any) -> Any:
        """See Learner."""
        return self.learner.update(progress, *batches)

    def weights(self) -> Any:
        """See Learner."""
        return self.learner.weights()

    def state_dict(self) -> Any:
        """See Learner; as arrays."""
        return as_arrays(self.learner.state_dict())

    def load_state_dict(self, state: Any) -> None:
        """See Learner."""
        self.learner.load_state_dict(state)


class RayWorkers:
    """One learner actor, and generator actors that are replaced when they die."""

    def __init__(self, teacher: Model, config: DistillConfig) -> None:
        self.config = config
        # A trial of a sweep has a placement group with a bundle for each actor, which its caller has checked.
        self.placed = get_current_placement_group() is not None
        if not self.placed:
            check_resources(config, config.elastic)
        self.gauges: dict[str, Any] = {}
        self.teacher = ray.put(teacher)
        ready = [self._start_all(), *self.ready_answers]
        # The clock of an elastic run begins with its first generator, which may have to wait for a node.
        try:
            ray.get(ready[0] if config.elastic else ready)
        except RayError as error:
            self._end_all()
            if mistake := not_started(error):
                raise mistake from error
            raise
        ray.wait(ready[1:], num_returns=1)

    def _start_all(self) -> Any:
        """Start every actor; what is returned arrives when the learner is there."""
        config = self.config
        self.learner = (
            ray.remote(LearnerActor)
            .options(
                num_cpus=config.student.cpus,
                num_gpus=learner_gpus(config),
                label_selector=None if self.placed else label(config),
            )
            .remote(self.teacher, config)
        )
        self.generators = [self._start(actor) for actor in range(config.generator.actors)]
        self.ready_answers = [generator.__ray_ready__.remote() for generator in self.generators]
        return self.learner.__ray_ready__.remote()

    def _start(self, actor: int) -> Any:
        generator = self.config.generator
        spread = {} if self.placed else {"scheduling_strategy": "SPREAD"}
        options = {"num_cpus": generator.cpus, "num_gpus": generator.gpus, **spread}
        return ray.remote(GeneratorActor).options(**options).remote(self.teacher, self.config, actor)

    def order(self, actor: int, order: int, weights: Any) -> Answer:
        """See Workers."""
        return Answer(*self.generators[actor].synthesize.options(num_returns=2).remote(order, weights))

    def update(self, progress: float, batches: Sequence[Any]) -> Answer:
        """See Workers."""
        return Answer(*self.learner.update.options(num_returns=2).remote(progress, *batches))

    def ready(self, answers: Sequence[Answer], timeout: float) -> list[Answer]:
        """See Workers."""
        references = [answer.summary for answer in answers]
        done, _ = ray.wait(references, num_returns=len(references), timeout=0, fetch_local=False)
        if not done:
            done, _ = ray.wait(references, num_returns=1, timeout=timeout, fetch_local=False)
        arrived = set(done)
        return [answer for answer in answers if answer.summary in arrived]

    def read(self, summary: Any, timeout: float = 0.0) -> Any:
        """See Workers; a mistake of the user's is raised as it was in the actor."""
        try:
            return ray.get(summary, timeout=timeout or None)
        except RayTaskError as error:
            # Of what the task itself raised and what was wrong with its arguments both are told in this way.
            if isinstance(error.cause, UserError):
                raise error.cause from None
            if isinstance(error.cause, RayActorError | ObjectLostError):
                raise BatchLost(first_line(error.cause)) from error
            raise
        except GetTimeoutError as error:
            raise WorkerLost(f"no answer for {timeout:g} s") from error
        except (RayActorError, ObjectLostError, OutOfMemoryError) as error:
            raise WorkerLost(first_line(error)) from error

    def begun(self, actor: int) -> bool:
        """See Workers."""
        return bool(ray.wait([self.ready_answers[actor]], timeout=0)[0])

    def student_weights(self) -> Any:
        """See Workers."""
        return self.learner.weights.remote()

    def replace(self, actor: int) -> None:
        """See Workers."""
        ray.kill(self.generators[actor])
        self.generators[actor] = self._start(actor)
        self.ready_answers[actor] = self.generators[actor].__ray_ready__.remote()

    def restart(self) -> None:
        """See Workers; generators begin where there is room, since a node may have been lost.

        Raises UserError if there is none for the learner, and WorkerLost if it dies as it starts.
        """
        self._end_all()
        check_resources(self.config, elastic=True)
        self.read(self._start_all())

    def _end_all(self) -> None:
        for actor in [self.learner, *self.generators]:
            ray.kill(actor)

    def learner_state(self) -> dict[str, Any]:
        """See Workers."""
        state: dict[str, Any] = as_tensors(self.read(self.learner.state_dict.remote()))
        return state

    def generator_states(self) -> list[Any]:
        """See Workers; None for one that was lost, which begins anew with its next order."""

        def state_of(generator: Any) -> Any:
            try:
                return as_tensors(self.read(generator.state_dict.remote()))
            except WorkerLost:
                return None

        return [state_of(generator) for generator in self.generators]

    def restore(self, learner: dict[str, Any], generators: Sequence[Any]) -> None:
        """See Workers."""
        self.read(self.learner.load_state_dict.remote(learner))
        for generator, state in zip(self.generators, generators, strict=False):
            if state is not None:
                self.read(generator.load_state_dict.remote(state))

    def publish(self, figures: Mapping[str, float]) -> None:
        """See Workers: Ray metrics named gasim_<figure>, and the line of `gasim status`."""
        for name, value in figures.items():
            if name not in self.gauges:
                self.gauges[name] = Gauge(f"gasim_{name}", description=f"gasim: {name}; see metrics.csv")
            self.gauges[name].set(value)
        place = self.config.out or str(self.config.run_folder().absolute())
        leave_status(place, f"{Path(self.config.teacher).name}, {self.config.method}", figures)

    def close(self) -> None:
        """See Workers."""
        self._end_all()
        take_status_back()


def as_arrays(state: Any) -> Any:
    """The same with an array for every tensor: Ray copies tensors many times, and the driver may have no GPU."""
    return changed(state, Tensor, lambda tensor: tensor.cpu().numpy())


def as_tensors(state: Any) -> Any:
    """Inverse of `as_arrays`; copied out of Ray's memory, in which nothing can be changed."""
    return changed(state, np.ndarray, torch.tensor)


def changed(state: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """The same with everything of a kind changed, however deep."""
    if isinstance(state, dict):
        return {key: changed(value, kind, change) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(changed(value, kind, change) for value in state)
    return change(state) if isinstance(state, kind) else state


def not_started(error: RayError) -> UserError | None:
    """What to tell of an actor that did not start: the user's mistake, or that memory is short; None if neither."""
    kind, _, message = str(error).strip().rpartition("\n")[2].partition(": ")
    if kind.endswith(UserError.__name__):
        return UserError(message)
    if kind.endswith(ModuleNotFoundError.__name__):
        return UserError(f"teacher: {message} on a machine of the cluster; install there what its network is made by")
    if getattr(error, "actor_init_failed", False) and "out of memory" not in str(error).lower():
        return None
    return UserError(
        f"generator.actors: the learner or a generator did not start ({first_line(error)}); if memory is short, lower "
        "generator.actors, generator.batch_size or pool.capacity"
    )


def first_line(error: BaseException) -> str:
    """What Ray says of a lost actor or object, without the page that follows."""
    return str(error).strip().partition("\n")[0].rstrip(".:")
