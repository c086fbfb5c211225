"""One distillation from configuration to student: what `gasim distill` runs, and what other code may call."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from gasim_ray.actors.loop import Loop, Progress
from gasim_ray.actors.workers import LocalWorkers, WorkerLost, Workers, make_prior, make_student
from gasim_ray.config import DistillConfig
from gasim_ray.core.distill import check_objective, with_source
from gasim_ray.core.mixture import most_knowledge
from gasim_ray.core.model import Model, save_model
from gasim_ray.core.prior import Knowledge
from gasim_ray.errors import UserError
from gasim_ray.report.display import Display
from gasim_ray.report.samples import save_samples
from gasim_ray.run_folder import Metrics, RunFolder, versions
from gasim_ray.storage import Mirror, is_address
from gasim_ray.teachers import load_teacher

#: Seconds between rows of metrics.csv.
METRICS_SECONDS = 1.0
#: Observations shown in samples.png.
SAMPLES = 512


#: Called after each step of the loop, with a function that gives the student as it is then.
Watch = Callable[[Loop, Callable[[], Model]], None]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended the run; a checkpoint was written."""


def distill(
    config: DistillConfig, display: Display, resume: bool = False, overwrite: bool = False, watch: Watch | None = None
) -> Path:
    """Distil the teacher into a student; returns the run's folder, which is gone if `out` is an address.

    `watch` may raise to end the run.

    Raises UserError for what the user can mend, and Interrupted after Ctrl-C.
    """
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device: {config.device} is not there (PyTorch sees no GPU); use cpu")
    teacher = load_teacher(Path(config.teacher)).computing(config.bf16, config.channels_last)
    student = make_student(teacher, config, make_prior(teacher, config, "cpu"))
    check_objective(teacher, config.generator, config.objective)
    with Mirror(config.out) if is_address(config.out) else nullcontext() as mirror:
        folder = RunFolder(mirror.folder if mirror else config.run_folder())
        if mirror and resume:
            mirror.download()
        state = folder.resume(config) if resume else None
        workers = start_workers(teacher, config)
        try:
            if state is None:
                begin(folder, config, overwrite, mirror)
            progress, learner = _drive(workers, config, folder, state, display, student, watch, mirror)
        finally:
            workers.close()
        _finish(folder, config, student, learner, progress)
        return folder.path


def begin(folder: RunFolder, config: DistillConfig, overwrite: bool, mirror: Mirror | None) -> None:
    """Make the folder, and the address if there is one; raises UserError if either is taken or cannot be written."""
    try:
        if mirror:
            mirror.claim(overwrite)
        folder.begin(config, overwrite)
        if mirror:
            mirror.begin()
    except OSError as error:
        raise UserError(f"out: {folder.path} cannot be written ({error.strerror})") from error


def start_workers(teacher: Model, config: DistillConfig) -> Workers:
    """Generators and learner, in this process or on Ray."""
    if config.local:
        return LocalWorkers(teacher, config)
    # Only here, so that a local run needs no Ray.
    from gasim_ray.actors.ray_workers import RayWorkers, connect

    connect()
    return RayWorkers(teacher, config)


