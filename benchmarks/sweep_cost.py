"""What a sweep costs beside a shell loop: the same short distillations, as many at once, once by each, in turn."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from gasim_ray.config import DistillConfig, plain

#: Distillations of each side, and how many of them run at once.
TRIALS, CONCURRENT = 8, 2
#: Student steps of each.
STEPS = 1500
#: Times that each side is measured.
REPEATS = 2


def measure_cost(config: DistillConfig) -> dict[str, Any]:
    """Seconds of a sweep over those of the loop; the median of the pairs' ratios."""
    tree = plain(asdict(config))
    tree["budget"] = {"student_steps": STEPS}
    tree["student"]["cpus"], tree["generator"]["cpus"], tree["generator"]["actors"] = 0.5, 0.5, 1
    tree["teacher"] = str(Path(config.teacher).resolve())
    with tempfile.TemporaryDirectory() as folder:
        pairs = [
            (by_sweep(tree, Path(folder) / f"{n}a"), by_loop(tree, Path(folder) / f"{n}b")) for n in range(REPEATS)
        ]
    return {
        "ratio": median(first / second for first, second in pairs),
        "seconds": [median(column) for column in zip(*pairs, strict=True)],
        "repeats": REPEATS,
        "wall_seconds": sum(sum(pair) for pair in pairs),
        "synthetic_observations": None,
        "student_parameters": None,
    }


def by_sweep(tree: dict[str, Any], folder: Path) -> float:
    """Seconds that `gasim tune` takes over one seed after another."""
    folder.mkdir()
    sweep = {
        "base": tree,
        "space": {"seed": {"grid": list(range(TRIALS))}},
        "searcher": "grid",
        "concurrent": CONCURRENT,
        "reports": 1,
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    started = time.perf_counter()
    gasim("tune", str(folder / "sweep.yaml"), "--out", str(folder / "out"))
    return time.perf_counter() - started


def by_loop(tree: dict[str, Any], folder: Path) -> float:
    """Seconds that the shell takes over as many `gasim distill`."""
    folder.mkdir()
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "gasim_ray", "distill", str(folder / "run.yaml"), "--seed", "{}", "--out"]
    started = time.perf_counter()
    subprocess.run(
        ["xargs", "-P", str(CONCURRENT), "-I{}", *command, f"{folder}/{{}}"],
        input="\n".join(map(str, range(TRIALS))),
        check=True,
        text=True,
        capture_output=True,
    )
    return time.perf_counter() - started


def gasim(*arguments: str) -> None:
    """Run a command of the program; raises CalledProcessError if it fails."""
    subprocess.run([sys.executable, "-m", "gasim_ray", *arguments], check=True, capture_output=True)
