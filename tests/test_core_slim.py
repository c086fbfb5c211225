"""A wide residual student that starts as the teacher with fewer channels and blocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from gasim_ray.actors import workers
from gasim_ray.actors.workers import make_learner, make_prior, make_student
from gasim_ray.config import build_config
from gasim_ray.core.distill import new_student
from gasim_ray.core.model import Model, ModelConfig, save_model
from gasim_ray.core.outputs import policy_logits
from gasim_ray.core.seeds import rng
from gasim_ray.core.settings import StudentSettings
from gasim_ray.core.slim import least_squares, slim, slim_obstacle
from gasim_ray.errors import UserError

#: Small, so that tests are quick.
SPEC = replace(tiny.GREY, shape=(1, 12, 12))


def wide(depth: int = 16, width: int = 2, normalised: bool = True) -> dict[str, Any]:
    """The architecture."""
    return {"name": "wide_resnet", "depth": depth, "width": width, "normalised": normalised}


def teacher(architecture: dict[str, Any]) -> Model:
    """A network that has seen some noise, so that its statistics are those of its own answers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model(ModelConfig(architecture, SPEC, 5, "logits"))
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias, 0.0, 0.3)
                layer.momentum = None
        for _ in range(3):
            model(images(64))
    return model.frozen()


def images(count: int, seed: int = 0) -> Tensor:
    """Noise of several strengths."""
    random = rng("cpu", seed)
    strength = torch.rand((count, *[1] * len(SPEC.shape)), generator=random)
    return 128 + 127 * strength * (2 * torch.rand((count, *SPEC.shape), generator=random) - 1)


def student(architecture: dict[str, Any], of: Model) -> Model:
    """One with fresh weights."""
    return new_student(of, StudentSettings(architecture=architecture), 0)


def unexplained(of: Model, by: Model) -> float:
    """Share of the variance of a teacher's policy logits on fresh images that a student's lack."""
    seen = images(100, 1)
    with torch.no_grad():
        expected, found = (policy_logits(m.eval()(seen), 1.0) for m in (of, by))
    return float((expected - found).square().mean() / (expected - expected.mean(0)).square().mean())


def test_a_student_of_the_same_size_answers_as_the_teacher() -> None:
    big = teacher(wide(10, 1))
    small = student(wide(10, 1), big)
    before = {name: tensor.clone() for name, tensor in big.state_dict().items()}
    slim(big, small, images(256))
    assert small.training
    assert unexplained(big, small) < 0.02
    assert all(torch.equal(tensor, before[name]) for name, tensor in big.state_dict().items())


@pytest.mark.parametrize(("depth", "width"), [(16, 1), (10, 2), (10, 1)])
def test_a_smaller_one_keeps_much_of_the_teacher(depth: int, width: int) -> None:
    big = teacher(wide(16, 2))
    small = student(wide(depth, width), big)
    fresh = unexplained(big, small)
    slim(big, small, images(600))
    assert unexplained(big, small) < min(0.6, fresh / 2)


@pytest.mark.parametrize(
    ("big", "small", "why"),
    [
        (wide(10, 1), wide(16, 1), "deeper or wider"),
        (wide(10, 1), wide(10, 2), "deeper or wider"),
        (wide(10, 1, normalised=False), wide(10, 1, normalised=False), "without batch normalisation"),
        (wide(10, 1), {"name": "resnet", "depth": 18, "width": 2}, "not both wide"),
        (wide(16, 2), wide(16, 1), None),
    ],
)
def test_what_cannot_be_fitted_is_said(big: dict[str, Any], small: dict[str, Any], why: str | None) -> None:
    of = teacher(big)
    found = slim_obstacle(of, student(small, of))
    assert found is None if why is None else why in str(found)


def test_least_squares_finds_what_is_linear() -> None:
    random = rng("cpu", 0)
    weight, bias = torch.randn((3, 4), generator=random), torch.randn(3, generator=random)
    rows = torch.randn((200, 4), generator=random)
    found = least_squares((part, part @ weight.T + bias) for part in rows.split(64))
    torch.testing.assert_close(found[0], weight, atol=0.02, rtol=0.02)
    torch.testing.assert_close(found[1], bias, atol=0.02, rtol=0.02)


def test_a_learner_starts_so_and_a_start_that_does_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "FITTING_SAMPLES", 100)
    big = teacher(wide(10, 2))
    save_model(big, tmp_path / "teacher")
    tree = tiny.tree(tmp_path / "teacher", local=True)
    tree["student"] = {"architecture": wide(10, 1), "init": "prune"}
    tree["generator"] = {"kind": "direct", "prior": ["uniform"], "steps": 1, "batch_size": 64, "actors": 1}
    tree["objective"] = {"batch_norm": 1.0, "adversarial": 1.0}
    config = build_config(tree)
    prior = make_prior(big, config, "cpu")
    learner = make_learner(big, config, "cpu", prior)
    assert unexplained(big, learner.student) < unexplained(big, student(wide(10, 1), big))
    deeper = replace(config, student=replace(config.student, architecture=wide(16, 1)))
    with pytest.raises(UserError, match=r"student\.init: 'prune' does not fit, the student is deeper"):
        make_student(big, deeper, prior)