def _drive(
    workers: Workers,
    config: DistillConfig,
    folder: RunFolder,
    state: dict[str, Any] | None,
    display: Display,
    student: Model,
    watch: Watch | None,
    mirror: Mirror | None,
) -> tuple[Progress, dict[str, Any]]:
    metrics = Metrics(folder.path)
    last_row = last_checkpoint = time.perf_counter()
    snapshots = 0 if state is None else snapshots_due(config, state["progress"]["seconds"])

    def save(loop: Loop) -> None:
        try:
            folder.save_checkpoint(loop.state_dict())
        except OSError as error:
            display.note(f"warning: {error}; the run goes on, the checkpoint before it stays")
        if mirror:
            mirror.start_upload(display.note)

    def write_row(loop: Loop) -> None:
        try:
            metrics.write(loop.progress)
        except OSError as error:
            display.note(f"warning: metrics.csv: {error.strerror}; the run goes on")

    def current_student() -> Model:
        weights = workers.read(workers.student_weights())
        student.network.load_state_dict({name: torch.tensor(array) for name, array in weights.tensors.items()})
        return student

    def keep_snapshot(loop: Loop) -> None:
        try:
            folder.save_snapshot(loop.progress.seconds, current_student())
        except (OSError, SafetensorError) as error:
            display.note(f"warning: snapshots: {error}; the run goes on")

    def report(loop: Loop) -> None:
        nonlocal last_row, last_checkpoint, snapshots
        now = time.perf_counter()
        display.show(loop.progress)
        if snapshots_due(config, loop.progress.seconds) > snapshots and loop.progress.spent < 1.0:
            keep_snapshot(loop)
            snapshots = snapshots_due(config, loop.progress.seconds)
        if now - last_row >= METRICS_SECONDS:
            write_row(loop)
            workers.publish(vars(loop.progress))
            last_row = now
        if now - last_checkpoint >= config.checkpoint_seconds:
            save(loop)
            last_checkpoint = time.perf_counter()
        if watch is not None:
            now = time.perf_counter()
            watch(loop, current_student)
            loop.idle += time.perf_counter() - now

    with interruptible() as stop:
        loop = Loop(workers, config, stop, report)
        if state is not None:
            loop.load_state_dict(state)
        try:
            progress = loop.run()
        except WorkerLost as error:
            how = resuming(config, folder)
            raise UserError(f"an actor died and cannot be replaced ({error}); go on with: {how}") from error
        finally:
            write_row(loop)
            metrics.close()
        save(loop)
        if stop() and progress.spent < 1.0:
            raise Interrupted(f"interrupted; go on with: {resuming(config, folder)}")
    return progress, workers.learner_state()


def resuming(config: DistillConfig, folder: RunFolder) -> str:
    """The command that goes on with a run."""
    if is_address(config.out):
        return f"the same command and --resume, from {config.out}"
    return f"gasim distill {folder.path}/config.yaml --resume"


def snapshots_due(config: DistillConfig, seconds: float) -> int:
    """How many copies of the student should have been kept by then."""
    return int(seconds / config.snapshot_seconds) if config.snapshot_seconds else 0


def _finish(
    folder: RunFolder,
    config: DistillConfig,
    student: Model,
    learner: dict[str, Any],
    progress: Progress,
) -> None:
    student.network.load_state_dict(learner["student"])
    save_model(with_source(student, method=config.method, seed=config.seed), folder.student)
    pool = learner["pool"]
    shown = torch.randperm(len(pool["losses"]), generator=torch.Generator().manual_seed(0))[:SAMPLES]
    save_samples(
        folder.path / "samples.png",
        pool["observations"].cpu()[shown].numpy(),
        pool["logits"].cpu()[shown].numpy(),
        student.config.observation,
    )
    folder.write_summary(
        {
            "task": Path(config.teacher).name,
            "method": config.method,
            "knowledge": knowledge_level(config),
            "seed": config.seed,
            "teacher": config.teacher,
            "student": f"{config.out or folder.path}/student",
            "metric": None,
            "teacher_score": None,
            "student_score": None,
            "controls": {},
            "agreement": progress.agreement,
            "wall_seconds": progress.seconds,
            "synthetic_observations": progress.observations,
            "generator_actors": config.generator.actors,
            "device": config.device,
            "versions": versions(),
        }
    )


def knowledge_level(config: DistillConfig) -> Knowledge:
    """What the run knows beyond bounds and weights: the most that its priors, blur or shifted views assume."""
    level = most_knowledge(config.generator.prior)
    assumes_pictures = config.generator.blur > 0 or config.generator.views > 1
    return "generic" if level == "bounds" and assumes_pictures else level


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a flag, so that a run ends between two steps; a second one kills.

    Outside the main thread nothing can be caught, and nothing is.
    """
    caught: list[int] = []
    before: dict[int, Any] = {}

    def catch(number: int, frame: object) -> None:
        caught.append(number)
        signal.signal(number, before[number])
        print("stopping after this step; once more stops at once", file=sys.stderr)

    if threading.current_thread() is threading.main_thread():
        before.update({number: signal.signal(number, catch) for number in (signal.SIGINT, signal.SIGTERM)})
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
