"""What a sweep leaves: results.csv and best.yaml."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from ray import tune

from gasim_ray.config import build_config, known_keys, plain
from gasim_ray.errors import UserError
from gasim_ray.run_folder import write_atomically
from gasim_ray.tuning.space import decoded, with_settings
from gasim_ray.tuning.sweep import PLAIN_METRICS, TASK_METRICS, Sweep
from gasim_ray.tuning.trial import POINT

#: Used its whole budget with every seed; ended by a scheduler; died; not begun, or not at its end.
State = Literal["finished", "stopped", "failed", "unfinished"]


@dataclass(frozen=True)
class TrialResult:
    """One trial of a sweep."""

    #: Its folder's name.
    name: str
    state: State
    #: Why it failed; empty otherwise.
    reason: str
    #: Share of its budget that it used.
    spent: float
    #: Its last report.
    figures: Mapping[str, float]
    #: Searched key -> value; those that did not count are absent.
    settings: Mapping[str, Any]


def collect(grid: tune.ResultGrid) -> list[TrialResult]:
    """The trials of a sweep, in the order in which they were drawn."""
    # What Tune shows of a trial lacks its settings until it has reported, and a resume turns the order round.
    trials = grid._experiment_analysis.trials
    return [_result(trial) for trial in sorted(trials, key=lambda t: int(str(t.experiment_tag).split("_")[0]))]


def _result(trial: Any) -> TrialResult:
    metrics: Mapping[str, Any] = trial.last_result or {}
    known = (*PLAIN_METRICS, *TASK_METRICS)
    spent = float(metrics.get("spent", 0.0))
    failed = trial.status == "ERROR"
    ended: State = "finished" if spent >= 1.0 else "stopped" if trial.status == "TERMINATED" else "unfinished"
    return TrialResult(
        name=f"trial_{trial.trial_id}",
        state="failed" if failed else ended,
        reason=last_line(trial.get_error()) if failed else "",
        spent=spent,
        figures={name: value for name, value in metrics.items() if name.split("/")[0] in known},
        settings={key: decoded(value) for key, value in trial.config.get(POINT, trial.config).items()},
    )


def last_line(error: BaseException | None) -> str:
    """What went wrong: the last line of an error, before which a traceback stands."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def unfinished(results: Sequence[TrialResult], total: int) -> int:
    """Trials that a resume would still run."""
    return sum(result.state == "unfinished" for result in results) + max(0, total - len(results))


def best_of(results: Sequence[TrialResult], sweep: Sweep) -> TrialResult | None:
    """The finished trial that is best by the first objective; None if none has finished."""
    name, direction = next(iter(sweep.objective.items()))
    finished = [result for result in results if result.state == "finished" and name in result.figures]
    sign = 1 if direction == "max" else -1
    return max(finished, key=lambda result: sign * result.figures[name], default=None)


def table_of(results: Sequence[TrialResult], sweep: Sweep) -> pd.DataFrame:
    """A row for each trial: state, figures, and every key of its configuration, the searched ones first."""
    rows = []
    for result in results:
        tree = {**everything(sweep.tree(), result.settings), **result.settings}
        keys = {key: tree[key] for key in (*sweep.space, *(k for k in tree if k not in sweep.space)) if key in tree}
        rows.append(
            {
                "trial": result.name,
                "state": result.state,
                "reason": result.reason,
                "spent": result.spent,
                **result.figures,
                **{key: str(value) if isinstance(value, list | dict) else value for key, value in keys.items()},
            }
        )
    return pd.DataFrame(rows)


def everything(tree: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of a whole configuration; of settings that exclude each other, those alone."""
    try:
        whole = plain(asdict(build_config(with_settings(tree, dict(settings)))))
    except UserError:
        return dict(settings)
    parts = {key: key.partition(".") for key in known_keys()}
    return {key: whole[section][name] if name else whole[section] for key, (section, _, name) in parts.items()}


def write_results(results: Sequence[TrialResult], sweep: Sweep, folder: Path) -> None:
    """Write results.csv and, as soon as a trial has finished, best.yaml; raises OSError if they cannot be written."""
    write_atomically(folder / "results.csv", table_of(results, sweep).to_csv(index=False).encode())
    best = best_of(results, sweep)
    if best is not None:
        config = build_config(with_settings(sweep.tree(), dict(best.settings)))
        name = next(iter(sweep.objective))
        header = f"# Best of {len(results)} trials of {folder.name}: {best.name}, {name} {best.figures[name]:.4f}\n"
        write_atomically(folder / "best.yaml", (header + config.to_yaml()).encode())


def thin(folder: Path) -> None:
    """Leave of each trial's last checkpoint the student alone; its pool is of use only while the sweep runs."""
    for state in folder.glob("trial_*/checkpoint_*/checkpoint"):
        shutil.rmtree(state)
