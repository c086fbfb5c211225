"""Records sweeps: python -m benchmarks.sweeps [NAME ...].

Each runs, or goes on with, tune_configs/NAME.yaml; then the best configuration and the presets `gasim` and `gas` distil
with fresh seeds at the same budget. A line of results/sweeps.jsonl says how far the objective, which sees neither
simulator nor data, ranks trials as their true scores do, and what the sweep found; the trials are kept beside it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich.console import Console
from scipy.stats import bootstrap, spearmanr

from benchmarks.cells import append_result, read_results
from benchmarks.provenance import provenance
from benchmarks.sweep_tables import FRESH_SEEDS, PRESETS, SUITE, TRIALS, score_of
from gasim_ray.actors.ray_workers import connect
from gasim_ray.config import DistillConfig, build_config, merged, read_yaml
from gasim_ray.core.model import load_model
from gasim_ray.errors import UserError, exit_code
from gasim_ray.evaluation.runs import task_of_teacher
from gasim_ray.evaluation.tasks import TEACHER
from gasim_ray.report.display import Display
from gasim_ray.run import distill
from gasim_ray.run_folder import RunFolder, write_atomically
from gasim_ray.teachers import load_teacher
from gasim_ray.tuning.folder import SweepFolder
from gasim_ray.tuning.run import resume_sweep, run_sweep
from gasim_ray.tuning.sweep import Sweep, parse_sweep

#: Seeds that no sweep uses.
FIRST_FRESH_SEED = 100
#: Episodes of each score, for policies.
EPISODES = 100
#: The true score is logged beside the objective; it steers nothing.
RECORDED = ("--evaluate.enabled=true", f"--evaluate.episodes={EPISODES}")
BEST = "best of the sweep"


def main() -> int:
    """Record the sweeps that are named, or all; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweeps", description=__doc__)
    parser.add_argument("names", nargs="*", help="by default all that have no line yet")
    names = parser.parse_args().names
    return exit_code("benchmarks", lambda: record_sweeps(names), "; the same command goes on")


def record_sweeps(names: Sequence[str]) -> None:
    """Record these sweeps, or for none those that have no line yet; raises UserError for a name that is not listed."""
    for name in names:
        if name not in FRESH_SEEDS:
            raise UserError(f"sweep: {name!r} is not recorded; one of {', '.join(FRESH_SEEDS)}")
    done = {line["task"] for line in read_results(SUITE)}
    for name in names or [name for name in FRESH_SEEDS if name not in done]:
        append_result(SUITE, record_sweep(name))


def record_sweep(name: str) -> dict[str, Any]:
    """Run what is left of a sweep and of the comparison after it; returns the line."""
    sweep = parse_sweep(Path("tune_configs") / f"{name}.yaml", RECORDED)
    folder, started = Path("runs") / "benchmarks" / SUITE / name, time.monotonic()
    resumed = SweepFolder(folder).sweep.exists()
    if resumed and SweepFolder(folder).sweep.read_text() != sweep.to_yaml():
        raise UserError(f"sweep: {folder} was begun with other settings than {name}.yaml has now; remove it")
    if resumed:
        resume_sweep(folder)
    else:
        run_sweep(sweep, folder)
    # Of a sweep that took several sittings only the last is known.
    wall = None if resumed else time.monotonic() - started
    TRIALS.mkdir(parents=True, exist_ok=True)
    trials = pd.read_csv(folder / "results.csv")
    # Paths are those of one machine.
    trials.drop(columns=["teacher", "out"]).to_csv(TRIALS / f"{name}.csv", index=False)
    scores = {
        who: [fresh_score(folder, who, config, seed) for seed in range(FRESH_SEEDS[name])]
        for who, config in contenders(sweep, folder).items()
    }
    teacher = load_teacher(sweep.tree()["teacher"])
    return {
        "suite": SUITE,
        "task": name,
        "method": f"{sweep.searcher}-{sweep.scheduler}",
        "group": SUITE,
        "seed": sweep.seed,
        "teacher_score": teacher.config.source.get("mean_return", teacher.config.source.get("test_accuracy")),
        "student_score": mean(scores[BEST]) if scores[BEST] else None,
        "controls": {preset: mean(scores[preset]) for preset in PRESETS if scores[preset]},
        "environment_steps": 0,
        "teacher_parameters": teacher.parameter_count,
        "trials": len(trials),
        "states": {str(state): int(count) for state, count in trials["state"].value_counts().items()},
        "rank_correlation": rank_correlation(trials, sweep),
        "scores": scores,
        "budget": dict(sweep.tree()["budget"]),
        "summary": (folder / "summary.txt").read_text().strip(),
        "wall_seconds": wall,
        **provenance(),
        "command": f"python -m benchmarks.sweeps {name}",
    }


def rank_correlation(trials: pd.DataFrame, sweep: Sweep) -> dict[str, Any]:
    """Spearman's between objective and true score over all trials that report both, with its 95 % interval.

    Positive where what the sweep searches for goes with a high score.
    """
    objective, direction = next(iter(sweep.objective.items()))
    metric = score_of(trials)
    known = trials[[objective, metric]].dropna()
    pairs = ((1 if direction == "max" else -1) * known[objective].to_numpy(), known[metric].to_numpy())
    interval = bootstrap(
        pairs,
        spearman,
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return {
        "objective": objective,
        "metric": metric,
        "trials": len(known),
        "value": spearman(*pairs),
        "low": float(interval.low),
        "high": float(interval.high),
    }


def spearman(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """Spearman's rank correlation; 0 where one of them is constant."""
    if len(set(first)) < 2 or len(set(second)) < 2:
        return 0.0
    return float(spearmanr(first, second).statistic)


def contenders(sweep: Sweep, folder: Path) -> dict[str, dict[str, Any]]:
    """The best configuration, and each preset with the sweep's teacher, student architecture and budget."""
    base = sweep.tree()
    best = read_yaml(str(folder / "best.yaml"))
    plain: dict[str, Any] = {key: base[key] for key in ("teacher", "budget") if key in base}
    architecture = {"student": {"architecture": base["student"]["architecture"]}}
    presets: dict[str, dict[str, Any]] = {name: merged(plain, architecture, {"method": name}) for name in PRESETS}
    return {BEST: {**best, "out": ""}, **presets}


def fresh_score(folder: Path, who: str, tree: Mapping[str, Any], number: int) -> float:
    """Distil with a fresh seed, unless it was done before so, and score the student on the task itself."""
    place = folder / "fresh" / f"{who.split()[0]}-{number}"
    config = build_config(merged(tree, {"seed": FIRST_FRESH_SEED + number, "out": str(place)}))
    kept = place / "score.json"
    done = json.loads(kept.read_text()) if kept.exists() else {}
    if not isinstance(done, dict) or done.get("config") != config.to_yaml():
        shutil.rmtree(place, ignore_errors=True)
        done = {"config": config.to_yaml(), "score": scored(config, place)}
        write_atomically(kept, json.dumps(done).encode())
    score: float = done["score"]
    return score


def scored(config: DistillConfig, place: Path) -> float:
    """One distillation's score."""
    connect()
    with Display(Console(stderr=True, quiet=True)) as display:
        distill(config, display, overwrite=True)
    shutil.rmtree(RunFolder(place).checkpoint.parent)
    task = task_of_teacher(config.teacher, EPISODES, local=True)
    return task.measure({TEACHER: load_model(RunFolder(place).student)})[0][TEACHER].interval.mean


if __name__ == "__main__":
    sys.exit(main())
