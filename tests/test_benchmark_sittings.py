"""Sittings of the runner: what is pending, stopped and gone on with, and what is carried home from a lent machine."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_suite import declare, started

from benchmarks import cells, measure, pack, run
from benchmarks.cells import (
    LABELS,
    REAL,
    Cell,
    append_result,
    current_results,
    load_suite,
    read_results,
    results_path,
)
from gasim_ray.config import merged
from gasim_ray.core.model import load_model
from gasim_ray.errors import UserError
from gasim_ray.run_folder import RunFolder
from gasim_ray.training.classifier import ClassifierTraining, train_classifier

REPOSITORY = Path(__file__).parents[1]


def test_a_cell_without_a_teacher_is_pending_until_the_runner_has_trained_it(
    suite: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], on_cluster: None
) -> None:
    task = {
        "mnist-sample": {
            "teacher": "teachers/mnist-sample",
            "student": {"architecture": {"name": "lenet5"}},
            "snapshot_seconds": 0.01,
        }
    }
    declare({**suite, "tasks": task, "methods": {"noise": [0], "labels": [0]}})
    assert started(monkeypatch, run, "small", "--budget-minutes", "0") == 0
    assert "pending: mnist-sample-noise-0, mnist-sample-labels-0" in capsys.readouterr().out
    assert not Path("teachers/mnist-sample").exists()
    assert current_results("small") == {}
    assert started(monkeypatch, run, "small") == 0
    noise, labels = current_results("small").values()
    assert noise["teacher_score"] > 0.7
    assert all(0 < seconds < noise["wall_seconds"] and 0 <= score <= 1 for seconds, score in noise["curve"])
    assert (labels["method"], labels["knowledge"], labels["environment_steps"]) == ("labels", "data", 1500)
    assert labels["student_score"] > max(0.7, noise["student_score"])
    assert [path.name for path in Path("teachers").iterdir()] == ["mnist-sample"]


def test_a_policy_is_trained_for_its_cells_sitting_by_sitting(
    suite: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"env": "CartPole-v1", "algo": "ppo", "hidden": [8, 8], "max_steps": 5_000, "episodes": 2}
    training |= {"evaluate_seconds": 1e9, "stop_return": 1e9}
    suite["tasks"]["cartpole"] |= {"teacher": "teachers/own", "training": training}
    declare(suite)
    (cell, *_) = load_suite("small")
    monkeypatch.setattr(run, "POLICY_EVALUATION", 0.0)
    run.make_teacher(cell, 0.1)
    assert [path.name for path in Path("teachers").iterdir()] == ["own.unfinished"]
    assert not cell.has_teacher
    ((folder, unfinished),) = pack.packed_together(Path("none"), [cell])
    assert folder == Path("teachers/own.unfinished")
    assert folder / "checkpoint" / "state.json" in unfinished
    run.make_teacher(cell, 600)
    assert [path.name for path in Path("teachers").iterdir()] == ["own"]
    assert {path.name for path in cell.teacher.iterdir()} == {"config.json", "model.safetensors"}
    assert load_model(cell.teacher).config.source["environment_steps"] >= 5_000


def test_what_a_sitting_made_comes_back_in_parts(suite: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    suite["tasks"]["cartpole"]["teacher"] = "teachers/own"
    declare(suite)
    shutil.copytree(REPOSITORY / "benchmarks" / "teachers" / "cartpole-dqn", "teachers/own")
    (noise, *_) = load_suite("small")
    line = measure.record(noise)
    append_result("small", line)
    unfinished = Path("teachers/own.unfinished/checkpoint/state.json")
    unfinished.parent.mkdir(parents=True)
    unfinished.write_text("a later one")
    monkeypatch.setattr(pack, "PART", 100_000)
    assert started(monkeypatch, pack, "small", "out", "--only", "method=noise") == 0
    parts = list(Path("out").iterdir())
    assert len(parts) == 2
    assert all(part.stat().st_size <= 100_000 for part in parts)

    student = load_model(noise.folder / "student")
    teacher = Path("teachers/own/model.safetensors").read_bytes()
    shutil.rmtree("runs")
    unfinished.write_text("an earlier one")
    cells.results_path("small").write_text(json.dumps({"recorded": "at home"}) + "\n")
    for _ in range(2):
        assert started(monkeypatch, pack, "small", "out", "--back") == 0
        assert read_results("small") == [{"recorded": "at home"}, line]
    assert Path("teachers/own/model.safetensors").read_bytes() == teacher
    assert unfinished.read_text() == "a later one"
    for name, tensor in load_model(noise.folder / "student").state_dict().items():
        torch.testing.assert_close(tensor, student.state_dict()[name], atol=1e-3, rtol=1e-3)


def test_what_more_parts_than_allowed_would_take_is_left_out_and_named(
    suite: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite["tasks"]["cartpole"]["teacher"] = "teachers/own"
    declare(suite)
    shutil.copytree(REPOSITORY / "benchmarks" / "teachers" / "cartpole-dqn", "teachers/own")
    append_result("small", {"recorded": "here"})
    monkeypatch.setattr(pack, "PART", 4_000)
    assert started(monkeypatch, pack, "small", "out", "--back") == 2
    assert "out: no out/small.tar.00 there; pack it first" in capsys.readouterr().err
    assert started(monkeypatch, pack, "small", "out") == 1
    assert "left out, since 4 parts hold no more: teachers/own" in capsys.readouterr().err
    assert started(monkeypatch, pack, "small", "out", "--without-teachers") == 0
    cells.results_path("small").unlink()
    assert started(monkeypatch, pack, "small", "out", "--back") == 0
    assert read_results("small") == [{"recorded": "here"}]
    monkeypatch.setattr(pack, "PART", 2_000)
    assert started(monkeypatch, pack, "small", "elsewhere") == 2
    assert "results/small.jsonl alone is more than 4 parts" in capsys.readouterr().err
    assert not Path("elsewhere").exists()


def test_a_cell_that_fails_holds_up_no_other_and_a_recorded_one_is_made_again(
    suite: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    declare({**suite, "methods": {"noise": [0, 1]}})
    by_seed = {cell.seed: cell for cell in load_suite("small")}

    def record(cell: Cell, sitting: measure.Sitting) -> dict[str, Any]:
        if cell.seed == 0:
            raise RuntimeError("mat1 and mat2 are on different devices")
        return {
            "task": cell.task,
            "method": cell.method,
            "seed": 1,
            "definition": cell.definition,
            "student_score": 7.0,
        }

    monkeypatch.setattr(run, "record", record)
    monkeypatch.setattr(run, "connect", lambda: None)
    for expected in (1, 1, 2):  # the second time the one that is recorded is not made again
        again = ["--again", "--only", "seed=1"] if expected == 2 else []
        assert started(monkeypatch, run, "small", *again) == (0 if again else 2)
        assert len(read_results("small")) == expected
    said = capsys.readouterr()
    assert "different devices" in said.err
    assert f"small: failed, see above: {by_seed[0].name}" in said.err


def test_a_line_that_could_not_be_kept_costs_no_distillation(
    suite: dict[str, Any], monkeypatch: pytest.MonkeyPatch, on_cluster: None
) -> None:
    declare({**suite, "methods": {"noise": [0]}})
    with monkeypatch.context() as full:
        full.setattr(run, "append_result", lambda *_: 1 / 0)
        assert started(monkeypatch, run, "small") == 2
    monkeypatch.setattr(measure, "distill", None)  # whoever calls it fails
    assert started(monkeypatch, run, "small") == 0
    assert read_results("small")[0]["sittings"] == 2


def test_a_line_that_is_not_whole_is_named(suite: dict[str, Any]) -> None:
    results_path("small").parent.mkdir()
    results_path("small").write_text('{"task": "a"}\n{"task": "b')
    with pytest.raises(UserError, match=r"small\.jsonl: line 2 is not whole"):
        read_results("small")


def test_no_cell_is_started_that_would_end_after_the_budget(
    suite: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], on_cluster: None
) -> None:
    assert started(monkeypatch, run, "small", "--budget-minutes", "0.01") == 0
    assert "pending: cartpole-noise-0, cartpole-gasim-0" in capsys.readouterr().out
    assert read_results("small") == []


@pytest.fixture
def short_sittings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What starting, stopping and evaluating may take is small."""
    monkeypatch.setattr(run, "PART", 0.1)
    monkeypatch.setattr(measure, "STOPPING", 0.1)
    monkeypatch.setattr(measure, "EVALUATION", 0.2)


