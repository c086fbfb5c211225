"""The teacher with layers of low rank."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gasim_ray.actors.workers import make_learner
from gasim_ray.config import build_config
from gasim_ray.core.distill import new_student
from gasim_ray.core.model import Model, ModelConfig, save_model
from gasim_ray.core.outputs import log_policy, policy_logits
from gasim_ray.core.settings import StudentSettings
from gasim_ray.core.svd import factor, low_rank, low_rank_layers, svd_obstacle
from gasim_ray.errors import UserError

#: 4 x 9 x 9 features after the convolution.
NETWORK: dict[str, Any] = {"name": "cnn", "filters": [[4, 4, 3]], "hidden": [12]}
SPEC = replace(tiny.GREY, shape=(1, 28, 28))


def teacher(value: bool = False, scale: float = 1.0) -> Model:
    torch.manual_seed(0)
    return Model(ModelConfig(NETWORK, SPEC, 3, "logits", scale, value=value)).frozen()


def student(of: Model, **changed: Any) -> Model:
    return new_student(of, StudentSettings(architecture={**NETWORK, **changed}), 1).eval()


@pytest.mark.parametrize(("value", "scale"), [(False, 1.0), (True, 1.0), (False, 5.0)])
@pytest.mark.parametrize("ranks", [{"rank": 12}, {"ranks": [4]}, {"rank": 12, "ranks": [4]}])
@pytest.mark.parametrize("seen", [False, True])
def test_at_full_rank_nothing_is_lost(value: bool, scale: float, ranks: dict[str, Any], seen: bool) -> None:
    whole = teacher(value, scale)
    low = student(whole, **ranks)
    assert svd_obstacle(whole, low) is None
    factor(whole, low, narrow_observations(40) if seen else None)
    observations = torch.randint(0, 255, (50, 1, 28, 28), dtype=torch.uint8)
    expected = policy_logits(whole(observations), scale)
    torch.testing.assert_close(policy_logits(low(observations), 1.0), expected, atol=1e-4, rtol=1e-3)


@given(rank=st.integers(1, 8))
def test_no_product_of_that_rank_is_nearer(rank: int) -> None:
    weight = torch.randn((8, 20), generator=torch.Generator().manual_seed(rank))
    left, right = low_rank(weight, rank)
    assert (left.shape, right.shape) == ((8, rank), (rank, 20))
    error = float((weight - left @ right).norm())
    assert error == pytest.approx(float(torch.linalg.svdvals(weight)[rank:].norm()), abs=1e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, "no layer of lower rank"),
        ({"rank": 13}, r"rank 13 is more than head\.0\.weight has; give at most 12"),
        ({"ranks": [5]}, r"rank 5 is more than convolutions\.0\.weight has; give at most 4"),
        ({"rank": 2, "hidden": [10]}, r"head\.0\.weight is \[12, 324\] in the teacher, \[10, 324\] in the student"),
        ({"rank": 2, "hidden": [12, 12]}, r"head\.2\.weight is \[3, 12\] in the teacher, \[12, 12\]"),
        ({"rank": 2, "centred": True}, r"first filters of one of the two have no mean"),
        ({"rank": 2, "filters": [[4, 4, 4]]}, "activations, strides or padding of the student are not the teacher's"),
        ({"rank": 2, "hidden_activation": "tanh"}, "activations, strides or padding of the student are not"),
    ],
)
def test_what_is_not_the_teacher_at_a_lower_rank(tmp_path: Any, changed: dict[str, Any], message: str) -> None:
    whole = teacher()
    assert svd_obstacle(whole, student(whole, **changed))
    save_model(whole, tmp_path)
    tree = tiny.tree(tmp_path, student={"architecture": {**NETWORK, **changed}, "init": "svd"})
    with pytest.raises(UserError, match=f"student.init: 'svd' does not fit, .*{message}"):
        make_learner(whole, build_config(tree), "cpu", None)


@pytest.mark.parametrize("scale", [1.0, 0.05])
def test_half_precision_and_q_values_change_nothing_of_the_fit(scale: float) -> None:
    whole, observations = teacher(scale=scale), narrow_observations(300)
    expected, low = student(whole, rank=2), student(whole, rank=2)
    factor(whole, expected, observations)
    factor(whole.computing(bf16=True, channels_last=False), low, observations)
    assert whole.bf16
    whole.computing(bf16=False, channels_last=False)
    torch.testing.assert_close(low.state_dict(), expected.state_dict())
    plain, fresh, losses = student(whole, rank=2), narrow_observations(200, seed=1), []
    factor(whole, plain)
    for made in (plain, low):
        aim, answered = log_policy(whole(fresh), scale), log_policy(made(fresh), 1.0).detach()
        losses.append(float((aim.exp() * (aim - answered)).sum(1).mean()))
    assert losses[1] < 0.5 * losses[0]


def test_a_value_that_is_learnt_counts() -> None:
    whole, observations = teacher(value=True), narrow_observations(600)
    whole.network.head[-1].weight.data[:3, 2:] = 0  # type: ignore[index, union-attr]
    whole.network.head[-1].weight.data[3, :2] = 0  # type: ignore[index, union-attr]
    settings = StudentSettings(architecture={**NETWORK, "rank": 2}, value_weight=1.0)
    fresh, errors = narrow_observations(300, seed=1), []
    for weight in (0.0, 100.0):
        low = new_student(whole, settings, 1).eval()
        factor(whole, low, observations, weight)
        errors.append(float((low.with_value(fresh)[1] - whole.with_value(fresh)[1]).detach().square().mean()))
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize(("name", "low", "full"), [("rank", 2, 12), ("ranks", [2], [4])])
def test_where_it_matters_less_is_lost_on_what_is_read_and_nothing_at_full_rank(name: str, low: Any, full: Any) -> None:
    # Striped, since under a small kernel other patterns are anything.
    whole, observations = teacher(True), narrow_observations(600, striped=True)
    whole.network.head[-1].weight.data[:, 3:] *= 0.01  # type: ignore[index, union-attr]
    fresh, losses = narrow_observations(300, seed=1, striped=True), []
    expected = log_policy(whole(fresh), 1.0)
    for rank, seen in ((low, None), (low, observations), (full, observations)):
        made = student(whole, **{name: rank})
        factor(whole, made, seen)
        answered = log_policy(made(fresh), 1.0).detach()
        losses.append(float((expected.exp() * (expected - answered)).sum(1).mean()))
    assert losses[1] < 0.3 * losses[0]
    assert losses[2] < 1e-6


def narrow_observations(count: int, seed: int = 0, striped: bool = False) -> Tensor:
    """Pictures that are sums of three patterns; striped ones do not change along their columns."""
    patterns = torch.rand((3, 28 * 28), generator=torch.Generator().manual_seed(7)) * 80
    if striped:
        patterns = patterns[:, :28].repeat(1, 28)
    shares = torch.rand((count, 3), generator=torch.Generator().manual_seed(seed))
    return (shares @ patterns).reshape(count, 1, 28, 28).to(torch.uint8)


def test_a_learner_starts_from_it(tmp_path: Any) -> None:
    whole = teacher()
    save_model(whole, tmp_path)
    for init in ("svd", "auto"):
        tree = tiny.tree(tmp_path, student={"architecture": {**NETWORK, "rank": 3}, "init": init})
        learner = make_learner(whole, build_config(tree), "cpu", None)
        weights = learner.student.network.state_dict()
        torch.testing.assert_close(
            weights["convolutions.0.weight"], whole.network.state_dict()["convolutions.0.weight"]
        )
        product = weights["head.0.1.weight"] @ weights["head.0.0.weight"]
        assert int(torch.linalg.matrix_rank(product)) == 3


def test_a_dueling_teacher_and_other_pairs_without_a_bias_are_left_alone() -> None:
    torch.manual_seed(0)
    dueling = {**NETWORK, "dueling": True}
    whole = Model(ModelConfig(dueling, SPEC, 3, "q_values", 5.0)).frozen()
    low = new_student(whole, StudentSettings(architecture={**dueling, "rank": 2}), 1)
    assert "dueling" in str(svd_obstacle(whole, low))
    other = student(whole)
    other.network.add_module("norm", torch.nn.Sequential(torch.nn.RMSNorm(4), torch.nn.Linear(4, 4)))
    assert low_rank_layers(other) == []
