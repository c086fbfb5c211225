"""What a sweep survives: an end by Ctrl-C or a kill, a dead learner, a trial that diverges."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pandas as pd
import yaml
from conftest import Gasim, processes_of
from small_sweep import Write, run_tune, sweep_tree


def test_a_sweep_that_was_ended_goes_on_without_running_finished_trials_again(
    gasim: Gasim, cluster_address: str, tmp_path: Path, vector_teacher: Path, config_file: Write
) -> None:
    """By Ctrl-C after its first trial, and when it had gone on by a kill after its second."""
    out = tmp_path / "swept"
    tree = sweep_tree(vector_teacher, trials=3, concurrent=1)
    tree["base"] |= {"local": True, "budget": {"seconds": 3.0}}

    def ended() -> list[Path]:
        """Trials whose last line tells of a spent budget, in the order of their numbers."""
        lines = {path: path.read_text().splitlines() for path in sorted(out.glob("trial_*/result.json"))}
        return [path for path, rows in lines.items() if rows and json.loads(rows[-1])["spent"] == 1]

    def saved(trials: int) -> bool:
        """Whether Tune has saved that so many have ended, and which one follows: what it has not is run again."""
        states = sorted(out.glob("experiment_state-*.json"), key=lambda path: path.stat().st_mtime)
        state = states[-1].read_text() if states else ""
        begun = [path.name.removeprefix("trial_") for path in out.glob("trial_*")]
        return state.count("TERMINATED") >= trials and len(begun) > trials and all(name in state for name in begun)

    def tune_until(trials: int, how: signal.Signals, *arguments: object) -> str:
        # Tune saves so often that a trial of some seconds is not over before it has.
        process = gasim("tune", *arguments, RAY_ADDRESS=cluster_address, TUNE_GLOBAL_CHECKPOINT_S="0.2")
        deadline = time.monotonic() + 120
        while not (len(ended()) >= trials and saved(trials)) and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            time.sleep(0.2)
        process.send_signal(how)
        _, error = process.communicate(timeout=60)
        assert process.returncode == (130 if how == signal.SIGINT else -how), error
        return error

    said = tune_until(1, signal.SIGINT, config_file(tree), "--out", out)
    assert f"go on with: gasim tune --resume {out}" in said
    before = {path: path.read_bytes() for path in ended()[:1]}
    tune_until(2, signal.SIGKILL, "--resume", out)
    before |= {path: path.read_bytes() for path in ended()[:2]}
    run_tune(gasim, cluster_address, "--resume", out)
    rows = pd.read_csv(out / "results.csv")
    assert list(rows["state"]) == ["finished"] * 3
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(out.glob("trial_*"))) == 3


def reports_of(sweep: Path) -> list[dict[str, float]]:
    """Every report of a sweep of one trial."""
    return [json.loads(line) for path in sweep.glob("trial_*/result.json") for line in path.read_text().splitlines()]


def test_a_trial_whose_learner_dies_goes_on_from_its_last_report(
    gasim: Gasim, cluster_address: str, tmp_path: Path, vector_teacher: Path, config_file: Write
) -> None:
    tree = sweep_tree(vector_teacher, trials=1, reports=4)
    tree["base"]["budget"] = {"student_steps": 6000}
    process = gasim("tune", config_file(tree), "--out", "swept", RAY_ADDRESS=cluster_address)
    deadline = time.monotonic() + 120
    while not reports_of(tmp_path / "swept") and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    (learner,) = processes_of("LearnerActor")
    os.kill(learner, signal.SIGKILL)
    _, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    spent = [report["spent"] for report in reports_of(tmp_path / "swept")]
    assert spent == sorted(spent)
    assert spent[-1] == 1
    assert len(spent) == 4  # nothing was run twice
    assert list((tmp_path / "swept").glob("trial_*/error.txt"))


def test_a_sweep_of_which_every_trial_failed_says_why(
    gasim: Gasim, cluster_address: str, tmp_path: Path, vector_teacher: Path, config_file: Write
) -> None:
    space = {"generator.prior": {"choice": [["scenes"]]}}
    tree = sweep_tree(vector_teacher, space=space, trials=1, retries=0)
    process = gasim("tune", config_file(tree), "--out", "swept", RAY_ADDRESS=cluster_address)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2, error
    assert "sweep: every trial failed, the first with: " in error
    assert "scenes is of pictures" in error.splitlines()[-1]
    assert (tmp_path / "swept" / "results.csv").exists()


def test_a_trial_that_diverges_or_finds_no_memory_is_retried_and_marked_failed(
    gasim: Gasim, cluster_address: str, tmp_path: Path, vector_teacher: Path, config_file: Write
) -> None:
    space = {
        "pool.capacity": {"grid": [2_000, 10**13]},
        "student.learning_rate": {"grid": [1e-3, 1e30], "when": {"pool.capacity": 2_000}},
    }
    tree = sweep_tree(vector_teacher, searcher="grid", scheduler="asha", space=space, retries=1)
    tree["base"]["student"]["learning_rate"] = 1e-3
    run_tune(gasim, cluster_address, config_file(tree), "--out", "swept")
    rows = pd.read_csv(tmp_path / "swept" / "results.csv").set_index(["student.learning_rate", "pool.capacity"])
    assert rows["state"].to_dict() == {
        (1e-3, 2_000): "finished",
        (1e-3, 10**13): "failed",
        (1e30, 2_000): "failed",
    }
    assert "student.learning_rate: with 1e+30 the student's loss is nan" in rows.loc[(1e30, 2_000), "reason"]
    assert "can't allocate memory" in rows.loc[(1e-3, 10**13), "reason"]
    told = [path.read_text() for path in (tmp_path / "swept").glob("trial_*/error.txt")]
    assert ["Failure # 2" in text for text in told] == [True] * 2
    assert yaml.safe_load((tmp_path / "swept" / "best.yaml").read_text())["student"]["learning_rate"] == 1e-3
