"""What a sweep costs beside a shell loop: the same short distillations, as many at once, once by each, in turn."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from gasim_ray.config import DistillConfig, plain

#: Distillations of each side, and how many of them run at once.
TRIALS, CONCURRENT = 8, 2
#: Student steps of each.
STEPS = 1500


def seconds_of(side: Callable[[dict[str, Any], Path], None]) -> Callable[[DistillConfig], float]:
    """Measures the seconds that a side takes over the distillations, in a folder of its own."""

    def measure(config: DistillConfig) -> float:
        tree = plain(asdict(config))
        tree["budget"] = {"student_steps": STEPS}
        tree["student"]["cpus"], tree["generator"]["cpus"], tree["generator"]["actors"] = 0.5, 0.5, 1
        tree["teacher"] = str(Path(config.teacher).resolve())
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            side(tree, Path(folder))
            return time.perf_counter() - started

    return measure


def by_sweep(tree: dict[str, Any], folder: Path) -> None:
    """`gasim tune` over the seeds."""
    sweep = {
        "base": tree,
        "space": {"seed": {"grid": list(range(TRIALS))}},
        "searcher": "grid",
        "concurrent": CONCURRENT,
        "reports": 1,
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    command = [sys.executable, "-m", "gasim_ray", "tune", str(folder / "sweep.yaml"), "--out", str(folder / "out")]
    subprocess.run(command, check=True, capture_output=True)


def by_loop(tree: dict[str, Any], folder: Path) -> None:
    """The shell, over as many `gasim distill`."""
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "gasim_ray", "distill", str(folder / "run.yaml"), "--seed", "{}", "--out"]
    subprocess.run(
        ["xargs", "-P", str(CONCURRENT), "-I{}", *command, f"{folder}/{{}}"],
        input="\n".join(map(str, range(TRIALS))),
        check=True,
        text=True,
        capture_output=True,
    )
