from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch
import yaml
from conftest import REPOSITORY, Gasim, marking
from small_sweep import Write, run_tune, sweep_tree

from gasim_ray import cli
from gasim_ray.core.model import Model, ModelConfig, load_model, save_model
from gasim_ray.errors import UserError
from gasim_ray.teachers import load_teacher
from gasim_ray.tuning.analysis import importances, in_words, study_of
from gasim_ray.tuning.folder import SweepFolder
from gasim_ray.tuning.results import TrialResult, best_of, table_of, unfinished, write_results
from gasim_ray.tuning.run import check_room, check_shared, hosts_without, largest
from gasim_ray.tuning.space import parse_space, random_settings
from gasim_ray.tuning.sweep import Sweep, ValidationSettings
from gasim_ray.tuning.validation import Validation, balanced, combined, make_validation


def test_a_sweep_leaves_results_and_a_configuration_to_distil(
    gasim: Gasim, cluster_address: str, tmp_path: Path, vector_teacher: Path, config_file: Write
) -> None:
    tree = sweep_tree(vector_teacher, searcher="tpe", trials=2, concurrent=2, seeds=2)
    tree["base"]["local"] = True
    out = run_tune(gasim, cluster_address, config_file(tree), "--out", "swept")
    assert "sweep: swept" in out
    assert "What mattered to regret cannot be said" in out
    rows = pd.read_csv(tmp_path / "swept" / "results.csv")
    assert list(rows["state"]) == ["finished"] * 2
    assert (rows["spent"] == 1).all()
    assert (rows["student_steps"] >= 24).all()
    assert {"generator.steps", "pool.hard", "student.batch_size", "agreement/uniform", "agreement/gas", "kl"} <= set(
        rows
    )
    best = rows.loc[rows["regret"].idxmin()]
    process = gasim("distill", "swept/best.yaml", "--out", "again", "--local=true")
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert yaml.safe_load((tmp_path / "again" / "config.yaml").read_text())["pool"]["hard"] == best["pool.hard"]
    assert {path.stem for path in (tmp_path / "swept" / "plots").glob("*.png")} >= {"history", "parallel", "slices"}
    students = list((tmp_path / "swept").glob("trial_*/checkpoint_*/student"))
    assert len(students) == 2
    assert load_model(students[0]).config.actions == 3
    assert not list((tmp_path / "swept").rglob("state.pt"))


def test_a_population_copies_learners(
    gasim: Gasim, cluster_address: str, tmp_path: Path, vector_teacher: Path, config_file: Write
) -> None:
    tree = sweep_tree(vector_teacher, scheduler="pbt", trials=2)
    tree["base"]["local"] = True
    tree["space"] = {"pool.capacity": {"loginteger": [100, 2000]}, "pool.hard": {"uniform": [0.0, 0.5]}}
    run_tune(gasim, cluster_address, config_file(tree), "--out", "swept")
    rows = pd.read_csv(tmp_path / "swept" / "results.csv")
    assert list(rows["state"]) == ["finished"] * 2
    assert rows["pool.capacity"].between(100, 2000).all()
    drawn = random_settings(parse_space(tree["space"]), 2, seed=0)
    kept = [row["pool.hard"] in {settings["pool.hard"] for settings in drawn} for _, row in rows.iterrows()]
    assert not all(kept)  # who copied a learner took other settings
    for result in (tmp_path / "swept").glob("trial_*/result.json"):
        spent = [json.loads(line)["spent"] for line in result.read_text().splitlines()]
        assert (len(spent), spent[-1]) == (2, 1)  # and went on from where it was
        assert spent == sorted(set(spent))


