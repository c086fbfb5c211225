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
from gasim_ray.core.answers import answer, answer_loss, columns
from gasim_ray.core.distill import student_loss
from gasim_ray.core.model import Model, load_config, save_model
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
    assert both.shape[1] == columns(model, BOTH) == 3 + 1 + 8


def test_the_loss_adds_squared_errors_of_value_and_features() -> None:
    given, own = torch.rand(5, 12), torch.rand(5, 12)
    policy = student_loss(own[:, :3], given[:, :3], BOTH)
    value = (own[:, 3] - given[:, 3]).square()
    features = (own[:, 4:] - given[:, 4:]).square().mean(1) / given[:, 4:].square().mean()
    torch.testing.assert_close(answer_loss(own, given, 3, BOTH), policy + 0.5 * value + 2 * features)
    torch.testing.assert_close(answer_loss(given, given, 3, BOTH), torch.zeros(5))


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
