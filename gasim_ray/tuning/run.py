"""Runs a sweep: Ray Tune over distillations, in a folder that it can be taken up from."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from gasim_ray.actors.ray_workers import connect, lacking, reserved
from gasim_ray.config import build_config
from gasim_ray.errors import UserError
from gasim_ray.run import Interrupted
from gasim_ray.run_folder import write_atomically
from gasim_ray.tuning.live import LiveTable
from gasim_ray.tuning.results import TrialResult, collect, thin, unfinished, write_results
from gasim_ray.tuning.search import EXTRAS, drawn_settings, make_scheduler, make_searcher, require
from gasim_ray.tuning.space import Dimension, encoded, with_settings
from gasim_ray.tuning.sweep import TASK_METRICS, Sweep, parse_sweep
from gasim_ray.tuning.trial import POINT, TrialPlan, trainable
from gasim_ray.tuning.validation import Validation, make_validation

#: Files of a sweep's folder, beside Tune's own.
SWEEP_FILE, VALIDATION_FILE = "sweep.yaml", "validation.pt"
#: Tells whether the former was changed.
DIGEST_FILE = ".sweep.sha256"


def run_sweep(sweep: Sweep, folder: Path, overwrite: bool = False) -> Path:
    """Search from the beginning; returns the folder.

    Raises UserError for what the user can mend, before anything is written, and Interrupted after Ctrl-C.
    """
    space = check(sweep)
    begin(sweep, folder, overwrite)
    validation = make_validation(sweep.tree(), sweep.validation, sweep.seed)
    save_validation(validation, folder)
    drawn = drawn_settings(sweep, space)
    searcher = make_searcher(sweep, space)
    total = len(drawn) if drawn else sweep.trials
    single = len(sweep.objective) == 1 and searcher is None
    metric, mode = next(iter(sweep.objective.items()))
    scheduler = make_scheduler(sweep, space)
    tuner = tune.Tuner(
        make_trainable(sweep, validation),
        param_space={POINT: tune.grid_search(drawn)} if drawn else {},
        tune_config=tune.TuneConfig(
            metric=metric if single or scheduler else None,
            mode=mode if single or scheduler else None,
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=1 if drawn else sweep.trials,
            max_concurrent_trials=None if searcher else sweep.concurrent,
            time_budget_s=sweep.seconds,
            trial_dirname_creator=short_name,
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent.resolve()),
            failure_config=tune.FailureConfig(max_failures=sweep.retries),
            # PBT would go on copying into a trial that has reported its end.
            stop={"spent": 1.0},
            # With PBT a trial may still be about to copy an earlier one.
            checkpoint_config=tune.CheckpointConfig(num_to_keep=4 if sweep.scheduler == "pbt" else 1),
            callbacks=[LiveTable(sweep, total), *loggers(sweep, folder.name)],
            verbose=0,
        ),
    )
    return finish(tuner, sweep, folder, total)


def resume_sweep(folder: Path) -> Path:
    """Go on with what is in a folder: finished trials stay, running ones go on from their last reports.

    Raises UserError if it holds no sweep, or one that this version does not read.
    """
    if not (folder / SWEEP_FILE).exists():
        raise UserError(f"resume: {folder} holds no sweep ({SWEEP_FILE} is missing)")
    sweep = parse_sweep(folder / SWEEP_FILE)
    if not (folder / DIGEST_FILE).exists() or (folder / DIGEST_FILE).read_text() != digest(folder):
        raise UserError(f"resume: {folder / SWEEP_FILE} is no longer what the sweep began with; start a new one")
    space = check(sweep)
    if not saved_state(folder):
        return run_sweep(sweep, folder, overwrite=True)  # it ended before its first trial
    drawn = drawn_settings(sweep, space)
    total = len(drawn) if drawn else sweep.trials
    tuner = tune.Tuner.restore(
        str(folder.resolve()),
        make_trainable(sweep, load_validation(folder)),
        resume_unfinished=True,
        param_space={POINT: tune.grid_search(drawn)} if drawn else {},
    )
    return finish(tuner, sweep, folder, total)


def finish(tuner: tune.Tuner, sweep: Sweep, folder: Path, total: int) -> Path:
    """Run what is left and write what came out."""
    # A killed program loses what Tune has not yet saved; its own default is a multiple of ten seconds.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "2")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the newer output has a heading of its own
    started = time.monotonic()
    try:
        results = collect(tuner.fit())
        left = unfinished(results, total)
        timed_out = sweep.seconds is not None and time.monotonic() - started >= sweep.seconds
        if timed_out or not left:
            thin(folder)
        write_results(results, sweep, folder)
        analysed(results, sweep, folder)
    except OSError as error:
        reason = f"{folder} cannot be written ({error.strerror or error})"
        raise UserError(f"out: {reason}; free some space and go on with: gasim tune --resume {folder}") from error
    if left and not timed_out:
        raise Interrupted(f"interrupted, {left} trials are not done; go on with: gasim tune --resume {folder}")
    return folder


def analysed(results: list[TrialResult], sweep: Sweep, folder: Path) -> None:
    """Plots and words, where Optuna is there to make them."""
    if importlib.util.find_spec("optuna") is None:
        print(f"no plots and importances: {EXTRAS['optuna']}", file=sys.stderr)
        return
    from gasim_ray.tuning.analysis import write_analysis

    print(write_analysis(results, sweep, sweep.dimensions(), folder))


def check(sweep: Sweep) -> tuple[Dimension, ...]:
    """Everything that can be refused before a sweep begins; returns its space."""
    space = sweep.dimensions()
    for settings in drawn_settings(sweep, space) or []:
        build_config(with_settings(sweep.tree(), settings))
    for logger in sweep.loggers:
        require(logger, f"sweep.loggers: {logger}")
    if sweep.searcher in ("tpe", "nsga2"):
        require("optuna", f"sweep.searcher: {sweep.searcher}")
    if sweep.evaluate.enabled:
        from gasim_ray.evaluation.runs import task_of_teacher

        task = task_of_teacher(Path(sweep.tree()["teacher"]), sweep.evaluate.episodes, seed=0)
        for name in sweep.objective:
            if name in TASK_METRICS and name != task.metric:
                raise UserError(f"sweep.objective: {task.name} reports {task.metric}, not {name}")
    connect()
    wanted, there = reserved(build_config(largest(sweep.tree(), space))), ray.cluster_resources()
    if short := lacking(wanted, there):
        resource, amount = short
        raise UserError(
            f"space: a trial may reserve {wanted[resource]:g} {resource} where the cluster has {amount:g}; "
            f"lower generator.actors, generator.{resource.lower()}s or student.cpus"
        )
    return space


def largest(tree: dict[str, Any], space: tuple[Dimension, ...]) -> dict[str, Any]:
    """The tree of the trial that reserves most."""
    keys = ("generator.actors", "generator.cpus", "generator.gpus", "student.cpus")
    return with_settings(tree, {d.key: encoded(max(d.values)) for d in space if d.key in keys})


def begin(sweep: Sweep, folder: Path, overwrite: bool) -> None:
    """Make the folder with sweep.yaml in it; raises UserError if another sweep is there or it cannot be written."""
    try:
        if folder.exists() and any(folder.iterdir()):
            if not overwrite:
                raise UserError(f"out: {folder} exists; go on with --resume {folder}, or replace it with --overwrite")
            if not (folder / SWEEP_FILE).exists():
                raise UserError(f"out: {folder} holds something else than a sweep, which --overwrite leaves alone")
            shutil.rmtree(folder)
        write_atomically(folder / SWEEP_FILE, sweep.to_yaml().encode())
        write_atomically(folder / DIGEST_FILE, digest(folder).encode())
    except OSError as error:
        raise UserError(f"out: {folder} cannot be written ({error.strerror})") from error


def digest(folder: Path) -> str:
    """Of the sweep that a folder holds."""
    return hashlib.sha256((folder / SWEEP_FILE).read_bytes()).hexdigest()


def saved_state(folder: Path) -> bool:
    """Whether Tune has saved where the sweep stands; raises UserError if that cannot be read."""
    states = sorted(folder.glob("experiment_state-*.json"), key=lambda path: path.stat().st_mtime)
    if not states or not (folder / VALIDATION_FILE).exists():
        return False
    try:
        json.loads(states[-1].read_text())
    except ValueError as error:
        raise UserError(f"resume: {states[-1]} cannot be read ({error}); start again with --overwrite") from error
    return True


def save_validation(validation: Validation, folder: Path) -> None:
    """Keep the validation observations with the sweep; raises UserError if they cannot be written."""
    try:
        partial = folder / f"{VALIDATION_FILE}.partial"
        torch.save(validation.state_dict(), partial)
        partial.replace(folder / VALIDATION_FILE)
    except (OSError, RuntimeError) as error:
        raise UserError(f"out: {folder / VALIDATION_FILE} cannot be written ({error}); free some space") from error


def load_validation(folder: Path) -> Validation:
    """What `save_validation` kept."""
    return Validation.from_state(torch.load(folder / VALIDATION_FILE, weights_only=True))


def make_trainable(sweep: Sweep, validation: Validation) -> Any:
    """The function that Tune calls for each trial."""
    tree = sweep.tree()
    return trainable(tree, validation, TrialPlan(tree, sweep.seeds, sweep.reports, sweep.evaluate))


def loggers(sweep: Sweep, name: str) -> list[tune.Callback]:
    """Ray's own callbacks for the services that the sweep names."""
    made: list[tune.Callback] = []
    if "wandb" in sweep.loggers:
        from ray.air.integrations.wandb import WandbLoggerCallback

        made.append(WandbLoggerCallback(project="gasim", group=name))
    if "mlflow" in sweep.loggers:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        made.append(MLflowLoggerCallback(experiment_name=name))
    return made


def short_name(trial: Any) -> str:
    """A trial's folder; Tune's own name is made of all its settings."""
    return f"trial_{trial.trial_id}"
