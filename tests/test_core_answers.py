"""What a student learns beside the policy: the state's value and what the last layer reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from gasim_ray import cli
from gasim_ray.actors.workers import LocalWorkers, make_student
from gasim_ray.config import build_config
from gasim_ray.core.answers import COMPARED, answer, answer_loss, answer_parts, check_answers, inner_layers, widths
from gasim_ray.core.distill import student_loss
from gasim_ray.core.model import Model, ModelConfig, load_config, save_model
from gasim_ray.core.settings import StudentSettings
from gasim_ray.errors import UserError
from gasim_ray.teachers import load_teacher

BOTH = StudentSettings(architecture=tiny.SMALL_NETWORK, value_weight=0.5, features_weight=2.0)


def teacher(value: bool = True, hidden: int = 8) -> Model:
    """Of four numbers, three actions and, if so, a value."""
    config = replace(tiny.model(tiny.VECTOR).config, value=value)
    torch.manual_seed(0)
    return Model(replace(config, architecture={"name": "mlp", "hidden": [hidden]})).frozen()


def test_an_answer_is_logits_then_value_then_features() -> None:
    model, observations = teacher(), torch.rand(5, 4)
    outputs, value = model.with_value(observations)
    read = model.network.layers[:-1](model.config.observation.normalise(observations))  # type: ignore[index, operator, union-attr]
    logits = outputs - outputs.mean(1, keepdim=True)
    assert torch.equal(answer(model, observations, StudentSettings()), logits)
    both = answer(model, observations, BOTH)
    torch.testing.assert_close(both, torch.cat([logits, value.unsqueeze(1), read], 1))
    assert widths(model, BOTH) == [3, 1, 8]


def test_the_loss_adds_squared_errors_of_value_and_features() -> None:
    given, own = torch.rand(5, 12), torch.rand(5, 12)
    policy = student_loss(own[:, :3], given[:, :3], BOTH)
    value = (own[:, 3] - given[:, 3]).square()
    features = (own[:, 4:] - given[:, 4:]).square().mean(1) / given[:, 4:].square().mean()
    torch.testing.assert_close(answer_loss(own, given, [3, 1, 8], BOTH), policy + 0.5 * value + 2 * features)
    torch.testing.assert_close(answer_loss(given, given, [3, 1, 8], BOTH), torch.zeros(5))


LAYERS = StudentSettings(layers_weight=0.5)
FILTERS: dict[str, Any] = {"name": "cnn", "filters": [[8, 8, 4], [4, 4, 2], [4, 3, 1]], "hidden": [12]}


def player(**changed: Any) -> Model:
    """Of four stacked frames."""
    torch.manual_seed(0)
    return Model(replace(tiny.model(tiny.ATARI).config, architecture={**FILTERS, **changed})).frozen()


def test_what_layers_between_read_is_compared_whatever_their_rank() -> None:
    model, student = player(), player(rank=3, ranks=[0, 2, 0])
    names = ["convolutions.1", "convolutions.2", "head.0"]
    assert inner_layers(model) == inner_layers(student) == names
    frames = torch.randint(0, 256, (2, *tiny.ATARI.shape), dtype=torch.uint8)
    _, first, second, third = answer_parts(model, frames, LAYERS)
    assert [part.shape[1] for part in (first, second, third)] == [COMPARED, 4 * 81, 4 * 49]
    assert widths(model, LAYERS) == widths(student, LAYERS) == [model.config.actions, COMPARED, 4 * 81, 4 * 49]
    picture = model.config.observation.normalise(frames)
    read = model.network.convolutions[0](picture).relu()  # type: ignore[index, operator, union-attr]
    assert set(first[0].tolist()) <= set(read[0].flatten().tolist())
    read = model.network.convolutions[1](read).relu()  # type: ignore[index, operator, union-attr]
    torch.testing.assert_close(second, read.flatten(1))


def test_the_loss_adds_each_layer_as_a_share_of_its_square() -> None:
    given, own = torch.rand(5, 3 + 2 + 4), torch.rand(5, 3 + 2 + 4)
    loss = student_loss(own[:, :3], given[:, :3], LAYERS)
    for part in (slice(3, 5), slice(5, 9)):
        loss = loss + 0.5 * (own - given)[:, part].square().mean(1) / given[:, part].square().mean()
    torch.testing.assert_close(answer_loss(own, given, [3, 2, 4], LAYERS), loss)


THIS = [[8, 8, 4], [4, 4, 2], [4, 3, 1]]


@pytest.mark.parametrize(
    ("given", "wanted", "message"),
    [
        (
            player(filters=[[8, 8, 4], [5, 4, 2], [4, 3, 1]]),
            player(),
            r"convolutions\.2 reads \[5, 9, 9\] in the student",
        ),
        # The same kernels, of which the first two leave as much together.
        (
            player(filters=[[8, 8, 2], [4, 4, 4], [4, 3, 1]]),
            player(),
            r"convolutions\.1 reads \[8, 39, 39\] in the student",
        ),
        (player(filters=THIS[:2]), player(), r"convolutions\.2 is none of those between in the student"),
        (teacher(hidden=9), teacher(), "the teacher has no layer between the first and the last"),
    ],
)
def test_layers_are_compared_only_with_the_same(given: Model, wanted: Model, message: str) -> None:
    with pytest.raises(UserError, match=rf"student\.layers_weight: .*({message})"):
        check_answers(wanted, given, LAYERS)


def test_a_layer_that_reads_nothing_is_told() -> None:
    idle = player()
    idle.network.forward = lambda x: torch.zeros(len(x), idle.config.actions)  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"student\.layers_weight: convolutions\.1 reads \[\] in the student"):
        check_answers(idle, idle, LAYERS)


@pytest.mark.parametrize("architecture", [{"name": "dueling_mlp", "hidden": [8]}, {**FILTERS, "dueling": True}])
def test_a_dueling_network_answers_twice(architecture: dict[str, Any]) -> None:
    config = tiny.model(tiny.ATARI if architecture["name"] == "cnn" else tiny.VECTOR).config
    model = Model(replace(config, architecture=architecture, outputs="q_values")).frozen()
    both = replace(LAYERS, features_weight=1.0)
    assert all(widths(model, both))
    check_answers(model, model, both)


def test_a_run_learns_what_layers_between_read(tmp_path: Path) -> None:
    config = replace(tiny.model(tiny.VECTOR).config, architecture={"name": "mlp", "hidden": [8, 8]})
    torch.manual_seed(0)
    save_model(Model(config), tmp_path / "teacher")
    asked = {"layers_weight": 1.0, "learning_rate": 1e-2, "architecture": config.architecture}
    workers = LocalWorkers(
        load_teacher(tmp_path / "teacher"), build_config(tiny.tree(tmp_path / "teacher", local=True, student=asked))
    )
    observations, settings = torch.rand(256, 4), StudentSettings(layers_weight=1.0)
    aim = answer_parts(load_teacher(tmp_path / "teacher"), observations, settings)[1]

    def error() -> float:
        with torch.no_grad():
            return float((answer_parts(workers.learner.student, observations, settings)[1] - aim).square().mean())

    before = error()
    for order in range(75):
        workers.update(0.0, [workers.order(0, order, workers.student_weights()).payload])
    assert error() < 0.5 * before


def test_a_run_learns_value_and_features_and_its_student_answers_the_policy(tmp_path: Path) -> None:
    save_model(teacher(), tmp_path / "teacher")
    weights = {"value_weight": 1.0, "features_weight": 1.0, "learning_rate": 1e-2}
    tree = tiny.tree(tmp_path / "teacher", local=True, budget={"student_steps": 150}, student=weights)
    config = build_config(tree)
    workers = LocalWorkers(load_teacher(config.teacher), config)
    first = workers.learner.student.frozen()
    observations = torch.rand(256, 4)
    asked = config.student
    aim = answer(load_teacher(config.teacher), observations, asked)
    before = answer(first, observations, asked)
    workers.learner.student.requires_grad_(True)
    for order in range(75):
        workers.update(0.0, [workers.order(0, order, workers.student_weights()).payload])
    after = answer(workers.learner.student, observations, asked).detach()
    for part in (slice(0, 3), slice(3, 4), slice(4, 12)):
        error, start = ((x - aim)[:, part].square().mean() for x in (after, before))
        assert float(error) < 0.5 * float(start)


def test_a_student_with_a_value_is_kept_with_it(tmp_path: Path, config_file: Callable[..., Path]) -> None:
    save_model(teacher(), tmp_path / "teacher")
    tree = tiny.tree(tmp_path / "teacher", local=True, out=str(tmp_path / "run"), student={"value_weight": 1.0})
    assert cli.main(["distill", str(config_file(tree))]) == 0
    assert load_config(tmp_path / "run" / "student").value


@pytest.mark.parametrize(
    ("made", "settings", "message"),
    [
        ({"value": False}, {"value_weight": 1.0}, r"student\.value_weight: the teacher answers with logits alone"),
        (
            {"hidden": 9},
            {"features_weight": 1.0},
            r"student\.features_weight: the student's last layer reads 8 numbers",
        ),
    ],
)
def test_what_a_teacher_does_not_answer(
    tmp_path: Path, made: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    save_model(teacher(**made), tmp_path / "teacher")
    config = build_config(tiny.tree(tmp_path / "teacher", student=settings))
    with pytest.raises(UserError, match=message):
        make_student(load_teacher(config.teacher), config, None)


def test_a_value_is_asked_for_from_a_q_teacher(
    tmp_path: Path, config_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tiny.model(tiny.VECTOR, outputs="q_values"), tmp_path / "teacher")
    tree = tiny.tree(tmp_path / "teacher", out=str(tmp_path / "run"), student={"value_weight": 1.0})
    assert cli.main(["distill", str(config_file(tree)), "--local=true"]) == 2
    assert "student.value_weight: the teacher answers with q_values alone" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_a_layer_reads_is_not_asked_of_one_that_is_not_used() -> None:
    teacher = Model(ModelConfig({"name": "strange:Functional"}, tiny.VECTOR, 3, "logits")).frozen()
    with pytest.raises(UserError, match=r"^student\.features_weight, .* does not use all its layers"):
        answer(teacher, torch.zeros(2, 4), StudentSettings(features_weight=1.0))
