"""Searchers and schedulers: what Ray Tune and Optuna are asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import partial
from typing import Any

from ray import tune
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import ConcurrencyLimiter, SearchAlgorithm, Searcher

from gasim_ray.errors import UserError
from gasim_ray.tuning.space import Dimension, Settings, encoded, grid_settings, random_settings, settings_of
from gasim_ray.tuning.sweep import Sweep
from gasim_ray.tuning.trial import POINT, REPORT

#: Package -> what installs it.
EXTRAS = {
    "optuna": "pip install -e '.[tune]' in its repository",
    "wandb": "pip install -e '.[wandb]' in its repository",
    "mlflow": "pip install -e '.[mlflow]' in its repository",
}
#: Trials that Optuna draws at random before it models anything.
STARTUP_TRIALS = 10


def require(package: str, wanted_by: str) -> None:
    """Raise UserError, saying what to install, if an optional package is missing."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{wanted_by} needs the package {package}; install it with: {EXTRAS[package]}")


def drawn_settings(sweep: Sweep, space: Sequence[Dimension]) -> list[Settings] | None:
    """The settings of all trials where they are known before the sweep; None where a searcher makes them."""
    if sweep.searcher == "grid":
        return grid_settings(space)
    return random_settings(space, sweep.trials, sweep.seed) if sweep.searcher == "random" else None


def make_searcher(sweep: Sweep, space: Sequence[Dimension]) -> Searcher | SearchAlgorithm | None:
    """Optuna behind Tune's interface; None where the settings are drawn beforehand."""
    if sweep.searcher in ("random", "grid"):
        return None
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = (
        optuna.samplers.NSGAIISampler(seed=sweep.seed, population_size=max(4, min(50, sweep.trials // 4)))
        if sweep.searcher == "nsga2"
        else optuna.samplers.TPESampler(seed=sweep.seed, n_startup_trials=STARTUP_TRIALS)
    )
    metrics, modes = list(sweep.objective), list(sweep.objective.values())
    searcher = OptunaSearch(
        space=partial(suggest, tuple(space)),
        metric=metrics if len(metrics) > 1 else metrics[0],
        mode=modes if len(modes) > 1 else modes[0],
        sampler=sampler,
    )
    return ConcurrencyLimiter(searcher, sweep.concurrent) if sweep.concurrent else searcher


def suggest(space: Sequence[Dimension], trial: Any) -> None:
    """Ask an Optuna trial for a value of each dimension that counts with those before it."""
    settings_of(space, lambda dimension: suggested(dimension, trial))


def suggested(dimension: Dimension, trial: Any) -> Any:
    """One value, as the search space lists it."""
    if dimension.listed:
        values = {encoded(value): value for value in dimension.values}
        return values[trial.suggest_categorical(dimension.key, list(values))]
    low, high = dimension.values
    if dimension.kind.endswith("integer"):
        return trial.suggest_int(dimension.key, low, high, log=dimension.log)
    return trial.suggest_float(dimension.key, low, high, log=dimension.log)


def make_scheduler(sweep: Sweep, space: Sequence[Dimension]) -> TrialScheduler | None:
    """What stops or copies trials while they run; it counts reports, of which large updates leave some out."""
    if sweep.scheduler == "asha":
        return AsyncHyperBandScheduler(REPORT, max_t=sweep.last_report, grace_period=1, reduction_factor=2)
    if sweep.scheduler == "median":
        return MedianStoppingRule(time_attr=REPORT, grace_period=1, min_samples_required=3)
    if sweep.scheduler == "pbt":
        return PopulationBasedTraining(
            time_attr=REPORT,
            perturbation_interval=1,
            synch=True,  # however many run at once, all are compared
            hyperparam_mutations={POINT: {dimension.key: mutation(dimension) for dimension in space}},
            custom_explore_fn=partial(within, tuple(space)),
        )
    return None


def mutation(dimension: Dimension) -> Any:
    """What PBT draws a new value from."""
    if dimension.listed:
        return [encoded(value) for value in dimension.values]
    low, high = dimension.values
    kinds = {"uniform": tune.uniform, "loguniform": tune.loguniform}
    if dimension.kind in kinds:
        return kinds[dimension.kind](low, high)
    return (tune.lograndint if dimension.log else tune.randint)(low, high + 1)


def within(space: Sequence[Dimension], config: dict[str, Any]) -> dict[str, Any]:
    """PBT's new values, brought back within their bounds."""
    settings = config[POINT]
    return {**config, POINT: {d.key: d.clamped(settings[d.key]) for d in space}}
