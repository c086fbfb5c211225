"""What a sweep's trials say: plots, and in words what mattered, what did not, and how sure that is.

Plots and importances are Optuna's, whichever searcher drew the settings. The importance of a key is the share of the
variance of the objective that it explains alone in a random forest fitted to the finished trials (fANOVA, Hutter et al.
2014); its spread is that over forests fitted to trials drawn anew with replacement.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from gasim_ray.run_folder import write_atomically
from gasim_ray.tuning.results import TrialResult
from gasim_ray.tuning.space import Dimension, encoded
from gasim_ray.tuning.sweep import Sweep

#: Finished trials below which a forest has nothing to rest on.
LEAST_TRIALS = 8
#: Forests, each fitted to trials drawn anew.
RESAMPLES = 10
#: Share of the variance that a key has to explain, its spread taken off, to be said to matter.
SMALL = 0.05


@dataclass(frozen=True)
class Importance:
    """Share of the objective's variance that a key explains alone."""

    key: str
    mean: float
    #: Standard deviation over resampled trials.
    spread: float


def study_of(results: Sequence[TrialResult], sweep: Sweep, space: Sequence[Dimension]) -> optuna.Study:
    """The finished trials as an Optuna study of the first objective."""
    name, direction = next(iter(sweep.objective.items()))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize" if direction == "max" else "minimize")
    dimensions = {dimension.key: dimension for dimension in space}
    for result in results:
        if result.state == "finished":
            params = {key: encoded(value) for key, value in result.settings.items() if key in dimensions}
            study.add_trial(
                optuna.trial.create_trial(
                    params=params,
                    distributions={key: distribution(dimensions[key]) for key in params},
                    value=result.figures[name],
                )
            )
    return study


def distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension in Optuna's words."""
    if dimension.listed:
        return CategoricalDistribution([encoded(value) for value in dimension.values])
    low, high = dimension.values
    if dimension.kind.endswith("integer"):
        return IntDistribution(low, high, log=dimension.log)
    return FloatDistribution(low, high, log=dimension.log)


def importances(study: optuna.Study) -> list[Importance]:
    """Of the keys that all finished trials have, most important first; empty where too few trials finished."""
    trials = study.trials
    if len(trials) < LEAST_TRIALS or len({trial.value for trial in trials}) < 2:
        return []
    common = list(optuna.search_space.intersection_search_space(trials))
    random = np.random.default_rng(0)
    found: dict[str, list[float]] = {}
    for number in range(RESAMPLES):
        drawn = [trials[i] for i in random.integers(len(trials), size=len(trials))]
        resampled = optuna.create_study(direction=study.direction)
        resampled.add_trials(drawn)
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=32, seed=number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                shares = evaluator.evaluate(resampled, params=common)
            except RuntimeError:
                continue  # no tree found any variance in what was drawn
        for key, value in shares.items():
            found.setdefault(key, []).append(value)
    made = [Importance(key, float(np.mean(values)), float(np.std(values))) for key, values in found.items()]
    return sorted(made, key=lambda importance: -importance.mean)


def in_words(results: Sequence[TrialResult], sweep: Sweep, ranked: Sequence[Importance]) -> str:
    """Three sentences: what mattered, what did not, how sure."""
    finished = sum(result.state == "finished" for result in results)
    objective = next(iter(sweep.objective))
    if not ranked:
        return (
            f"What mattered to {objective} cannot be said, nor what did not. {finished} of {len(results)} trials "
            f"finished; it takes {LEAST_TRIALS} whose figures differ."
        )
    mattered = [i for i in ranked if i.mean - i.spread >= SMALL]
    rest = [i.key for i in ranked if i not in mattered]
    never = [key for key in sweep.space if key not in {i.key for i in ranked}]
    listed = ", ".join(f"{i.key} ({i.mean:.0%} ± {i.spread:.0%} of the variance)" for i in mattered) or "nothing surely"
    others = f"No effect beyond the spread was seen of {', '.join(rest)}" if rest else "No key was without one"
    unknown = f"; {', '.join(never)} did not count in every trial and cannot be compared" if never else ""
    return (
        f"What mattered to {objective}: {listed}. {others}{unknown}. This rests on a random forest over {finished} "
        f"finished trials of {len(results)}, the spread on {RESAMPLES} resamplings of them: run the best settings "
        "again with fresh seeds before you rely on it."
    )


def write_analysis(results: Sequence[TrialResult], sweep: Sweep, space: Sequence[Dimension], folder: Path) -> str:
    """Write plots/*.png and summary.txt, and return the latter's three sentences; raises OSError."""
    study = study_of(results, sweep, space)
    ranked = importances(study)
    words = in_words(results, sweep, ranked)
    write_atomically(folder / "summary.txt", (words + "\n").encode())
    if len(study.trials) < 2:
        return words
    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from optuna.visualization import matplotlib as plots

    name = next(iter(sweep.objective))
    (folder / "plots").mkdir(exist_ok=True)
    drawn: dict[str, Any] = {
        "history": lambda: plots.plot_optimization_history(study, target_name=name),
        "parallel": lambda: plots.plot_parallel_coordinate(study, target_name=name),
        "slices": lambda: plots.plot_slice(study, target_name=name),
    }
    if ranked:
        drawn["importance"] = lambda: plot_importances(ranked, name, len(study.trials))
    if len(sweep.objective) > 1:
        drawn["pareto"] = lambda: plot_objectives(results, sweep)
    for title, draw in drawn.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            draw()
            plt.gcf().savefig(folder / "plots" / f"{title}.png", dpi=110, bbox_inches="tight")
        plt.close("all")
    return words


def plot_importances(ranked: Sequence[Importance], objective: str, trials: int) -> None:
    """Bars with their spread."""
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(7, 0.4 * len(ranked) + 1.2))
    axes.barh([i.key for i in ranked][::-1], [i.mean for i in ranked][::-1], xerr=[i.spread for i in ranked][::-1])
    axes.set_xlabel(f"share of the variance of {objective} (fANOVA, {trials} finished trials)")


def plot_objectives(results: Sequence[TrialResult], sweep: Sweep) -> None:
    """The first two objectives of every finished trial against each other."""
    import matplotlib.pyplot as plt

    first, second, *_ = sweep.objective
    finished = [result.figures for result in results if result.state == "finished"]
    _, axes = plt.subplots(figsize=(6, 4))
    axes.scatter([f[second] for f in finished], [f[first] for f in finished])
    axes.set_xlabel(second)
    axes.set_ylabel(first)
