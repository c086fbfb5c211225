"""Suites and the runner, on a copy of the benchmark folder with a suite small enough for a test."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_suite import ARCHITECTURE, declare, started

from benchmarks import cells, measure, pack, run, speed, tables
from benchmarks.cells import LABELS, REAL, Cell, append_result, current_results, load_suite, read_results, suite_names
from benchmarks.speed import SIDES
from gasim_ray.config import merged, parse_config
from gasim_ray.core.model import load_model
from gasim_ray.errors import UserError
from gasim_ray.run_folder import RunFolder
from gasim_ray.tasks import TASKS
from gasim_ray.training.classifier import ClassifierTraining, train_classifier
from gasim_ray.training.rllib import PolicyTraining

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.parametrize("name", suite_names())
def test_each_declared_suite_can_be_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    found = load_suite(name)
    assert len({cell.name for cell in found}) == len(found) > 0
    assert all(cell.task in SIDES for cell in found if cell.kind == "speed")
    made = [cell for cell in found if cell.has_teacher]
    # What has no teacher yet is pending: the runner makes those of named tasks, and policies whose training is given.
    assert {cell.task for cell in found if not cell.has_teacher and not cell.episodes} <= set(TASKS)
    for training in (cell.training for cell in found if cell.training):
        PolicyTraining(**training)
    for folder, episodes in {(cell.config.teacher, cell.episodes) for cell in made if cell.kind == "distill"}:
        source = json.loads((REPOSITORY / folder / "config.json").read_text())["source"]
        assert "dataset" in source or episodes >= 2


def test_the_configuration_of_a_game_from_scratch_is_that_of_the_recorded_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    cell = next(cell for cell in load_suite("atari") if cell.name == "pong-scenes-scratch-0")
    assert parse_config([], "docs/game-from-scratch.yaml") == cell.config


def test_cells_are_every_task_method_and_seed(suite: dict[str, Any]) -> None:
    names = [cell.name for cell in load_suite("small")]
    assert names == ["cartpole-noise-0", "cartpole-gasim-0", "cartpole-gasim-1", "cartpole-real-0"]
    noise, first, second, real = load_suite("small")
    assert (noise.config.method, first.config.seed, second.config.seed) == ("noise", 0, 1)
    assert (real.method, real.config) == (REAL, first.config)
    assert first.config.student.architecture == ARCHITECTURE


def test_the_definition_changes_with_what_the_result_depends_on(suite: dict[str, Any]) -> None:
    cell = load_suite("small")[1]
    changed = [
        replace(cell, episodes=4),
        replace(cell, method=REAL),
        replace(cell, tree=merged(cell.tree, {"seed": 5})),
        replace(cell, tree=merged(cell.tree, {"pool": {"hard": 0.9}})),
        replace(cell, tree=merged(cell.tree, {"budget": {"student_steps": 41}})),
    ]
    assert len({c.definition for c in [cell, *changed]}) == 6
    assert replace(cell, tree={**cell.tree, "out": "elsewhere"}).definition == cell.definition
    assert load_suite("small")[1].definition == cell.definition


@given(st.dictionaries(st.text(max_size=3), st.sampled_from([0, 0.0, False, None, "", [], {}])), st.booleans())
def test_a_setting_that_is_off_counts_for_nothing(off: dict[str, Any], on: bool) -> None:
    settings = {"pool": {"hard": 0.5, "views": [0, {"shift": 2}]}, "new": on}
    extended = {**off, **settings, "pool": {**off, **settings["pool"]}}
    expected = {"pool": settings["pool"], **({"new": True} if on else {})}
    assert cells.without_off(extended) == cells.without_off(settings) == expected


def test_a_task_may_have_methods_of_its_own_and_a_variant_other_settings(suite: dict[str, Any]) -> None:
    other = {**suite["tasks"]["cartpole"], "methods": {"gasim-large-pool": [3]}, "pool": {"hard": 0.125}}
    variants = {"gasim-large-pool": {"method": "gasim", "pool": {"capacity": 777}}}
    declare({**suite, "tasks": {**suite["tasks"], "other": other}, "variants": variants})
    found = load_suite("small")
    assert [c.name for c in found if c.task == "other"] == ["other-gasim-large-pool-3"]
    assert len(found) == 5
    config = found[-1].config
    assert (config.method, config.seed, config.pool.capacity, config.pool.hard) == ("gasim", 3, 777, 0.125)


def test_a_cell_that_keeps_snapshots_records_what_was_learnt_when(suite: dict[str, Any]) -> None:
    suite["config"] |= {"snapshot_seconds": 0.3, "budget": {"seconds": 1.0}}
    declare({**suite, "methods": {"noise-growth": [0]}, "sizes": {"growth": {"played": 2}}})
    line = measure.record(load_suite("small")[0])
    points = line["growth"]
    assert len(points) >= 2
    assert [seconds for seconds, *_ in points] == sorted(seconds for seconds, *_ in points)
    assert all(0 < seconds < line["wall_seconds"] for seconds, *_ in points)
    assert all(0 <= made <= line["synthetic_observations"] for _, made, _, _ in points)
    assert all(0 <= same <= 1 and kl >= 0 for *_, same, kl in points)
    assert [made for made, _ in line["growth_scores"]] == [points[0][1], points[-1][1]]
    assert all(9 <= score <= 500 for _, score in line["growth_scores"])


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


def test_an_unknown_suite_is_refused(suite: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="suite: 'smal' is not known; known: small"):
        load_suite("smal")


def test_only_keeps_the_cells_that_are_asked_for(suite: dict[str, Any]) -> None:
    found = load_suite("small")
    assert [c.name for c in found if cells.matches(c, "method=gasim,seed=1")] == ["cartpole-gasim-1"]
    assert len([c for c in found if cells.matches(c, "")]) == 4
    either = [c.name for c in load_suite("small") if cells.matches(c, "method=noise|gasim,seed=0")]
    assert either == ["cartpole-noise-0", "cartpole-gasim-0"]
    with pytest.raises(UserError, match="only: 'sed'"):
        cells.matches(found[0], "sed=1")


def check_line(line: dict[str, Any], method: str) -> None:
    assert (line["suite"], line["task"], line["seed"], line["metric"]) == ("small", "cartpole", 0, "return")
    assert line["teacher_score"] > 50 > line["controls"]["untrained"] > 0
    assert 0 <= line["agreement"] <= 1
    assert line["student_parameters"] == 4 * 8 + 8 + 8 * 2 + 2
    assert line["teacher_parameters"] > 60_000
    assert line["command"] == f"python -m benchmarks.run small --only task=cartpole,method={method},seed=0"
    assert {"hardware", "versions", "commit", "date", "wall_seconds", "kl", "group"} <= set(line)


def test_the_control_on_real_observations_says_what_it_took(suite: dict[str, Any]) -> None:
    line = measure.record(load_suite("small")[3])
    check_line(line, REAL)
    assert (line["knowledge"], line["synthetic_observations"]) == ("data", 0)
    assert line["environment_steps"] > 50
    assert line["student_steps"] > 0


def test_a_control_may_have_students_of_several_sizes(suite: dict[str, Any]) -> None:
    smaller = {"student": {"architecture": {"name": "mlp", "hidden": [4]}}}
    named = {"real-small": [0], "quick-small": [0], "quick": [0], "really": [0]}
    quick = {"method": "noise", "student": {"steps": 3}}
    declare({**suite, "methods": named, "sizes": {"small": smaller}, "variants": {"quick": quick}})
    cell, small_, large, unknown = load_suite("small")
    assert [c.control for c in (cell, small_, large, unknown)] == [REAL, "", "", ""]
    assert [c.config.student.architecture["hidden"] for c in (small_, large)] == [[4], [8]]
    assert [(c.config.method, c.config.student.steps) for c in (small_, large)] == [("noise", 3)] * 2
    with pytest.raises(UserError, match="really"):
        unknown.config  # noqa: B018
    line = measure.record(cell)
    assert (line["knowledge"], line["student_parameters"]) == ("data", 4 * 4 + 4 + 4 * 2 + 2)
    assert 5 < line["controls"]["random"] < 60


def test_a_policy_cannot_be_trained_on_labels(suite: dict[str, Any]) -> None:
    (cell, *_) = load_suite("small")
    with pytest.raises(UserError, match="method: labels is for classifiers"):
        measure.record(replace(cell, method=LABELS))


def test_a_cell_is_recorded_once(
    suite: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], on_cluster: None
) -> None:
    for _ in range(2):
        assert started(monkeypatch, run, "small", "--only", "method=gasim,seed=0") == 0
    (line,) = read_results("small")
    check_line(line, "gasim")
    assert (line["knowledge"], line["environment_steps"]) == ("bounds", 0)
    assert line["synthetic_observations"] > 0
    assert line["student_steps"] > 0
    assert "1 cells recorded, 0 to run" in capsys.readouterr().out
    # What changes the result makes the recorded line that of another cell.
    suite["episodes"] = 4
    declare(suite)
    assert current_results("small") == {}
    assert len(read_results("small")) == 1


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
        train_classifier(ClassifierTraining("mnist-sample", epochs=10), Path("teachers/mnist-sample"), lambda _: None)
    declare({**suite, "methods": {method: [0]}, "config": {**suite["config"], "budget": {"seconds": 4.0}}})
    (cell,) = load_suite("small")
    spent, minutes = list[float](), "0.02" if method == LABELS else "0.03"
    while not read_results("small"):
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
        assert 4.0 <= line["wall_seconds"] < 10
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
    assert RunFolder(cell.folder).last_state()["progress"]["seconds"] > 0.5
    shorter = replace(cell, tree=merged(cell.tree, {"budget": {"seconds": 0.5}}))
    line = measure.record(shorter)
    assert 0.5 <= line["wall_seconds"] < 5.0
    assert "sittings" not in line


def test_an_evaluation_that_was_interrupted_costs_no_distillation(
    suite: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (noise, *_) = load_suite("small")
    with monkeypatch.context() as broken:
        broken.setattr(measure, "score", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            measure.record(noise)
    before = load_model(RunFolder(noise.folder).student)
    assert measure.record(noise)["sittings"] == 2
    after = load_model(RunFolder(noise.folder).student)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


def test_a_ratio_of_speeds_is_measured_and_shown(
    suite: dict[str, Any], monkeypatch: pytest.MonkeyPatch, on_cluster: None
) -> None:
    monkeypatch.setattr(speed, "REPEATS", 1)
    config = tiny.tree(suite["tasks"]["cartpole"]["teacher"], method="noise")
    config["budget"] = {"seconds": 0.6}
    del config["teacher"]
    suite.update(
        kind="speed", methods={"noise": [0]}, tasks={"ray-over-local": suite["tasks"]["cartpole"]}, config=config
    )
    declare(suite)
    assert started(monkeypatch, run, "small") == 0
    (line,) = read_results("small")
    assert line["ratio"] > 0
    assert len(line["observations_per_second"]) == 2
    assert min(line["observations_per_second"]) > 0
    row = next(text for text in tables.table("small").splitlines() if text.startswith("| ray-over-local"))
    assert f"{line['ratio']:.2f}" in row
