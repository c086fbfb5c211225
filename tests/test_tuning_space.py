from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import yaml
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st
from small_sweep import sweep_tree

from gasim_ray import cli
from gasim_ray.config import DistillConfig, build_config
from gasim_ray.core.model import load_model
from gasim_ray.errors import UserError
from gasim_ray.tuning.run import check
from gasim_ray.tuning.space import (
    Dimension,
    check_values,
    decoded,
    encoded,
    grid_settings,
    parse_space,
    random_settings,
    with_settings,
)
from gasim_ray.tuning.sweep import Sweep, parse_sweep
from gasim_ray.tuning.trial import TrialPlan, measure_on_task

SPACE = {
    "generator.kind": {"choice": ["direct", "network"]},
    "generator.prior": {"choice": [["uniform"], ["geometry", "undecided"]], "when": {"generator.kind": "direct"}},
    "generator.reset_every": {"loginteger": [1, 100], "when": {"generator.kind": ["network"]}},
    "generator.steps": {"integer": [0, 8]},
    "generator.learning_rate": {"loguniform": [0.003, 1.0]},
    "pool.hard": {"uniform": [0.0, 0.75]},
}


bounds = st.tuples(st.integers(1, 10_000), st.integers(1, 10_000)).map(sorted)


@given(bounds, st.sampled_from(["uniform", "loguniform", "integer", "loginteger"]), st.integers(0, 2**32 - 1))
def test_drawn_and_clamped_values_stay_within_their_bounds(pair: list[int], kind: Any, seed: int) -> None:
    low, high = pair
    (dimension,) = parse_space({"pool.capacity": {kind: [low, high]}})
    value = dimension.draw(np.random.default_rng(seed))
    assert low <= value <= high
    assert isinstance(value, int) == kind.endswith("integer")
    assert low <= dimension.clamped(value * 1.2) <= high
    assert dimension.clamped(value) == value


json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v, max_size=3))


@given(json_values.filter(lambda v: not (isinstance(v, str) and v[:1] in ("[", "{"))))
def test_encoded_values_come_back(value: Any) -> None:
    assert decoded(encoded(value)) == value
    assert encoded(value) is None or isinstance(encoded(value), bool | int | float | str)


def test_numbers_of_numpy_become_plain_ones() -> None:
    assert type(decoded(np.int64(3))) is int
    assert type(decoded(np.float64(0.5))) is float


def test_a_conditional_key_is_drawn_only_where_it_counts() -> None:
    drawn = random_settings(parse_space(SPACE), 40, seed=3)
    assert {settings["generator.kind"] for settings in drawn} == {"direct", "network"}
    for settings in drawn:
        direct = settings["generator.kind"] == "direct"
        assert ("generator.prior" in settings) == direct
        assert ("generator.reset_every" in settings) == (not direct)
    assert drawn == random_settings(parse_space(SPACE), 40, seed=3)
    assert drawn != random_settings(parse_space(SPACE), 40, seed=4)


def test_a_grid_crosses_what_counts_and_repeats_nothing() -> None:
    space = {
        "generator.kind": {"choice": ["direct", "network"]},
        "generator.reset_every": {"grid": [1, 10], "when": {"generator.kind": "network"}},
        "pool.hard": {"grid": [0.0, 0.5]},
    }
    combinations = grid_settings(parse_space(space))
    assert len(combinations) == 6
    assert len({tuple(sorted(c.items())) for c in combinations}) == 6
    assert {"generator.kind": "direct", "pool.hard": 0.5} in combinations