@pytest.mark.parametrize("method", ["noise", REAL, LABELS])
def test_a_cell_that_takes_longer_than_the_budget_goes_on_in_the_next_sitting(
    method: str,
    suite: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    on_cluster: None,
    short_sittings: None,
) -> None:
    if method == LABELS:
        student = {"architecture": {"name": "lenet5"}}
        suite["tasks"] = {"mnist-sample": {"teacher": "teachers/mnist-sample", "student": student}}
        train_classifier(ClassifierTraining("mnist-sample", epochs=20), Path("teachers/mnist-sample"), lambda _: None)
    declare({**suite, "methods": {method: [0]}, "config": {**suite["config"], "budget": {"seconds": 4.0}}})
    (cell,) = load_suite("small")
    spent, minutes = list[float](), "0.02" if method == LABELS else "0.03"
    while not read_results("small"):
        assert len(spent) < 50, "a sitting gets nowhere"
        assert started(monkeypatch, run, "small", "--budget-minutes", minutes) == 0
        if not read_results("small"):
            spent.append(seconds_in(cell))
            assert f"pending: {cell.name}" in capsys.readouterr().out
    (line,) = read_results("small")
    assert len(spent) >= 2
    assert spent == sorted(spent)
    assert spent[-1] <= line["wall_seconds"]
    assert line["sittings"] == len(spent) + 1
    if method != LABELS:
        assert line["wall_seconds"] >= 4.0
    assert not RunFolder(cell.folder).checkpoint.parent.exists()


