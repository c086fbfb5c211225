"""One distillation from configuration to student: what `gasim distill` runs, and what other code may call."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from safetensors import SafetensorError

from gasim_ray.actors.loop import Loop, Progress
from gasim_ray.actors.workers import LocalWorkers, WorkerLost, Workers, described_start, make_prior, make_student
from gasim_ray.config import DistillConfig, kinds_of
from gasim_ray.core.device import check_device_is_there
from gasim_ray.core.distill import check_objective, with_source
from gasim_ray.core.mixture import most_knowledge
from gasim_ray.core.model import Model, save_model
from gasim_ray.core.prior import Knowledge, random_observations
from gasim_ray.errors import UserError
from gasim_ray.report.display import Display
from gasim_ray.report.samples import save_samples
from gasim_ray.run_folder import Metrics, RunFolder, alone_in, versions
from gasim_ray.storage import Mirror, is_address
from gasim_ray.teachers import load_teacher

#: Seconds between rows of metrics.csv.
METRICS_SECONDS = 1.0
#: Times in a run that a lost learner is started anew.
LEARNER_LOSSES = 10
#: Observations shown in samples.png.
SAMPLES = 512


#: Called after each step of the loop, with a function that gives the student as it is then.
Watch = Callable[[Loop, Callable[[], Model]], None]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or its caller, ended the run; a checkpoint was written."""


