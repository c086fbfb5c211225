"""Faults that a run has to survive, each made for real and measured: the suite `chaos`."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

from benchmarks.cells import Cell
from benchmarks.chaos.cluster import Cluster
from benchmarks.chaos.faults import FAULTS, RESUMED
from benchmarks.chaos.scene import Scene
from gasim_ray.core.model import Model, load_model
from gasim_ray.core.settings import DEFAULT_SECONDS
from gasim_ray.errors import UserError


def measure_fault(cell: Cell) -> tuple[Model, dict[str, Any]]:
    """Distil on a cluster of two nodes while the fault of the cell's method is made: the student, and what it took.

    `recovered`: the run ended with 0, by itself or resumed after the exit code that the fault should give, and left a
    student and no actor behind. Work lost is what the run went back by, and recovery the longest time from a fault
    until the run was further than before; both to a second, which is how often metrics are written.

    Raises UserError for a method that is no fault, and if the run left no student.
    """
    if cell.method not in FAULTS:
        raise UserError(f"method: {cell.method!r} is no fault; one of {', '.join(FAULTS)}")
    budget = cell.config.budget.seconds or DEFAULT_SECONDS
    shutil.rmtree(cell.folder, ignore_errors=True)
    with Cluster() as cluster:
        scene = Scene(cluster, cell.folder.resolve() / "run", dict(cell.tree))
        FAULTS[cell.method](scene, budget)
    codes, lost = scene.exit_codes, scene.lost()
    if not (scene.folder.student / "config.json").exists():
        raise UserError(f"chaos: {cell.method} left no student (exit codes {codes}); see {scene.log}")
    summary = scene.folder.read_summary()
    return load_model(scene.folder.student), {
        "recovered": as_expected(codes, cell.method) and not scene.orphans,
        "exit_codes": codes,
        "orphans": scene.orphans,
        "restarts": int(last_row(scene.run)["restarts"]),
        "lost_seconds": lost[0],
        "lost_observations": lost[1],
        "recovery_seconds": scene.recovery_seconds(),
        "wall_seconds": summary["wall_seconds"],
        "synthetic_observations": summary["synthetic_observations"],
    }


def as_expected(codes: list[int], fault: str) -> bool:
    """Whether a run ended as it should, and had to be resumed only where it may."""
    if fault not in RESUMED:
        return codes == [0]
    first = RESUMED[fault]
    return len(codes) == 2 and codes[1] == 0 and codes[0] == (codes[0] if first is None else first)


def last_row(run: Path) -> dict[str, str]:
    """Where the run ended."""
    return list(csv.DictReader((run / "metrics.csv").open()))[-1]
