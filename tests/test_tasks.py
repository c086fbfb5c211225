"""Tasks: what `--task` and `--groups` stand for, what a game is measured on, and hidden modes of what was invented."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from gasim_ray import cli
from gasim_ray.actors import workers
from gasim_ray.config import build_config, merged
from gasim_ray.core.model import Model, ModelConfig, load_config, load_model, save_model
from gasim_ray.errors import UserError
from gasim_ray.evaluation import modes, tasks
from gasim_ray.evaluation.atari import STICKY, sticky_of, with_sticky
from gasim_ray.evaluation.datasets import find_source, load_dataset, parse_groups
from gasim_ray.evaluation.episodes import Returns
from gasim_ray.evaluation.modes import ModeShares, mode_shares
from gasim_ray.evaluation.tasks import DatasetTask, EnvironmentTask
from gasim_ray.models import build_network
from gasim_ray.run_folder import RunFolder, saved_config
from gasim_ray.tasks import (
    TASKS,
    distillation_of,
    find_task,
    folder_to_train,
    judge_folder,
    split_task,
    teacher_folder,
)

GAME = "ALE/Pong-v5"


@pytest.mark.parametrize("name", list(TASKS))
def test_every_task_can_be_built(name: str) -> None:
    task = TASKS[name]
    source = find_source(task.dataset)
    classes = len(source.class_names)
    actions = len(parse_groups(task.groups, classes)) if task.groups else classes
    with torch.device("meta"):
        networks = [build_network(dict(a), source.shape, actions) for a in (task.teacher, task.student)]
    teacher, student = (sum(p.numel() for p in network.parameters()) for network in networks)
    assert student < 0.6 * teacher


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.dataset == "cifar10"])
def test_a_pair_of_residual_networks_is_distilled(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "FITTING_SAMPLES", 32)
    # As deep as the task's, on smaller pictures and, where that is a setting of its own, with fewer channels.
    fewer = {"width": 4} if TASKS[name].teacher["name"] == "resnet" else {}
    big, small = ({**architecture, **fewer} for architecture in (TASKS[name].teacher, TASKS[name].student))
    teacher = Model(ModelConfig(big, replace(tiny.COLOUR, shape=(3, 16, 16)), 10, "logits")).frozen()
    save_model(teacher, tmp_path / "teacher")
    given = {"teacher": str(tmp_path / "teacher"), "method": "gasim", "generator": {"batch_size": 16, "steps": 2}}
    given |= {"student": {"architecture": small, "batch_size": 16}, "budget": {"observations": 32}}
    config = build_config({**given, "local": True, "out": str(tmp_path / "run")})
    assert config.objective.batch_norm == (0.0 if name == "cifar10-nobn" else 0.1)
    student = load_model(cli.run_distillation(config) / "student")
    for layer in student.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            assert layer.running_var is not None
            assert bool(layer.running_var.ne(1).all())
    assert bool(torch.isfinite(student(torch.rand((4, 3, 16, 16)))).all())


@pytest.mark.parametrize("name", [name for name in TASKS if (teacher_folder(name) / "config.json").exists()])
def test_a_shipped_teacher_is_distilled_by_the_name_of_its_task(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "FITTING_SAMPLES", 32)
    tiny_run = {"generator": {"batch_size": 32, "steps": 1}, "student": {"batch_size": 32}, "local": True}
    given = merged(distillation_of(name), {**tiny_run, "budget": {"observations": 64}, "out": str(tmp_path / "run")})
    student = load_model(cli.run_distillation(build_config(given)) / "student")
    assert student.config.actions == load_model(given["teacher"]).config.actions


@pytest.mark.usefixtures("on_cluster")
def test_a_task_is_trained_distilled_and_evaluated_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    groups = "0,1,2,3,4/5,6,7,8/9"
    named = ["--task", "mnist-sample", "--groups", groups]
    distil = ["distill", *named, "--local", "--budget.student_steps", "20", "--out", "run"]
    assert cli.main(distil) == 2
    said = capsys.readouterr().err
    assert f"make it with: gasim teacher train --task mnist-sample --groups {groups}" in said
    assert cli.main(["teacher", "train", *named, "--epochs", "1", "--arguments", "{width: 0.5}"]) == 0
    folder = Path("teachers") / "mnist-sample-0,1,2,3,4_5,6,7,8_9"
    config = load_config(folder)
    assert (config.actions, config.source["groups"], config.architecture["name"]) == (3, groups, "lenet5")
    assert cli.main(distil) == 0
    assert saved_config(Path("run")).teacher == str(folder)
    assert load_config(Path("run/student")).architecture == {"name": "lenet5", "width": 0.5}
    assert cli.main(["evaluate", "run", "--no-controls"]) == 0
    assert "make it with: gasim teacher train --task mnist-sample" in capsys.readouterr().err
    assert cli.main(["teacher", "train", "--task", "mnist-sample", "--epochs", "1"]) == 0
    assert cli.main(["evaluate", "run", "--no-controls", "--json", "figures.json"]) == 0
    assert "hidden modes of what was invented" in capsys.readouterr().out
    modes = json.loads(Path("figures.json").read_text())[0]["modes"]
    assert list(modes["shares"]) == [str(digit) for digit in range(10)]
    assert sum(modes["shares"].values()) == pytest.approx(1.0)
    assert modes["recall"] == ModeShares(modes["shares"]).recall


def test_groups_that_are_a_named_task_have_its_teacher() -> None:
    assert teacher_folder("mnist", "0,1/2,3/4,5/6,7/8,9") == teacher_folder("mnist-pairs")
    assert teacher_folder("mnist-pairs", "") == teacher_folder("mnist")
    assert teacher_folder("mnist", "0,1/2,3/4,5/6,7,8/9").name == "mnist-0,1_2,3_4,5_6,7,8_9"
    assert judge_folder("mnist") == teacher_folder("mnist")
    assert judge_folder("cifar10") == teacher_folder("cifar10-small")  # the one that is shipped
    # A shipped one is not in the way of one's own.
    assert folder_to_train("mnist", "0,1/2,3/4,5/6,7/8,9") == Path("teachers/mnist-pairs")


def test_a_file_and_dotted_keys_win_over_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    from gasim_ray.config import parse_config

    (tmp_path / "given.yaml").write_text("student: {steps: 3}\nseed: 4\n")
    base = distillation_of("mnist")
    config = parse_config(["--student.batch_size", "64"], "given.yaml", base)
    assert (config.student.steps, config.student.batch_size, config.seed) == (3, 64, 4)
    assert config.student.architecture == {"name": "lenet5", "width": 0.5}
    assert config.teacher == str(teacher_folder("mnist"))


def test_a_file_that_names_a_teacher_and_a_task_are_refused_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "given.yaml").write_text(f"teacher: {teacher_folder('mnist-pairs')}\n")
    assert cli.main(["distill", str(tmp_path / "given.yaml"), "--task", "mnist"]) == 2
    assert "given.yaml names a teacher; leave out one of the two" in capsys.readouterr().err


def test_task_and_groups_are_taken_out_of_a_command_line() -> None:
    assert split_task(["--seed", "1"]) == (None, ["--seed", "1"])
    assert split_task(["--task=mnist", "--seed", "1"]) == (("mnist", None), ["--seed", "1"])
    assert split_task(["--groups", "0/1", "--task", "x", "--local"]) == (("x", "0/1"), ["--local"])
    with pytest.raises(UserError, match="groups: they need a --task"):
        split_task(["--groups", "0/1"])
    with pytest.raises(UserError, match="expected one argument"):
        split_task(["--task"])


def test_an_unknown_task_gets_the_nearest() -> None:
    with pytest.raises(UserError, match="task: 'mnist-pair' is not known; did you mean 'mnist-pairs'"):
        find_task("mnist-pair")


def test_a_merged_task_is_scored_by_class_and_by_hidden_mode() -> None:
    dataset = load_dataset("mnist-sample", groups="0,1,2,3,4/5,6,7,8,9")
    model = tiny.model(tiny.GREY, actions=2)
    for parameter in model.parameters():
        parameter.data.zero_()
    score = DatasetTask(dataset).measure({"teacher": model})[0]["teacher"]
    assert score.interval.mean == 0.5
    assert (score.worst_class, score.worst_class_accuracy) == ("5", 0.0)


def test_a_judge_tells_which_hidden_modes_a_pool_holds() -> None:
    dataset = load_dataset("mnist-sample", groups="0,1,2,3,4/5,6,7,8,9")
    assert dataset.modes is not None
    judge = tiny.model(tiny.GREY, actions=10)
    found = mode_shares(dataset.test_images, judge, dataset.modes)
    choices = judge(torch.from_numpy(dataset.test_images)).argmax(1).numpy()
    assert list(found.shares.values()) == [float((choices == label).mean()) for label in range(10)]
    with pytest.raises(UserError, match="judge: tells 3 classes apart where there were 10"):
        mode_shares(dataset.test_images, tiny.model(tiny.GREY, actions=3), dataset.modes)
    with pytest.raises(UserError, match="observations: none"):
        mode_shares(dataset.test_images[:0], judge, replace(dataset.modes))


def test_every_place_of_a_pool_may_be_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Orders are sorted by what the teacher answers: of every other observation a judge would see one class alone."""
    dataset = load_dataset("mnist-sample", groups="0,1,2,3,4/5,6,7,8,9")
    judge = tiny.model(tiny.GREY, actions=10)
    save_model(judge, tmp_path / "judge")
    pair = dataset.test_images[:1], 255 - dataset.test_images[:1]
    alone = [int(judge(torch.from_numpy(images)).argmax(1)) for images in pair]
    assert alone[0] != alone[1]
    monkeypatch.setattr(modes, "judge_folder", lambda name: tmp_path / "judge")
    monkeypatch.setattr(RunFolder, "pool", lambda run: np.concatenate(pair * (2 * modes.JUDGED)))
    found = modes.modes_of_run(tmp_path, DatasetTask(dataset))
    assert found is not None
    assert [list(found.shares.values())[place] for place in alone] == pytest.approx([0.5, 0.5], abs=0.02)