def distill(
    config: DistillConfig,
    display: Display,
    resume: bool = False,
    overwrite: bool = False,
    watch: Watch | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Distil the teacher into a student; returns the run's folder, which is gone if `out` is an address.

    With `resume` and `overwrite` it goes on if there is a checkpoint, and else begins, for jobs that are tried again.
    `watch` may raise to end the run. `stop`, asked after each step, ends it with a checkpoint, as Ctrl-C does.

    Raises UserError for what the user can mend, and Interrupted when it was stopped.
    """
    if config.local:  # on a cluster the actors' machines have to have it
        check_device_is_there(config.device)
    teacher = load_teacher(Path(config.teacher))
    with ExitStack() as held, Mirror(config.out) if is_address(config.out) else nullcontext() as mirror:
        folder = RunFolder(mirror.folder if mirror else config.run_folder())
        if mirror and resume and not mirror.download() and not overwrite:
            raise UserError(f"out: no run at {config.out} (config.yaml is missing)")
        held.enter_context(alone_in(folder.path))
        state = None
        if resume and (folder.has_checkpoint or not overwrite):
            config, state = folder.resume(config)
        student = checked_student(teacher, config)
        if state is None:
            (mirror or folder).check_clear(overwrite)  # `begin` asks again, once the actors have started
        elif folder.summary.exists() and ended(config, state):
            display.note(f"{config.out or folder.path} is finished; give more of its budget to go on")
            return folder.path
        workers = start_workers(teacher, config if state is None else continuing(config))
        try:
            display.run = config.run_folder().name
            if state is None:
                held.close()
                with alone_in(folder.path):  # another process may have begun there meanwhile
                    begin(folder, config, overwrite, mirror)
                held.enter_context(alone_in(folder.path))
                display.note(described_start(student, teacher, config))
            else:
                folder.go_on(config)
            recorder = _Recorder(workers, config, folder, display, student, mirror)
            with interruptible() as caught, closing(recorder.metrics):
                progress, learner = _drive(recorder, state, watch, lambda: caught() or stop())
                if progress.spent < 1.0:
                    raise Interrupted(f"interrupted; go on with: {resuming(config, folder)}")
        finally:
            workers.close()
        if not progress.observations:
            raise UserError(
                f"budget: no batch came in {progress.seconds:.0f} s; give more budget.seconds, or less to do "
                "(generator.steps, generator.batch_size)"
            )
        try:
            _finish(folder, config, student, learner, progress)
        except OSError as error:
            how = f"free some space and go on with: {resuming(config, folder)}"
            raise UserError(f"out: {folder.path} cannot be written ({error}); {how}") from error
        return folder.path


def checked_student(teacher: Model, config: DistillConfig) -> Model:
    """The student with fresh weights; raises UserError if it, the teacher or an actor cannot do as the settings say."""
    check_computing(config, teacher)
    student = make_student(teacher, config, make_prior(teacher, config, "cpu"))
    check_computing(config, student)
    check_actors(teacher, config)
    return student


def check_computing(config: DistillConfig, model: Model) -> None:
    """Have the network compute as the settings say; raises UserError if it answers otherwise and not so, on a CPU."""
    for name in ("bf16", "channels_last") if config.device == "cpu" else ():
        if getattr(config, name):
            model.computing(bf16=name == "bf16", channels_last=name == "channels_last")
            try:
                with torch.no_grad():
                    model(random_observations(model, 2))
            except Exception as error:  # whatever a network of the user's raises
                why = f"{type(error).__name__}: {error}"
                raise UserError(f"{name}: {model.config.architecture['name']} cannot ({why}); leave it out") from error
    model.computing(config.bf16, config.channels_last)


def check_actors(teacher: Model, config: DistillConfig) -> None:
    """Raise UserError if a generator actor could not do with this teacher what the settings, or its own, say."""
    for index, own in enumerate(kinds_of(config)):
        try:
            check_objective(teacher, own.generator, own.objective)
            if config.actor_settings:
                make_prior(teacher, own, "cpu")
        except UserError as error:
            # A kind without anything of its own fails by the common settings.
            own_tree = dict(enumerate(config.actor_settings)).get(index)
            raise UserError(f"actor_settings[{index}]: {error}" if own_tree else str(error)) from error


def begin(folder: RunFolder, config: DistillConfig, overwrite: bool, mirror: Mirror | None) -> None:
    """Make the folder, and the address if there is one; raises UserError if either is taken or cannot be written."""
    try:
        folder.begin(config, overwrite)  # first: what the address holds may be the last copy of the teacher
        if mirror:
            mirror.claim(overwrite)
            mirror.begin()
    except OSError as error:
        raise UserError(f"out: {folder.path} cannot be written ({error.strerror})") from error


def ended(config: DistillConfig, state: dict[str, Any]) -> bool:
    """Whether a checkpoint's run has spent its budget."""
    p = Progress(**state["progress"])
    return config.budget.spent(p.seconds, p.observations, p.student_steps) >= 1.0


def continuing(config: DistillConfig) -> DistillConfig:
    """The settings for workers that a checkpoint is restored to: where its student started is not worked out again."""
    return replace(config, student=replace(config.student, init="random"))


def start_workers(teacher: Model, config: DistillConfig) -> Workers:
    """Generators and learner, in this process or on Ray."""
    if config.local:
        return LocalWorkers(teacher, config)
    # Only here, so that a local run needs no Ray.
    from gasim_ray.actors.ray_workers import RayWorkers, connect

    connect()
    return RayWorkers(teacher, config)


class _Recorder:
    """Writes what a run leaves behind while its loop goes on: rows, checkpoints, copies of the student."""

    def __init__(
        self,
        workers: Workers,
        config: DistillConfig,
        folder: RunFolder,
        display: Display,
        student: Model,
        mirror: Mirror | None,
    ) -> None:
        self.workers, self.config, self.folder = workers, config, folder
        self.display, self.student, self.mirror = display, student, mirror
        self.metrics = Metrics(folder.path)
        self.last_row = self.last_checkpoint = time.perf_counter()
        self.snapshots = 0

    def report(self, loop: Loop) -> None:
        """Write what is due after a step of the loop."""
        now = time.perf_counter()
        self.display.show(loop.progress)
        due = snapshots_due(self.config, loop.progress.seconds)
        if due > self.snapshots and loop.progress.spent < 1.0:
            self.keep_snapshot(loop)
            self.snapshots = due
        if now - self.last_row >= METRICS_SECONDS:
            self.write_row(loop)
            self.workers.publish(vars(loop.progress))
            self.last_row = now
        if now - self.last_checkpoint >= self.config.checkpoint_seconds:
            self.save(loop)

    def save(self, loop: Loop) -> None:
        """Write a checkpoint; a disk that does not take it costs only that."""
        begun = time.perf_counter()
        try:
            self.folder.save_checkpoint(loop.state_dict())
        except OSError as error:
            self.display.note(f"warning: {error}; the run goes on, the checkpoint before it stays")
        if self.mirror:
            self.mirror.start_upload(self.display.note)
        # Counted from the beginning, so that no more is lost; but where writing takes long, not all is writing.
        self.last_checkpoint = max(begun, time.perf_counter() - self.config.checkpoint_seconds / 2)

    def go_back(self) -> dict[str, Any] | None:
        """The last checkpoint, as if the run had been stopped there; None if there is none yet."""
        if self.folder.has_checkpoint:
            return self.folder.resume(self.config)[1]
        self.folder.forget_after(0.0)
        return None

    def write_row(self, loop: Loop) -> None:
        """Add a row to metrics.csv."""
        try:
            self.metrics.write(loop.progress)
        except OSError as error:
            self.display.note(f"warning: metrics.csv: {error.strerror}; the run goes on")

    def current_student(self) -> Model:
        """The student as it is now."""
        weights = self.workers.read(self.workers.student_weights())
        self.student.network.load_state_dict({name: torch.tensor(array) for name, array in weights.tensors.items()})
        return self.student

    def keep_snapshot(self, loop: Loop) -> None:
        """Keep a copy of the student."""
        student = self.current_student()
        try:
            self.folder.save_snapshot(loop.progress.seconds, student)
        except (OSError, SafetensorError, UserError) as error:
            self.display.note(f"warning: snapshots: {error}; the run goes on")


def _drive(
    recorder: _Recorder, state: dict[str, Any] | None, watch: Watch | None, stop: Callable[[], bool]
) -> tuple[Progress, dict[str, Any]]:
    """Run the loop to the end of its budget: its last progress and the learner's state.

    After a lost learner everything is started anew from the last checkpoint, except where somebody watches the run.
    """
    workers, config, losses = recorder.workers, recorder.config, 0

    def report(loop: Loop) -> None:
        recorder.report(loop)
        if watch is not None:
            now = time.perf_counter()
            watch(loop, recorder.current_student)
            loop.idle += time.perf_counter() - now

    while True:
        try:
            if losses:
                workers.restart()
                state = recorder.go_back()
            recorder.snapshots = 0 if state is None else snapshots_due(config, state["progress"]["seconds"])
            loop = Loop(workers, config, stop, report, recorder.display.note)
            if state is not None:
                loop.load_state_dict(state)
            progress = loop.run()
            recorder.write_row(loop)
            recorder.save(loop)
            return progress, workers.learner_state()
        except WorkerLost as error:
            losses += 1
            if watch is not None or losses > LEARNER_LOSSES:
                how = resuming(config, recorder.folder)
                raise UserError(f"the learner was lost ({error}); go on with: {how}") from error
            recorder.display.note(f"warning: the learner was lost ({error}); going on from the last checkpoint")


def resuming(config: DistillConfig, folder: RunFolder) -> str:
    """The command that goes on with a run."""
    if is_address(config.out):
        return f"the same command and --resume, from {config.out}"
    return f"gasim distill {quote(str(folder.path))}/config.yaml --resume"


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
        pool["answers"].cpu()[shown, : student.config.actions].numpy(),
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
    """What the run knows beyond bounds and weights: the most that its priors, blur, shifted views or terms assume."""
    configs = [config, *kinds_of(config)]
    level = most_knowledge([name for own in configs for name in own.generator.prior])
    assumes_pictures = any(
        own.generator.views > 1
        or own.generator.blur > 0
        or own.objective.contrastive > 0
        or own.objective.total_variation > 0
        for own in configs
    )
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