def test_a_sweep_needs_no_simulator(
    gasim: Gasim,
    tmp_path: Path,
    vector_teacher: Path,
    config_file: Write,
    blocker: Callable[..., Path],
    cluster_address: str,
) -> None:
    modules = ("gymnasium", "ale_py")
    folder = blocker(*modules)
    tree = sweep_tree(vector_teacher, trials=1)
    tree["base"]["student"]["architecture"] = marking(folder, *modules)
    job = json.dumps({"runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join([str(folder), str(REPOSITORY)])}}})
    environment = {"PYTHONPATH": str(folder), "RAY_ADDRESS": cluster_address, "RAY_JOB_CONFIG_JSON_ENV_VAR": job}
    process = gasim("tune", config_file(tree), "--out", "swept", **environment)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert list(pd.read_csv(tmp_path / "swept" / "results.csv")["state"]) == ["finished"]
    assert len(list((folder / "marks").iterdir())) == 4  # the program, the trial, its learner and its generator


def test_a_sweep_larger_than_the_cluster_is_refused(
    on_cluster: None, tmp_path: Path, vector_teacher: Path, config_file: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = sweep_tree(vector_teacher, space={"generator.actors": {"integer": [1, 40]}})
    assert cli.main(["tune", str(config_file(tree)), "--out", str(tmp_path / "out")]) == 2
    assert "space: a trial may reserve 10.25 CPU where the cluster has 4" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_a_host_does_not_see_is_told(
    on_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_shared(tmp_path / "new")
    assert hosts_without(tmp_path / "new") == []
    assert len(hosts_without(tmp_path / "elsewhere")) == 1
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^out: .*file cannot be written"):
        check_shared(tmp_path / "file")
    monkeypatch.setattr("gasim_ray.tuning.run.hosts_without", lambda file: ["10.0.0.2"])
    with pytest.raises(UserError, match=r"^out: .*new is not on 10\.0\.0\.2; give a folder that all hosts share"):
        check_shared(tmp_path / "new")


def test_a_teacher_that_a_host_does_not_see_is_told(
    on_cluster: None,
    tmp_path: Path,
    vector_teacher: Path,
    config_file: Write,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        "gasim_ray.tuning.run.hosts_without", lambda file: ["10.0.0.2"] if file.name == "config.json" else []
    )
    assert cli.main(["tune", str(config_file(sweep_tree(vector_teacher))), "--out", str(tmp_path / "out")]) == 2
    assert f"teacher: {vector_teacher} is not on 10.0.0.2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_every_device_that_is_searched_has_room(on_cluster: None, vector_teacher: Path) -> None:
    space = {"device": {"choice": ["cpu", "cuda"]}, "generator.actors": {"integer": [1, 2]}}
    sweep = Sweep(**sweep_tree(vector_teacher, space=space, validation=ValidationSettings()))
    here, elsewhere = largest(sweep.tree(), sweep.dimensions())
    assert [(tree["device"], tree["generator"]["actors"]) for tree in (here, elsewhere)] == [("cpu", 2), ("cuda", 2)]
    check_room(here)
    with pytest.raises(UserError, match=r"may reserve 1 GPU where the cluster has 0; .*, or leave cuda out of device"):
        check_room(elsewhere)


def test_a_sweep_whose_time_is_over_is_told_so(
    on_cluster: None, tmp_path: Path, vector_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = SweepFolder(tmp_path / "swept")
    files.begin(Sweep(**sweep_tree(vector_teacher, seconds=5.0, validation=ValidationSettings())), overwrite=False)
    files.over.touch()
    assert cli.main(["tune", "--resume", str(files.path)]) == 0
    assert "its 5.0 seconds are over" in capsys.readouterr().err


def test_a_sweep_does_not_leave_the_learner_s_place_unheeded(
    vector_teacher: Path, config_file: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = sweep_tree(vector_teacher)
    tree["base"]["student"]["node_label"] = "gasim=head"
    assert cli.main(["tune", str(config_file(tree))]) == 2
    assert "student.node_label: a sweep's trials go where Tune places them" in capsys.readouterr().err


def test_the_readme_s_script_of_ones_own_runs(tmp_path: Path, cluster_address: str, vector_teacher: Path) -> None:
    (script,) = re.findall(
        r"```python\n(from ray import tune\n.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL
    )
    for told, tiny_one in (
        ("/absolute/path/to/teacher", str(vector_teacher)),
        ('"student_steps": 1000', '"student_steps": 24'),
        ("num_samples=8", "num_samples=1"),
    ):
        assert told in script
        script = script.replace(told, tiny_one)
    environment = {**os.environ, "RAY_ADDRESS": cluster_address, "HOME": str(tmp_path)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "'pool.hard': " in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no sweep (sweep.yaml is missing)"),
        ({"format": 0}, "format 0 is of another version; this one reads 1"),
        ({"format": 1, "base": {}}, "space: missing"),
    ],
)
def test_a_folder_of_something_else_is_not_resumed(
    tmp_path: Path, content: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    assert cli.main(["tune", "--resume", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_what_is_in_a_folder_is_not_lost(tmp_path: Path, vector_teacher: Path) -> None:
    sweep = Sweep(**sweep_tree(vector_teacher, validation=ValidationSettings()))
    SweepFolder(tmp_path / "a").begin(sweep, overwrite=False)
    with pytest.raises(UserError, match="go on with --resume"):
        SweepFolder(tmp_path / "a").begin(sweep, overwrite=False)
    SweepFolder(tmp_path / "a").begin(sweep, overwrite=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").touch()
    (tmp_path / "b" / "sweep.yaml").touch()  # of the user's own
    with pytest.raises(UserError, match="something else than a sweep"):
        SweepFolder(tmp_path / "b").begin(sweep, overwrite=True)


def tiny_validation() -> Validation:
    observations = {"a": torch.rand(20, 4).numpy(), "b": torch.rand(20, 4).numpy()}
    return Validation(observations, {source: torch.randn(20, 3).log_softmax(1) for source in observations})


def test_a_full_disk_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "validation.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"validation\.pt: not written .*; free some space"):
        SweepFolder(tmp_path).save_validation(tiny_validation())


def test_results_that_do_not_fit_on_the_disk_leave_what_was_there(tmp_path: Path, vector_teacher: Path) -> None:
    sweep = analysed_sweep(vector_teacher)
    write_results(made_results(3), sweep, tmp_path)
    before = (tmp_path / "results.csv").read_bytes()
    (tmp_path / "results.csv.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_results(made_results(30), sweep, tmp_path)
    assert (tmp_path / "results.csv").read_bytes() == before


def test_a_changed_sweep_is_not_resumed(
    tmp_path: Path, vector_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SweepFolder(tmp_path / "a").begin(
        Sweep(**sweep_tree(vector_teacher, validation=ValidationSettings())), overwrite=False
    )
    file = tmp_path / "a" / "sweep.yaml"
    file.write_text(file.read_text().replace("trials: 4", "trials: 5"))
    assert cli.main(["tune", "--resume", str(tmp_path / "a")]) == 2
    assert "is no longer what the sweep began with; start a new one" in capsys.readouterr().err
    assert cli.main(["tune", str(file), "--resume", str(tmp_path / "a")]) == 2
    assert "give --resume DIR alone" in capsys.readouterr().err


def test_validation_counts_informed_sources_alone_and_each_action_alike() -> None:
    assert combined({"uniform": 0.2, "gas": 0.4, "geometry": 0.9, "gasim": 0.8}) == pytest.approx(0.85)
    same, choice = torch.tensor([1.0] * 90 + [0.0] * 10), torch.tensor([0] * 90 + [1] * 10)
    assert balanced(same, choice) == pytest.approx(0.5)
    assert balanced(torch.ones(3), torch.tensor([0, 1, 2])) == 1
    assert balanced(torch.tensor([1.0] * 10 + [0.0]), torch.tensor([0] * 10 + [1])) == 1  # one observation says nothing


def test_the_teacher_itself_has_full_agreement_and_an_untrained_student_less(vector_teacher: Path) -> None:
    tree = tiny.tree(vector_teacher)
    validation = make_validation(tree, ValidationSettings(observations=64, student_steps=4), seed=0, say=print)
    assert {"uniform", "gaussian", "gasim", "gas", "dafl"} <= set(validation.observations)
    teacher = load_teacher(vector_teacher)
    perfect = validation.score(teacher)
    assert perfect["agreement"] == 1
    assert perfect["kl"] == pytest.approx(0, abs=1e-6)
    assert perfect["regret"] == 0
    worse = validation.score(tiny.model(tiny.VECTOR, seed=9))
    assert worse["agreement"] < 1
    assert worse["kl"] > 0
    assert worse["regret"] > 0
    restored = Validation.from_state(validation.state_dict())
    assert restored.score(teacher) == perfect


def test_of_a_teacher_that_a_method_does_not_fit_there_is_validation_all_the_same(tmp_path: Path) -> None:
    # Of fewer units than elements, which `gasim`'s geometry does not take.
    narrow = Model(ModelConfig({"name": "mlp", "hidden": [3]}, tiny.VECTOR, 2, "logits")).frozen()
    save_model(narrow, tmp_path)
    said = list[str]()
    settings = ValidationSettings(observations=32, student_steps=4)
    validation = make_validation(tiny.tree(tmp_path), settings, seed=0, say=said.append)
    assert set(validation.observations) == {"uniform", "gaussian", "gas", "dafl"}
    assert any(line.startswith("validation: without gasim, which this teacher does not fit") for line in said)
    assert validation.score(narrow)["agreement"] == 1


def test_validation_is_the_same_for_the_same_seed_alone(vector_teacher: Path) -> None:
    settings = ValidationSettings(observations=32, student_steps=4)
    one, same, other = (make_validation(tiny.tree(vector_teacher), settings, seed, say=print) for seed in (0, 0, 1))
    for source, observations in one.observations.items():
        assert (observations == same.observations[source]).all()
        assert not (observations == other.observations[source]).all()


def made_results(count: int) -> list[TrialResult]:
    """Agreement follows pool.hard and has nothing to do with generator.steps."""
    return [
        TrialResult(
            f"trial_{i}",
            "finished",
            "",
            1.0,
            {"agreement": i / count, "seconds": 1.0},
            {"pool.hard": 0.75 * i / count, "generator.steps": i * 7 % 9},
        )
        for i in range(count)
    ]


def analysed_sweep(teacher: Path) -> Sweep:
    space = {"pool.hard": {"uniform": [0.0, 0.75]}, "generator.steps": {"integer": [0, 8]}}
    tree = sweep_tree(teacher, space=space, validation=ValidationSettings(), trials=40, objective={"agreement": "max"})
    return Sweep(**tree)


def test_importance_finds_what_mattered(vector_teacher: Path) -> None:
    sweep, results = analysed_sweep(vector_teacher), made_results(40)
    ranked = importances(study_of(results, sweep, parse_space(sweep.space)))
    assert [importance.key for importance in ranked] == ["pool.hard", "generator.steps"]
    assert ranked[0].mean > 0.8
    words = in_words(results, sweep, ranked)
    assert words.startswith("What mattered to agreement: pool.hard (")
    assert words.count(". ") == 2
    assert "40 finished trials of 40" in words


def test_trials_that_all_came_out_alike_say_nothing(vector_teacher: Path) -> None:
    sweep = analysed_sweep(vector_teacher)
    alike = [replace(result, figures={"agreement": 1.0}) for result in made_results(9)]
    nearly = [*alike, replace(alike[0], figures={"agreement": 0.5})]
    assert importances(study_of(alike, sweep, parse_space(sweep.space))) == []
    assert len(importances(study_of(nearly, sweep, parse_space(sweep.space)))) == 2


def test_the_best_is_a_finished_trial_in_the_right_direction(vector_teacher: Path) -> None:
    sweep, results = analysed_sweep(vector_teacher), made_results(5)
    stopped = TrialResult("trial_s", "stopped", "", 0.5, {"agreement": 2.0}, {})
    dead = TrialResult("trial_f", "failed", "NaN", 0.0, {}, {})
    begun = TrialResult("trial_u", "unfinished", "", 0.2, {"agreement": 3.0}, {})
    every = [*results, stopped, dead, begun]
    best = best_of(every, sweep)
    assert best is not None
    assert best.name == "trial_4"
    cheapest = best_of(every, Sweep(**{**vars(sweep), "objective": {"agreement": "min"}}))
    assert cheapest is not None
    assert cheapest.name == "trial_0"
    assert best_of([stopped, dead], sweep) is None
    assert unfinished(every, total=10) == 1 + 2
    table = table_of(every, sweep)
    assert list(table["trial"]) == [result.name for result in every]
    assert {"pool.hard", "generator.steps", "seed", "student.learning_rate"} <= set(table)