def test_recall_counts_the_modes_that_hold_a_fifth_of_an_even_share() -> None:
    assert ModeShares({"a": 0.97, "b": 0.03}).recall == 0.5
    assert ModeShares({"a": 0.9, "b": 0.1}).recall == 1.0
    assert ModeShares(dict(zip("abcd", np.full(4, 0.25), strict=True))).recall == 1.0


@pytest.mark.parametrize(("asked", "sticky"), [(GAME, STICKY), (f"{GAME}?sticky=.5", 0.5)])
def test_a_game_is_played_without_sticky_actions_and_with_them_and_states_are_from_those(
    asked: str, sticky: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def play(env_id: str, keep: int) -> Returns:
        value = sticky_of(env_id)
        return Returns(np.full(2, value), np.ones(2, np.int64), np.full((keep, 1), value), np.zeros(keep))

    seen: list[str] = []

    def many(models: dict[str, Model], env_id: str, *rest: Any) -> dict[str, Returns]:
        seen.append(env_id)
        return {name: play(env_id, rest[2].get(name, 0)) for name in models}

    monkeypatch.setattr(tasks, "evaluate_many", many)
    monkeypatch.setattr(tasks, "evaluate_return", lambda _, env_id, *rest: play(env_id, rest[2]))
    task, models = EnvironmentTask(asked, 2), {"teacher": tiny.model(tiny.ATARI)}
    scores, states = task.measure(models)
    assert sorted(seen) == [GAME, with_sticky(GAME, sticky)]
    assert set(states.flat) == set(task.training_observations(models["teacher"]).flat) == {sticky}
    score = scores["teacher"]
    assert (score.interval.mean, score.sticky and score.sticky.mean) == (0.0, sticky)
