"""What recorded sweeps show: the table of sweeps, and what diversity was worth in them."""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.cells import ROOT, read_results
from benchmarks.markdown import MISSING, heading, row
from gasim_ray.tuning.sweep import TASK_METRICS
from gasim_ray.tuning.validation import combined

SUITE = "sweeps"
#: Sweep -> fresh seeds with which its best is compared with the presets.
FRESH_SEEDS = {"cartpole-dqn": 5, "acrobot-dqn": 5, "lunarlander-dqn": 5, "mnist": 3, "diversity-lunarlander-dqn": 0}
#: Trials are kept there.
TRIALS = ROOT / "results" / SUITE
PRESETS = ("gasim", "gas")
#: Of scores among trials, for a p.
PERMUTATIONS = 5000
#: What makes generators diverse -> the edges between the groups that the table shows.
DIVERSITY: dict[str, tuple[float, ...]] = {
    "orders until re-initialised": (0, 1, 2, 10, 30),
    "generators": (1, 2, 4),
    "pool": (0, 4_000, 20_000),
}


def sweep_rows() -> list[str]:
    """The table of recorded sweeps, oldest first where one was recorded again; only of the newest trials are kept."""
    presets = [f"`{preset}`" for preset in PRESETS]
    head = [
        "sweep",
        "trials (finished)",
        "objective",
        "rank correlation",
        "of finished trials",
        "of regret",
        "best of the sweep",
        *presets,
        "seconds",
    ]
    rows = heading(*head)
    for name in FRESH_SEEDS:
        lines = [line for line in read_results(SUITE) if line["task"] == name]
        found = [_cells(line, of_kept_trials(line) if line is lines[-1] else ["", ""]) for line in lines]
        found = found or [[MISSING] * (len(head) - 1)]
        rows += [row(name, *cells) for cells in found]
    return rows


def _cells(line: dict[str, Any], of_kept: list[str]) -> list[str]:
    found = line["rank_correlation"]
    scale = 100 if found["metric"] == "accuracy" else 1
    spreads = [
        f"{scale * mean(values):.1f} ± {scale * stdev(values):.1f} ({len(values)})" if values else ""
        for values in line["scores"].values()
    ]
    return [
        f"{line['trials']} ({line['states'].get('finished', 0)})",
        found["objective"],
        f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})",
        *of_kept,
        *spreads,
        MISSING if line["wall_seconds"] is None else f"{line['wall_seconds']:.0f}",
    ]


def of_kept_trials(line: dict[str, Any]) -> list[str]:
    """Rank correlations with the true score: of a sweep's objective over the kept trials that ran to their end, and of
    the default one over all of them, whatever steered them.
    """
    path = TRIALS / f"{line['task']}.csv"
    if not path.exists():
        return [MISSING] * 2
    trials = pd.read_csv(path)
    finished, objective = trials[trials["state"] == "finished"], line["rank_correlation"]["objective"]
    sign = -1 if objective in ("regret", "kl") else 1
    of_finished = sign * finished[objective].corr(finished[score_of(trials)], "spearman")
    sources = {str(name).split("/")[1]: trials[name] for name in trials.columns if str(name).startswith("regret/")}
    regret = [combined({source: column[i] for source, column in sources.items()}) for i in range(len(trials))]
    of_regret = -pd.Series(regret).corr(trials[score_of(trials)], "spearman")
    return [f"{of_finished:.2f}", f"{of_regret:.2f}"]


def score_of(trials: pd.DataFrame) -> str:
    """The column of the true score."""
    return next(name for name in TASK_METRICS if name in trials)


def diversity_rows() -> list[str]:
    """For each group of each setting: the finished trials' median true score, their number, and what chance says."""
    rows = heading("sweep", "setting", "group", "median score", "trials", "p")
    for name in FRESH_SEEDS:
        path = TRIALS / f"{name}.csv"
        if path.exists():
            trials = pd.read_csv(path)
            chances = {setting: chance(diverse(trials), setting) for setting in DIVERSITY}
            rows += [
                row(name, setting, group, f"{median:.4g}", str(count), chances[setting])
                for setting, group, median, count in groups(trials)
            ]
    return rows if len(rows) > 2 else []


def diverse(trials: pd.DataFrame) -> pd.DataFrame:
    """The finished trials that report a true score, as `score`, with a column for each of DIVERSITY.

    A direct generator that nothing else is set for starts anew with every order.
    """
    metric = score_of(trials)
    finished = trials[(trials["state"] == "finished") & trials[metric].notna()]
    every = finished["generator.reset_every"]
    direct = finished["generator.kind"] == "direct"
    return pd.DataFrame(
        {
            "score": finished[metric],
            "orders until re-initialised": every.mask(direct & (every == 0), 1),
            "generators": finished["generator.actors"] * finished["generator.per_actor"],
            "pool": finished["pool.capacity"],
        }
    )


def groups(trials: pd.DataFrame) -> list[tuple[str, str, float, int]]:
    """(setting, group, median score, number of trials) over the finished trials that report a true score."""
    finished = diverse(trials)
    made = []
    for setting, edges in DIVERSITY.items():
        for low, high in zip(edges, (*edges[1:], float("inf")), strict=True):
            inside = finished[(finished[setting] >= low) & (finished[setting] < high)]
            if len(inside):
                made.append((setting, group_name(low, high), float(inside["score"].median()), len(inside)))
    return made


def chance(finished: pd.DataFrame, setting: str) -> str:
    """How often groups differ as much if a setting decides nothing: p of a permutation within all other settings.

    The difference is the variance of the groups' mean scores. Empty where a trial has none that differs in this setting
    alone, and of one group.
    """
    others = [name for name in DIVERSITY if name != setting]
    strata = [rows for rows in finished.groupby(others).indices.values() if len(set(finished[setting].iloc[rows])) > 1]
    group_of = np.digitize(finished[setting], DIVERSITY[setting])
    if sum(map(len, strata)) < len(finished) or len(set(group_of)) < 2:
        return ""
    random = np.random.default_rng(0)
    scores = finished["score"].to_numpy(float)

    def difference(shuffled: npt.NDArray[np.float64]) -> float:
        return float(np.var([shuffled[group_of == group].mean() for group in np.unique(group_of)]))

    found, shuffled = difference(scores), scores.copy()
    least = 0
    for _ in range(PERMUTATIONS):
        for rows in strata:
            shuffled[rows] = random.permutation(scores[rows])
        least += difference(shuffled) >= found - 1e-9
    return f"{(least + 1) / (PERMUTATIONS + 1):.2g}"


def group_name(low: float, high: float) -> str:
    """Which values a group holds."""
    if high == float("inf"):
        return f"{low:,.0f} or more"
    if (low, high) == (0, 1):
        return "never"
    return f"{low:,.0f}" if high == low + 1 else f"{low:,.0f} to below {high:,.0f}"
