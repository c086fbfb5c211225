from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import yaml
from test_tuning_space import sweep_tree

from benchmarks import cells, figures, sweep_tables, sweeps
from gasim_ray.config import DistillConfig
from gasim_ray.tuning.sweep import parse_sweep


def trials() -> pd.DataFrame:
    """Ten trials whose return rises as their regret falls; the last two did not finish."""
    count = np.arange(10)
    return pd.DataFrame(
        {
            "state": ["finished"] * 8 + ["stopped", "failed"],
            "regret": 1 - count / 10,
            "return": [*(count[:9] * 10.0), float("nan")],
            "generator.kind": ["direct", "network"] * 5,
            "generator.reset_every": [0, 5] * 5,
            "generator.actors": [1, 2] * 5,
            "generator.per_actor": [1, 4] * 5,
            "pool.capacity": [1000, 50_000] * 5,
        }
    )


def sweep_of(tmp_path: Path, teacher: Path) -> Any:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(sweep_tree(teacher)))
    return parse_sweep(file)


def test_rank_correlation_is_over_all_trials_that_report_both(tmp_path: Path, vector_teacher: Path) -> None:
    found = sweeps.rank_correlation(trials(), sweep_of(tmp_path, vector_teacher))
    assert found["value"] == pytest.approx(1)
    assert (found["trials"], found["objective"], found["metric"]) == (9, "regret", "return")
    shuffled = trials().assign(regret=[0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6, 0.5, 0.5])
    weak = sweeps.rank_correlation(shuffled, sweep_of(tmp_path, vector_teacher))
    assert weak["low"] < weak["value"] < weak["high"]
    assert weak["value"] < 0.5
    assert sweeps.spearman(np.zeros(3), np.arange(3)) == 0


def test_groups_of_diversity_hold_finished_trials_alone() -> None:
    found = {(setting, group): (median, count) for setting, group, median, count in sweep_tables.groups(trials())}
    assert found[("orders until re-initialised", "1")] == (30.0, 4)  # direct generators
    assert found[("orders until re-initialised", "2 to below 10")] == (40.0, 4)
    assert found[("generators", "4 or more")] == (40.0, 4)
    assert sweep_tables.group_name(0, 1) == "never"
    assert sum(count for (setting, _), (_, count) in found.items() if setting == "pool") == 8


def test_chance_tells_a_setting_that_matters_from_one_that_does_not() -> None:
    """A grid of 4 x 3 x 2, in which the number of generators alone decides."""
    grid = pd.MultiIndex.from_product([[0, 3, 10, 30], [1, 2, 4], [2000, 20000]], names=list(sweep_tables.DIVERSITY))
    finished = grid.to_frame(index=False)
    noise = np.random.default_rng(1).normal(size=len(finished))
    finished["score"] = 5.0 * finished["generators"] + noise
    assert float(sweep_tables.chance(finished, "generators")) < 0.01
    assert float(sweep_tables.chance(finished, "pool")) > 0.05
    assert sweep_tables.chance(finished.assign(pool=[1, 2] * 12), "pool") == ""  # one group
    assert sweep_tables.chance(finished.drop_duplicates(["orders until re-initialised", "pool"]), "generators") == ""


def test_the_table_shows_what_is_recorded_and_what_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "ROOT", tmp_path)
    monkeypatch.setattr(sweep_tables, "TRIALS", tmp_path / "results" / "sweeps")
    assert sum("not measured" in row for row in sweep_tables.sweep_rows()) == len(sweep_tables.FRESH_SEEDS)
    assert sweep_tables.diversity_rows() == []
    line = {
        "task": "acrobot-dqn",
        "trials": 60,
        "states": {"finished": 20, "stopped": 40},
        "rank_correlation": {"value": 0.71, "low": 0.5, "high": 0.8, "objective": "regret", "metric": "return"},
        "scores": {"best of the sweep": [-80.0, -82.0], "gasim": [-90.0, -92.0], "gas": [-100.0, -100.0]},
        "wall_seconds": 700.0,
        "date": "2026-01-01",
        "hardware": "a machine",
    }
    cells.append_result("sweeps", line)
    (tmp_path / "results" / "sweeps").mkdir()
    trials().assign(**{"regret/geometry": range(10, 0, -1), "regret/gas": range(10)}).to_csv(
        tmp_path / "results" / "sweeps" / "acrobot-dqn.csv"
    )
    (row,) = [row for row in sweep_tables.sweep_rows() if row.startswith("| acrobot-dqn")]
    correlations = "| 60 (20) | regret | 0.71 (0.50 to 0.80) | 1.00 | 1.00 "
    assert correlations + "| -81.0 ± 1.4 (2) | -91.0 ± 1.4 (2) | -100.0 ± 0.0 (2) | 700 |" in row
    assert any("| acrobot-dqn | pool | 20,000 or more |" in row for row in sweep_tables.diversity_rows())


def test_a_figure_of_diversity_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.setattr(figures, "ROOT", tmp_path / "benchmarks")
    assert figures.draw_diversity("tiny", sweep_tables.diverse(trials())) == "benchmarks/figures/sweeps-tiny.png"
    assert (tmp_path / "benchmarks" / "figures" / "sweeps-tiny.png").stat().st_size > 5000


def test_a_fresh_score_is_made_anew_for_other_settings(
    tmp_path: Path, vector_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter((1.0, 2.0, 3.0))

    def scored(config: DistillConfig, place: Path) -> float:
        place.mkdir(parents=True)  # a run begins in no folder that holds anything else
        return next(scores)

    monkeypatch.setattr(sweeps, "scored", scored)
    tree = tiny.tree(vector_teacher)
    assert [sweeps.fresh_score(tmp_path, "gasim", tree, 0) for _ in range(2)] == [1.0, 1.0]
    assert sweeps.fresh_score(tmp_path, "gasim", {**tree, "pool": {"capacity": 3_000}}, 0) == 2.0
    (tmp_path / "fresh" / "gasim-0" / "score.json").write_text("2.0")  # as it was once
    assert sweeps.fresh_score(tmp_path, "gasim", tree, 0) == 3.0


def test_the_best_and_the_presets_share_teacher_student_and_budget(tmp_path: Path, vector_teacher: Path) -> None:
    sweep = sweep_of(tmp_path, vector_teacher)
    (tmp_path / "best.yaml").write_text(yaml.safe_dump({**sweep.tree(), "pool": {"hard": 0.25}}))
    found = sweeps.contenders(sweep, tmp_path)
    assert list(found) == ["best of the sweep", "gasim", "gas"]
    for tree in found.values():
        assert tree["teacher"] == str(vector_teacher)
        assert tree["budget"] == {"student_steps": 24}
        assert tree["student"]["architecture"] == sweep.tree()["student"]["architecture"]
    assert found["gas"]["method"] == "gas"
    assert json.dumps(found["best of the sweep"]["pool"]) == '{"hard": 0.25}'
