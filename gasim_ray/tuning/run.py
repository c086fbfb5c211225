"""Runs a sweep: Ray Tune over distillations, in a folder that it can be taken up from."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from itertools import product
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gasim_ray.actors.ray_workers import connect
from gasim_ray.actors.resources import bundles, lacking, reserved
from gasim_ray.config import build_config
from gasim_ray.errors import UserError
from gasim_ray.run import Interrupted
from gasim_ray.run_folder import alone_in
from gasim_ray.tuning.folder import SweepFolder
from gasim_ray.tuning.live import LiveTable
from gasim_ray.tuning.results import TrialResult, collect, thin, unfinished, write_results
from gasim_ray.tuning.search import EXTRAS, drawn_settings, make_scheduler, make_searcher, require
from gasim_ray.tuning.space import Dimension, Settings, encoded, with_settings
from gasim_ray.tuning.sweep import TASK_METRICS, Sweep
from gasim_ray.tuning.trial import POINT, TrialPlan, planned
from gasim_ray.tuning.validation import make_validation


def run_sweep(sweep: Sweep, folder: Path, overwrite: bool = False) -> Path:
    """Search from the beginning; returns the folder.

    Raises UserError for what the user can mend, before anything is written, and Interrupted after Ctrl-C.
    """
    space, drawn = check(sweep)
    check_shared(folder.parent)
    files = SweepFolder(folder)
    files.check_clear(overwrite)
    validation = make_validation(
        sweep.tree(), sweep.validation, sweep.seed, say=lambda line: print(line, file=sys.stderr, flush=True)
    )
    with alone_in(folder, files.sweep.name):  # another process may search there
        files.begin(sweep, overwrite)
    files.save_validation(validation)
    searcher = make_searcher(sweep, space)
    total = len(drawn or range(sweep.trials))
    single = len(sweep.objective) == 1 and searcher is None
    metric, mode = next(iter(sweep.objective.items()))
    scheduler = make_scheduler(sweep, space)
    tuner = tune.Tuner(
        planned(plan_of(sweep), validation),
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
    files = SweepFolder(folder)
    sweep = files.read_sweep()
    _, drawn = check(sweep)
    if files.over.exists():
        print(f"{folder}: its {sweep.seconds} seconds are over; a new sweep may have more", file=sys.stderr)
        return folder
    if not files.begun():
        return run_sweep(sweep, folder, overwrite=True)
    tuner = tune.Tuner.restore(
        str(folder.resolve()),
        planned(plan_of(sweep), files.read_validation()),
        resume_unfinished=True,
        param_space={POINT: tune.grid_search(drawn)} if drawn else {},
    )
    return finish(tuner, sweep, folder, len(drawn or range(sweep.trials)))


def finish(tuner: tune.Tuner, sweep: Sweep, folder: Path, total: int) -> Path:
    """Run what is left and write what came out."""
    # A killed program loses what Tune has not yet saved; its own default is a multiple of ten seconds.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "2")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the newer output has a heading of its own
    started = time.monotonic()
    try:
        with alone_in(folder, SweepFolder(folder).sweep.name):
            results = collect(tuner.fit())
        left = unfinished(results, total)
        timed_out = sweep.seconds is not None and time.monotonic() - started >= sweep.seconds
        if timed_out or not left:
            thin(folder)
        write_results(results, sweep, folder)
        analyse(results, sweep, folder)
        if timed_out:  # last, since what is over is not looked at again
            SweepFolder(folder).over.touch()
    except OSError as error:
        reason = f"{folder} cannot be written ({error.strerror or error})"
        raise UserError(f"out: {reason}; free some space and go on with: gasim tune --resume {folder}") from error
    if results and not left and all(result.reason for result in results):
        raise UserError(f"sweep: every trial failed, the first with: {results[0].reason} (see {folder}/results.csv)")
    if left and not timed_out:
        raise Interrupted(f"interrupted, {left} trials are not done; go on with: gasim tune --resume {folder}")
    return folder


def analyse(results: list[TrialResult], sweep: Sweep, folder: Path) -> None:
    """Plots and words, where Optuna is there to make them."""
    if importlib.util.find_spec("optuna") is None:
        print(f"no plots and importances: {EXTRAS['optuna']}", file=sys.stderr)
        return
    from gasim_ray.tuning.analysis import write_analysis

    print(write_analysis(results, sweep, sweep.dimensions(), folder))


def check(sweep: Sweep) -> tuple[tuple[Dimension, ...], list[Settings] | None]:
    """Refuse what can be refused before a sweep begins; returns its space, and its settings if they are drawn now."""
    space = sweep.dimensions()
    drawn = drawn_settings(sweep, space)
    for settings in drawn or []:
        build_config(with_settings(sweep.tree(), settings))
    for logger in sweep.loggers:
        require(logger, f"sweep.loggers: {logger}")
    if sweep.searcher in ("tpe", "nsga2"):
        require("optuna", f"sweep.searcher: {sweep.searcher}")
    if sweep.evaluate.enabled:
        from gasim_ray.evaluation.runs import task_of_teacher

        task = task_of_teacher(sweep.tree()["teacher"], sweep.evaluate.episodes)
        for name in sweep.objective:
            if name in TASK_METRICS and name != task.metric:
                raise UserError(f"sweep.objective: {task.name} reports {task.metric}, not {name}")
    if build_config(sweep.tree()).student.node_label:
        raise UserError("student.node_label: a sweep's trials go where Tune places them; leave it out")
    connect()
    for tree in largest(sweep.tree(), space):
        check_room(tree)
    teacher = Path(sweep.tree()["teacher"])
    if blind := hosts_without(teacher / "config.json"):
        raise UserError(f"teacher: {teacher} is not on {', '.join(blind)}; give one in a folder that all hosts share")
    return space, drawn


def check_room(tree: dict[str, Any]) -> None:
    """Raise UserError if a trial reserves what the cluster, or each of its nodes, lacks: Tune would wait for ever."""
    try:
        config = build_config(tree)
    except UserError:
        return  # settings that exclude each other: the trial itself fails and says why
    wanted, there = reserved(config), ray.cluster_resources()
    if short := lacking(wanted, there):
        resource, amount = short
        raise UserError(
            f"space: a trial may reserve {wanted[resource]:g} {resource} where the cluster has {amount:g}; "
            f"lower generator.actors, generator.{resource.lower()}s or student.cpus"
            + (", or leave cuda out of device" if resource == "GPU" else "")
        )
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for one in bundles(config):
        if all(lacking(one, node) for node in nodes):
            raise UserError(f"space: no node has what an actor of a trial may reserve ({one}); lower it")


def check_shared(folder: Path) -> None:
    """Raise UserError unless all hosts of the cluster see the folder, in which trials write wherever they run."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=folder, prefix=".gasim-") as mark:
            blind = hosts_without(Path(mark.name))
    except OSError as error:
        raise UserError(f"out: {folder} cannot be written ({error.strerror})") from error
    if blind:
        raise UserError(f"out: {folder.resolve()} is not on {', '.join(blind)}; give a folder that all hosts share")


def hosts_without(file: Path) -> list[str]:
    """The addresses of the cluster's hosts on which there is no such file; only those on which trials may run."""
    hosts = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    look = ray.remote(num_cpus=0)(os.path.exists)
    found = ray.get(
        [
            look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                str(file.resolve())
            )
            for node in hosts
        ]
    )
    return [node["NodeManagerAddress"] for node, there in zip(hosts, found, strict=True) if not there]


def largest(tree: dict[str, Any], space: tuple[Dimension, ...]) -> list[dict[str, Any]]:
    """The tree of the trial that reserves most, for each method and device that is searched."""
    keys = ("generator.actors", "generator.cpus", "generator.gpus", "student.cpus")
    most = {d.key: encoded(max(d.values)) for d in space if d.key in keys}
    kinds = [[(d.key, encoded(value)) for value in d.values] for d in space if d.key in ("method", "device")]
    return [with_settings(tree, {**most, **dict(kind)}) for kind in product(*kinds)]


def plan_of(sweep: Sweep) -> TrialPlan:
    """What all trials of the sweep share."""
    return TrialPlan(sweep.tree(), sweep.seeds, sweep.reports, sweep.evaluate)


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