def test_settings_reach_every_depth_and_leave_the_rest() -> None:
    base = {"student": {"architecture": {"name": "mlp", "hidden": [8]}, "steps": 2}, "seed": 1}
    tree = with_settings(base, {"student.architecture.hidden": "[4, 4]", "pool.hard": 0.5, "seed": 2})
    assert tree == {
        "student": {"architecture": {"name": "mlp", "hidden": [4, 4]}, "steps": 2},
        "pool": {"hard": 0.5},
        "seed": 2,
    }
    assert base["student"]["architecture"] == {"name": "mlp", "hidden": [8]}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "space: empty"),
        ({"generator.step": {"choice": [1]}}, "space.generator.step: no such key; did you mean generator.steps?"),
        ({"pool.hard": {"unifrom": [0, 1]}}, "space.pool.hard: 'unifrom' is not known; did you mean 'uniform'?"),
        ({"pool.hard": 0.5}, "space.pool.hard: 0.5 is no distribution"),
        ({"pool.hard": {"uniform": [0.5, 0.1]}}, "space.pool.hard.uniform: the lower bound 0.5 is above the upper"),
        ({"pool.hard": {"uniform": [0.5]}}, "are not two numbers"),
        ({"pool.hard": {"choice": []}}, "space.pool.hard.choice: [] is no list of values"),
        ({"pool.hard": {"choice": 3}}, "space.pool.hard.choice: 3 is no list of values"),
        ({"pool.capacity": {"loginteger": [0, 10]}}, "space.pool.capacity.loginteger: 0 has no logarithm"),
        ({"pool.capacity": {"integer": [1.5, 10]}}, "are not two whole numbers"),
        ({"pool.hard": {"choice": [0], "when": {"pool.fade": 1}}}, "space.pool.hard.when: pool.fade is not among"),
        ({"pool.hard": {"choice": [0], "when": [1]}}, "space.pool.hard.when: [1] is no mapping"),
        (
            {"generator.kind": {"choice": ["direct"]}, "pool.hard": {"choice": [0], "when": {"generator.kind": []}}},
            "space.pool.hard.when: generator.kind is to have no value at all",
        ),
        ({"student.learning_rate": {"loguniform": ["1e-4", "3e-3"]}}, "YAML reads 1e-3 as text, write 1.0e-3"),
    ],
)
def test_an_impossible_space_is_refused(space: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        parse_space(space)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"pool.capacity": {"uniform": [1, 10]}}, "is not of type int"),
        ({"pool.hard": {"uniform": [0.5, 1.5]}}, "space.pool.hard: with 1.5: pool.hard: 1.5 is impossible"),
        ({"generator.kind": {"choice": ["direct", "netwrk"]}}, "with 'netwrk'"),
        ({"generator.steps": {"choice": ["many"]}}, "is not of type int"),
    ],
)
def test_a_value_that_a_distillation_refuses_is_refused_at_once(
    vector_teacher: Path, space: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as refusal:
        check_values(tiny.tree(vector_teacher), parse_space(space))
    assert message in str(refusal.value)


def test_a_missing_searcher_says_what_to_install(vector_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep(**{**sweep_tree(vector_teacher), "searcher": "tpe"})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package optuna; install it with: pip install -e '\.\[tune\]'"):
        check(sweep)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"trials": 0}, "sweep.trials: 0 is impossible; give at least 1"),
        ({"concurrent": 0}, "sweep.concurrent: 0 is impossible; give at least 1"),
        ({"trails": 3}, "trails: no such key of a sweep; did you mean trials?"),
        ({"objective": {"agrement": "max"}}, "no trial reports 'agrement'; did you mean 'agreement'?"),
        ({"objective": {"return": "max"}}, "return is reported only with evaluate.enabled: true"),
        ({"objective": {}}, "sweep.objective: empty"),
        ({"objective": {"agreement": "up"}}, "objective"),
        ({"scheduler": "asha", "reports": 1}, "leaves asha no intermediate report to judge by"),
        ({"scheduler": "asha", "objective": {"agreement": "max", "seconds": "min"}}, "follows one objective"),
        ({"scheduler": "pbt", "searcher": "grid"}, "with pbt, which searches by itself"),
        ({"scheduler": "pbt", "seeds": 2}, "copies one learner"),
        ({"scheduler": "pbt", "space": {"generator.actors": {"choice": [1, 2]}}}, "space.generator.actors: pbt cannot"),
        (
            {"scheduler": "pbt", "space": {"student.layers_weight": {"uniform": [0.0, 1.0]}}},
            "layers_weight: pbt cannot",
        ),
        ({"space": {"teacher": {"choice": ["a", "b"]}}}, "space.teacher: is the same for all trials"),
        (
            {"space": {"generator.batch_size": {"choice": [8]}, "pool.replay": {"choice": [0.5]}}},
            "student.batch_size: 32 is more than generator.batch_size",
        ),
        ({"space": None}, "space: missing or no mapping"),
        ({"format": 0}, "format 0 is of another version"),
        ({"space": {"generator.actors": {"integer": [1, 0]}}}, "the lower bound 1 is above the upper one 0"),
        ({"searcher": "grid"}, "space.generator.steps: integer has no end of values"),
        ({"evaluate": {"enabled": True}}, "evaluate.enabled: the teacher in"),
        ({"loggers": ["wandb"]}, "needs the package wandb; install it with: pip install -e '.[wandb]'"),
    ],
)
def test_bad_sweeps_exit_with_one_line_and_write_nothing(
    tmp_path: Path,
    vector_teacher: Path,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, Any],
    message: str,
) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({**sweep_tree(vector_teacher), **changed}))
    assert cli.main(["tune", str(file), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--concurent", "2"], "concurent: no such key; did you mean concurrent?"),
        (["--zzzzzz", "2"], "zzzzzz: no such key; see gasim tune --help"),
        (["--out", "s3://bucket/sweep"], "out: s3://bucket/sweep is an address; give a folder"),
    ],
)
def test_a_wrong_argument_of_a_sweep_is_named(
    vector_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep_tree(vector_teacher)))
    assert cli.main(["tune", str(file), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_an_objective_of_another_kind_of_task_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = sweep_tree("benchmarks/teachers/acrobot-dqn", evaluate={"enabled": True}, objective={"accuracy": "max"})
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(tree))
    assert cli.main(["tune", str(file), "--out", str(tmp_path / "out")]) == 2
    assert "sweep.objective: Acrobot-v1 reports return, not accuracy" in capsys.readouterr().err


def test_a_sweep_reads_back_what_it_writes(tmp_path: Path, vector_teacher: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep_tree(vector_teacher)))
    sweep = parse_sweep(file, ["--trials", "7", "--evaluate.episodes=3"])
    assert (sweep.trials, sweep.evaluate.episodes) == (7, 3)
    again = tmp_path / "again.yaml"
    again.write_text(sweep.to_yaml())
    assert parse_sweep(again).to_yaml() == sweep.to_yaml()
    assert parse_sweep(again).space == sweep.space


