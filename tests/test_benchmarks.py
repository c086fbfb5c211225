"""Suites and the runner, on a copy of the benchmark folder with a suite small enough for a test."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from small_suite import ARCHITECTURE, declare, started

from benchmarks import cells, measure, run, speed, tables
from benchmarks.cells import LABELS, REAL, current_results, load_suite, read_results, suite_names
from benchmarks.speed import SIDES
from gasim_ray.config import merged, parse_config
from gasim_ray.errors import UserError
from gasim_ray.tasks import TASKS
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
    suite["config"] |= {"snapshot_seconds": 0.3, "budget": {"seconds": 2.0}}
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
    assert line["whole_seconds"] > line["wall_seconds"]


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


def test_a_ratio_of_speeds_is_measured_and_shown(
    suite: dict[str, Any], monkeypatch: pytest.MonkeyPatch, on_cluster: None
) -> None:
    monkeypatch.setattr(speed, "REPEATS", 1)
    config = tiny.tree(suite["tasks"]["cartpole"]["teacher"], method="noise")
    config["budget"] = {"seconds": 60, "observations": 640}
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