def seconds_in(cell: Cell) -> float:
    """What a stopped cell has spent so far, by its checkpoint, or when it ended if only its evaluation is left."""
    folder = RunFolder(cell.folder)
    if cell.control != LABELS:
        return float(folder.last_state()["progress"]["seconds"])
    state = folder.student / "checkpoint" / "state.pt"
    if state.exists():
        return float(torch.load(state, weights_only=True)["seconds"])
    return float(load_model(folder.student).config.source["wall_seconds"])


@pytest.mark.parametrize("method", ["noise", REAL])
def test_a_stopped_cell_whose_definition_has_changed_begins_anew(
    method: str, suite: dict[str, Any], short_sittings: None
) -> None:
    declare({**suite, "methods": {method: [0]}, "config": {**suite["config"], "budget": {"seconds": 60.0}}})
    (cell,) = load_suite("small")
    with pytest.raises(measure.Unfinished):
        measure.record(cell, measure.Sitting(5.0))
    before = RunFolder(cell.folder).last_state()["progress"]["student_steps"]
    assert before > 40
    shorter = replace(cell, tree=merged(cell.tree, {"budget": {"seconds": None, "student_steps": 40}}))
    line = measure.record(shorter)
    assert 40 <= line["student_steps"] < before
    assert "sittings" not in line


def test_an_evaluation_that_was_interrupted_costs_no_distillation(
    suite: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (noise, *_) = load_suite("small")
    with monkeypatch.context() as broken:
        broken.setattr(measure, "score", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            measure.record(noise)
    monkeypatch.setattr(measure, "distill", None)  # whoever calls it fails
    assert measure.record(noise)["sittings"] == 2