def test_a_setting_of_the_base_leaves_the_others_of_its_section(tmp_path: Path, vector_teacher: Path) -> None:
    file = tmp_path / "sweep.yaml"
    tree = sweep_tree(vector_teacher)
    tree["base"] = {**tree["base"], "student": {"steps": 3, "architecture": {"name": "mlp", "hidden": [5]}}}
    file.write_text(yaml.safe_dump(tree))
    given = ["--base.student.learning_rate=0.5", "--base.student.architecture", "{name: mlp, hidden: [6]}"]
    base = parse_sweep(file, [*given, "--trials", "3"]).base
    expected = {"steps": 3, "learning_rate": 0.5, "architecture": {"name": "mlp", "hidden": [6]}}
    assert base == {**tree["base"], "student": expected}
    with pytest.raises(UserError, match=r"^base\.student\.steps: no value"):
        parse_sweep(file, ["--base.student.steps", "--trials", "3"])
    with pytest.raises(UserError, match=r"^base\.student\.architecture: '\{name: mlp' is no YAML"):
        parse_sweep(file, ["--base.student.architecture", "{name: mlp"])
    with pytest.raises(UserError, match=r"^base: teacher\.x lies beneath what is no section"):
        parse_sweep(file, ["--base.teacher.x", "1"])


def test_a_sweep_has_a_teacher_or_a_task_and_its_seed_may_change(vector_teacher: Path) -> None:
    tree = sweep_tree(vector_teacher)
    with pytest.raises(UserError, match=r"^base\.task: 'mnist' beside base\.teacher, .*give one of them"):
        Sweep(**{**tree, "base": {**tree["base"], "task": "mnist"}}).tree()
    again = yaml.safe_load(Sweep(**tree, seed=5).to_yaml())
    del again["format"]
    assert Sweep(**{**again, "seed": 9}).tree()["seed"] == 9
    own = Sweep(**{**tree, "base": {**tree["base"], "seed": 3}}, seed=9)
    assert yaml.safe_load(own.to_yaml())["base"]["seed"] == own.tree()["seed"] == 3


def test_a_trial_finds_the_data_of_the_folder_where_the_sweep_was_begun(
    vector_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = TrialPlan({}, place=str(tmp_path))
    asked: list[Path] = []

    def task(*_: Any, **__: Any) -> Any:
        asked.append(Path.cwd())
        raise KeyboardInterrupt

    monkeypatch.setattr("gasim_ray.evaluation.runs.task_of_teacher", task)
    before = Path.cwd()
    with pytest.raises(KeyboardInterrupt):
        measure_on_task(DistillConfig(str(vector_teacher)), load_model(vector_teacher), plan)
    assert asked == [tmp_path]
    assert Path.cwd() == before


@pytest.mark.parametrize("file", sorted((REPOSITORY / "tune_configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_sweep_can_be_read(file: Path) -> None:
    sweep = parse_sweep(file)
    space = sweep.dimensions()
    for settings in random_settings(space, 5, seed=0):
        build_config(with_settings(sweep.tree(), settings))


def test_every_shipped_teacher_has_a_sweep() -> None:
    teachers = {
        folder.name for folder in (REPOSITORY / "benchmarks/teachers").iterdir() if (folder / "config.json").exists()
    }
    assert teachers <= {file.stem for file in (REPOSITORY / "tune_configs").glob("*.yaml")}


def test_a_dimension_is_what_was_declared() -> None:
    (dimension,) = parse_space({"pool.capacity": {"loginteger": [1, 9]}})
    assert dimension == Dimension("pool.capacity", "loginteger", (1, 9), {})
    assert dimension.log
    assert not dimension.listed
