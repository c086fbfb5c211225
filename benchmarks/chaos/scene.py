"""A distillation in a process of its own on a cluster of its own, watched while something is done to it."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import yaml

from benchmarks.cells import ROOT
from benchmarks.chaos.cluster import Cluster
from gasim_ray.errors import UserError
from gasim_ray.run_folder import RunFolder

#: Seconds between two looks at a run; its metrics get a row a second.
LOOK_SECONDS = 0.2
#: A run may take so many times its budget.
PATIENCE = 4.0
#: Seconds in which a run's actors are gone after its end.
RELEASE_SECONDS = 15.0


@dataclass(frozen=True)
class Look:
    """What was seen of a run."""

    #: Of this process's clock.
    at: float
    #: Of distillation.
    seconds: float
    observations: int


@dataclass
class Scene:
    """One run and what is seen of it."""

    cluster: Cluster
    #: The run's folder; its configuration lies beside it.
    run: Path
    tree: dict[str, object]
    process: subprocess.Popen[bytes] | None = None
    looks: list[Look] = field(default_factory=list)
    #: When faults were made.
    faults: list[float] = field(default_factory=list)
    #: When it was resumed.
    resumed: list[float] = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)
    #: Actors that still ran some time after a process had ended.
    orphans: int = 0

    @property
    def log(self) -> Path:
        """What the run's processes said."""
        return self.run.with_suffix(".log")

    def start(self, resume: bool = False) -> None:
        """Begin, or go on; on the cluster as it is then."""
        self.resumed += [time.monotonic()] if resume else []
        self.run.parent.mkdir(parents=True, exist_ok=True)
        file = self.run.with_suffix(".yaml")
        file.write_text(yaml.safe_dump({**self.tree, "out": str(self.run)}))
        command = [*self.cluster.driver(), sys.executable, "-m", "benchmarks.chaos.driver", "distill", str(file)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--resume"] if resume else command,
                env={**self.cluster.environment, "PYTHONPATH": str(ROOT.parent)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def look(self) -> Look:
        """How far the run is by its metrics; 0 before the first row."""
        seconds, observations = 0.0, 0
        with suppress(OSError, IndexError, ValueError, KeyError, TypeError):  # it is being written
            row = list(csv.DictReader((self.run / "metrics.csv").open()))[-1]
            seconds, observations = float(row["seconds"]), int(row["observations"])
        seen = Look(time.monotonic(), seconds, observations)
        self.looks.append(seen)
        return seen

    def running(self) -> bool:
        """Whether the process has not ended."""
        assert self.process is not None
        return self.process.poll() is None

    def watch(self, until_seconds: float = float("inf"), patience: float = float("inf")) -> None:
        """Look on until so many seconds are distilled, or the process ends, or patience does."""
        deadline = time.monotonic() + patience
        while self.running() and self.look().seconds < until_seconds and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)

    def fault(self) -> None:
        """Note that a fault is made now."""
        self.look()
        self.faults.append(time.monotonic())

    def end(self, budget: float) -> None:
        """Look on until the process has ended and its actors are gone. Raises UserError if it does not end."""
        assert self.process is not None
        self.watch(patience=PATIENCE * budget + 60)
        if self.running():
            self.process.kill()
            self.process.wait()
            raise UserError(f"chaos: the run did not end; see {self.log}")
        self.exit_codes.append(self.process.wait())
        self.look()
        deadline = time.monotonic() + RELEASE_SECONDS
        while self.actors() and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
        self.orphans += len(self.actors())

    def lost(self) -> tuple[float, int]:
        """Seconds of distillation and observations by which the run went back, all faults together."""
        seconds, observations = 0.0, 0
        seen = [look for look in self.looks if look.seconds]  # not while the metrics are written anew
        for before, after in pairwise(seen):
            if after.seconds < before.seconds:
                seconds += before.seconds - after.seconds
                observations += before.observations - after.observations
        return seconds, observations

    def recovery_seconds(self) -> float | None:
        """The longest time from a fault until the run was further than ever before; None if it never was.

        A run that goes on for a moment and then goes back has not recovered before it has made good what it lost, and
        one that a user has to resume not before that.
        """
        longest, seen = 0.0, [look for look in self.looks if look.seconds]
        for at, next_fault in pairwise([*self.faults, float("inf")]):
            window = [look for look in seen if at < look.at < next_fault]
            backs = [after.at for before, after in pairwise(window) if after.seconds < before.seconds]
            begun = max([at, *backs, *(again for again in self.resumed if again < next_fault)])
            furthest = max((look.observations for look in seen if look.at < begun or look.at <= at), default=0)
            further = [look.at - at for look in window if look.at >= begun and look.observations > furthest]
            if not further:
                return None
            longest = max(longest, further[0])
        return longest

    def actors(self, kind: str = "") -> list[int]:
        """The processes of the run's actors, or of one kind."""
        kinds = ("GeneratorActor", "LearnerActor")
        return [p for name in kinds if name.startswith(kind) for p in self.cluster.processes(f"ray::{name}")]

    @property
    def folder(self) -> RunFolder:
        """The run's files."""
        return RunFolder(self.run)
