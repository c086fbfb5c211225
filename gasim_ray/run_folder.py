"""A run on disk: configuration, metrics, checkpoint, student, summary.

Files that a later command reads are written beside their place and then renamed, so a crash or a full disk leaves the
last good one.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shlex import quote
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy.typing as npt
import torch
import yaml
from torch.utils.tensorboard import SummaryWriter

from gasim_ray.actors.loop import Progress
from gasim_ray.config import TEACHER_COPY, DistillConfig, dotted, of_whole, parse_config, plain, teacher_facts
from gasim_ray.core.model import Model, has_model, load_model, model_files, same_model, save_model
from gasim_ray.errors import NotWritten, UserError, one_line
from gasim_ray.methods import preset
from gasim_ray.teachers.folder import replaced_folder

#: Settings that may differ between a run and its continuation.
FREE_ON_RESUME = (
    "budget",
    "checkpoint_seconds",
    "out",
    "snapshot_seconds",
    "elastic",
    "student.node_label",
    "student.cpus",
    "generator.cpus",
    "generator.timeout",
)
#: The same of asynchronous runs, of which a checkpoint holds no generator's state.
FREE_WITHOUT_ORDER = ("device", "generator.actors", "generator.gpus", "actor_settings")


#: What a run and a sweep's trial write; in a folder that holds anything else nothing is replaced.
WRITTEN = re.compile(
    r"config\.yaml|(summary|trial)\.json|metrics\.csv|events\.out\..*|(samples|worst)\.png|checkpoint|snapshots|student"
    r"|teacher|controls|.*\.partial"
)


def fixed(config: DistillConfig) -> dict[str, Any]:
    """The settings, by dotted key, that a run keeps when it goes on."""
    free = FREE_ON_RESUME + (() if config.ordered else FREE_WITHOUT_ORDER)
    settings = dotted(plain(asdict(config)))
    return {key: value for key, value in settings.items() if key not in free and key.split(".")[0] not in free}


def check_only_run(place: object, names: Iterable[str]) -> None:
    """Raise UserError if something lies in a run's place that no run writes."""
    other = sorted(name for name in names if not WRITTEN.fullmatch(name))
    if other:
        raise UserError(f"out: {place} holds {other[0]}, which is no part of a run; --overwrite leaves it alone")


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file as a whole; raises OSError, the old file intact, if it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def save_tensors(path: Path, state: dict[str, Any], previous: Path | None = None) -> None:
    """Replace a file of tensors as a whole, and keep what it was as `previous`.

    Raises OSError, what was there intact, if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        torch.save(state, partial)
        if previous and path.exists():
            path.replace(previous)
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise NotWritten(f"{path}: not written ({one_line(error)})") from error


def clear_folder(path: Path, marker: str, what: str, overwrite: bool) -> None:
    """Leave nothing in the folder where a run or a sweep is to begin; raises as `check_clear`."""
    check_clear(path, marker, what, overwrite)
    if path.exists():
        shutil.rmtree(path)


def check_clear(path: Path, marker: str, what: str, overwrite: bool) -> None:
    """Raise UserError unless a run or a sweep may begin in the folder; the file `marker` tells that one was there.

    It may not if there is one and `overwrite` is off, and in any case if what is there is something else.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"out: {path} is a file; give a folder")
    if path.exists() and any(path.iterdir()):
        if not overwrite:
            raise UserError(f"out: {path} exists; go on with --resume, or replace it with --overwrite")
        if not (path / marker).exists():
            raise UserError(f"out: {path} holds something else than {what}, which --overwrite leaves alone")


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for package in ("gasim-ray", "torch", "ray", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def read_state(path: Path) -> dict[str, Any]:
    """A checkpoint, on the CPU; raises UserError if it is not there or damaged."""
    try:
        with ZipFile(path) as archive:  # PyTorch writes sums, and does not look at them
            if damaged := archive.testzip():
                raise BadZipFile(damaged)
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError as error:
        raise UserError(f"out: {path.parent.parent} holds no checkpoint to resume from ({path})") from error
    except Exception as error:
        # PyTorch's own text advises to open what may run code.
        raise UserError(f"{path}: cannot be read ({type(error).__name__}); start again with --overwrite") from error
    return state


def saved_config(run: Path) -> DistillConfig:
    """The configuration of a run; raises UserError if there is none."""
    if not (run / "config.yaml").exists():
        raise UserError(f"{run}: no run there (config.yaml is missing)")
    return parse_config([], str(run / "config.yaml"))


@contextmanager
def alone_in(run: Path, marker: str = "config.yaml") -> Iterator[None]:
    """Hold the folder of a run (or of what has the marker), if there is one, against other processes.

    Raises UserError if one of them has it.
    """
    if not (run / marker).exists():
        yield
        return
    folder = os.open(run, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(folder)
        raise UserError(f"out: another process is at work in {run}; wait for its end, or work in another") from error
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        os.close(folder)


def _is_row(row: dict[str, str], names: Sequence[str]) -> bool:
    """Whether a row of metrics.csv is whole, as it may not be after a power cut."""
    try:
        return set(row) == set(names) and float(row["seconds"]) >= 0
    except (TypeError, ValueError):
        return False


class RunFolder:
    """The folder of one distillation."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint" / "state.pt"
        #: The one before it.
        self.previous = path / "checkpoint" / "previous.pt"
        self.student = path / "student"
        #: What it was distilled from, a copy.
        self.teacher = path / TEACHER_COPY
        self.snapshots = path / "snapshots"
        #: Written when the run is done.
        self.summary = path / "summary.json"

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is anything to go on from."""
        return self.checkpoint.exists() or self.previous.exists()

    def check_clear(self, overwrite: bool) -> None:
        """Raise UserError if there is a run and `overwrite` is off, and in any case if what is there is no run."""
        if overwrite and (self.path / "config.yaml").exists():
            check_only_run(self.path, (path.name for path in self.path.iterdir()))
        check_clear(self.path, "config.yaml", "a run", overwrite)

    def begin(self, config: DistillConfig, overwrite: bool) -> None:
        """Make the folder and write config.yaml; raises as `check_clear`."""
        self.check_clear(overwrite)
        teacher = Path(config.teacher)
        files = model_files(teacher)
        if teacher.resolve().is_relative_to(self.path.resolve()):  # and goes with it
            config = replace(config, teacher=str(self.teacher))
        clear_folder(self.path, "config.yaml", "a run", overwrite)
        self.write_config(config)
        self._keep_teacher(files)

    def go_on(self, config: DistillConfig) -> None:
        """Write what a run that goes on may have changed, the budget say, and the teacher if its copy is not whole."""
        self.write_config(config)
        if not has_model(self.teacher):
            self._keep_teacher(model_files(Path(config.teacher)))
        self.summary.unlink(missing_ok=True)

    def _keep_teacher(self, files: Mapping[str, bytes]) -> None:
        try:
            for name, content in files.items():
                write_atomically(self.teacher / name, content)
        except OSError as error:
            raise UserError(f"out: {self.path} cannot be written ({error.strerror})") from error

    def write_config(self, config: DistillConfig) -> None:
        """Write config.yaml, under the versions that run it; raises UserError if it cannot be."""
        header = "".join(f"# {name} {number}\n" for name, number in versions().items())
        try:
            write_atomically(self.path / "config.yaml", (header + config.to_yaml()).encode())
        except OSError as error:
            raise UserError(f"out: {self.path} cannot be written ({error.strerror})") from error

    def resume(self, config: DistillConfig) -> tuple[DistillConfig, dict[str, Any]]:
        """The configuration as the run goes on with it, and the checkpoint's state.

        Raises UserError if there is no checkpoint or it belongs to other settings. If the last one is damaged or
        missing, the one before is taken, with a warning.
        """
        state, before = self.last_state(), self._settings()
        # Nobody gave what is the preset's, which may have been another when the run began: it keeps its own. A setting
        # that an older version did not have is as it was then: off.
        usual = dotted(preset(config.method, teacher_facts(config.teacher)))
        off = dotted(plain(asdict(DistillConfig(config.teacher))))
        tree, kept = plain(asdict(config)), fixed(config)
        if has_model(self.teacher):
            teacher = Path(kept.pop("teacher"))  # which may lie elsewhere now
            if not same_model(self.teacher, teacher):
                raise UserError(f"teacher: {teacher} is not the one that the run began with, {self.teacher}; give that")
        for key, value in kept.items():
            was = before.get(key, off[key])
            if was != value and key in usual and value == plain(usual[key]):
                section, _, name = key.rpartition(".")
                (tree[section] if section else tree)[name] = was
            elif was != value:
                raise UserError(
                    f"{key}: {value} differs from {was} of the run in {self.path}; leave it out, or use another --out"
                )
        self.forget_after(state["progress"]["seconds"])
        return of_whole(tree), state

    def _settings(self) -> dict[str, Any]:
        """The run's settings by dotted key."""
        try:
            return dotted(yaml.safe_load((self.path / "config.yaml").read_text()))
        except (OSError, yaml.YAMLError, AttributeError) as error:
            raise UserError(f"{self.path}/config.yaml: cannot be read ({type(error).__name__})") from error

    def last_state(self) -> dict[str, Any]:
        """The newest checkpoint that can be read; raises UserError if there is none."""
        try:
            return read_state(self.checkpoint)
        except UserError:
            if not self.previous.exists():
                raise
            state = read_state(self.previous)
            print(f"warning: {self.checkpoint} is damaged or missing; the one before it is taken", file=sys.stderr)
            return state

    def forget_after(self, seconds: float) -> None:
        """Remove rows and copies of the student that belong to a course which was given up."""
        for snapshot in self.snapshots.glob("*.?"):
            if float(snapshot.name) > seconds:
                shutil.rmtree(snapshot)
        path = self.path / "metrics.csv"
        if not path.exists():
            return
        names, kept = list(vars(Progress())), io.StringIO(newline="")
        with path.open(newline="", errors="replace") as file:
            rows = [row for row in csv.DictReader(file) if _is_row(row, names) and float(row["seconds"]) <= seconds]
        writer = csv.DictWriter(kept, names)
        writer.writeheader()
        writer.writerows(rows)
        try:
            write_atomically(path, kept.getvalue().encode())
        except OSError as error:
            raise UserError(f"out: {path} cannot be written ({error.strerror})") from error

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write what `resume` reads and keep the checkpoint before it.

        Raises OSError, the last checkpoint intact, if it cannot be written.
        """
        save_tensors(self.checkpoint, state, self.previous)

    def save_snapshot(self, seconds: float, student: Model) -> None:
        """Keep a copy of the student as it was after so many seconds; it appears when it is whole."""
        with replaced_folder(self.snapshots / f"{seconds:08.1f}") as folder:
            save_model(student, folder)

    def read_snapshots(self) -> dict[float, Model]:
        """Seconds -> the student as it was then, in order of time."""
        return {float(folder.name): load_model(folder) for folder in sorted(self.snapshots.glob("*.?"))}

    def pool(self) -> npt.NDArray[Any]:
        """The invented observations (N, *spec.shape) in the checkpoint; raises UserError if it cannot be read."""
        observations: npt.NDArray[Any] = read_state(self.checkpoint)["learner"]["pool"]["observations"].numpy()
        return observations

    def write_summary(self, entries: dict[str, Any]) -> None:
        """Write summary.json."""
        write_atomically(self.summary, (json.dumps(entries, indent=1) + "\n").encode())

    def read_summary(self) -> dict[str, Any]:
        """What `write_summary` wrote; raises UserError if there is no readable summary."""
        path = self.summary
        try:
            summary: dict[str, Any] = json.loads(path.read_text())
        except FileNotFoundError as error:
            how = f"finish it with: gasim distill {quote(str(self.path))}/config.yaml --resume"
            raise UserError(f"{self.path}: has no summary.json, the run has not ended; {how}") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not readable as JSON ({error})") from error
        return summary


class Metrics:
    """metrics.csv and TensorBoard events, a row each time."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.csv"
        self.events = SummaryWriter(str(folder))

    def write(self, progress: Progress) -> None:
        """Add one row."""
        row = vars(progress)
        new = not self.path.exists()
        # Opened for each, since `forget_after` puts another file in its place.
        with self.path.open("a", newline="") as file:
            rows = csv.DictWriter(file, list(row))
            if new:
                rows.writeheader()
            rows.writerow(row)
        for name, value in row.items():
            self.events.add_scalar(name, value, progress.student_steps)

    def close(self) -> None:
        """Flush the events."""
        self.events.close()
