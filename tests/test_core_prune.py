"""The teacher cut down to the student's size: what is kept, and what cannot be cut."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gasim_ray.actors.workers import make_learner, make_prior, make_student
from gasim_ray.config import build_config
from gasim_ray.core.distill import new_student
from gasim_ray.core.model import Model, ModelConfig, OutputKind, load_model
from gasim_ray.core.observation import ObservationSpec
from gasim_ray.core.outputs import policy_logits
from gasim_ray.core.prior import Uniform
from gasim_ray.core.prune import choose_units, cut_down, prune_obstacle
from gasim_ray.core.seeds import rng
from gasim_ray.core.settings import StudentSettings
from gasim_ray.errors import UserError
from gasim_ray.evaluation.agreement import answers, same_action
from gasim_ray.evaluation.datasets import load_dataset

LENET = {"name": "lenet5"}
HALF = {"name": "lenet5", "width": 0.5}
TEACHER = "benchmarks/teachers/mnist"


def teacher(spec: ObservationSpec, architecture: dict[str, Any], outputs: OutputKind = "logits") -> Model:
    scale = 7.0 if outputs == "q_values" else 1.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(ModelConfig(architecture, spec, 3, outputs, scale)).frozen()


@pytest.mark.parametrize(
    ("spec", "architecture", "outputs"),
    [
        (tiny.GREY, LENET, "logits"),
        (tiny.COLOUR, tiny.SMALL_CNN, "logits"),
        (tiny.VECTOR, {"name": "mlp", "hidden": [16, 12], "activation": "tanh"}, "q_values"),
    ],
)
def test_nothing_is_lost_where_nothing_is_cut_off(
    spec: ObservationSpec, architecture: dict[str, Any], outputs: OutputKind
) -> None:
    whole = teacher(spec, architecture, outputs)
    prior = Uniform(whole, "cpu")
    # Vectors are standardised anew for the student, so its first layer has to make up for that.
    student = new_student(whole, StudentSettings(architecture=architecture), 1, prior.standardised())
    observations = prior.sample(300, rng("cpu", 0))
    assert prune_obstacle(whole, student) is None
    cut_down(whole, student, observations)
    expected = policy_logits(whole(observations), whole.config.output_scale)
    answered = policy_logits(student.eval()(observations), 1.0)
    torch.testing.assert_close(answered, expected, atol=2e-3, rtol=2e-3)


def test_a_dueling_network_is_not_cut_down() -> None:
    dueling = {"name": "dueling_mlp", "hidden": [16, 12], "stream_hidden": [], "activation": "relu"}
    whole = teacher(tiny.VECTOR, dueling, "q_values")  # 3 actions divide 12 units
    student = new_student(whole, StudentSettings(architecture={**dueling, "hidden": [4, 12]}), 1)
    assert "dueling" in str(prune_obstacle(whole, student))


@pytest.mark.parametrize(("factory", "chain"), [("strange:Chain", True), ("strange:Shortcut", False)])
def test_of_a_network_of_ones_own_it_is_tried_whether_it_is_a_chain(factory: str, chain: bool) -> None:
    whole = teacher(tiny.VECTOR, {"name": factory, "width": 8}, "logits")
    student = new_student(whole, StudentSettings(architecture={"name": factory, "width": 8}), 1)
    assert (prune_obstacle(whole, student) is None) == chain
    registered = teacher(tiny.VECTOR, {"name": "mlp", "hidden": [8, 8]}, "logits")
    assert chain or prune_obstacle(registered, student) is not None
    if chain:
        smaller = new_student(whole, StudentSettings(architecture={"name": factory, "width": 5}), 1)
        assert prune_obstacle(whole, smaller) is None


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(0, 4))
def test_units_that_others_determine_are_rebuilt(seed: int, independent: int, dependent: int) -> None:
    random = torch.Generator().manual_seed(seed)
    free = torch.randn((400, independent), generator=random)
    inputs = torch.cat([free, free @ torch.randn((independent, dependent), generator=random) + 1.0], 1)
    inputs = inputs[:, torch.randperm(inputs.shape[1], generator=random)]
    following = torch.randn((3, inputs.shape[1], 1), generator=random)
    kept, mixing, offset = choose_units(inputs, following, independent)
    assert len(set(kept.tolist())) == independent
    torch.testing.assert_close(inputs[:, kept] @ mixing.T + offset, inputs, atol=1e-2, rtol=1e-2)


def test_a_half_sized_student_starts_well_above_chance_on_images_that_nobody_showed_it() -> None:
    config = build_config({"teacher": TEACHER, "student": {"architecture": HALF, "init": "prune"}})
    whole, images = load_model(TEACHER).frozen(), load_dataset("mnist-sample").test_images
    student, again = (make_learner(whole, config, "cpu", make_prior(whole, config, "cpu")).student for _ in range(2))
    assert same_action(answers(whole, images), answers(student, images)) > 0.5
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("student", "obstacle"),
    [
        ({"name": "mlp", "hidden": [8]}, "layers and activations are not"),
        ({"name": "lenet5", "width": 2.0}, "layer 1 of the student is no part"),
    ],
)
def test_a_student_that_is_no_part_of_the_teacher_is_refused_or_starts_afresh(
    student: dict[str, Any], obstacle: str
) -> None:
    whole = load_model(TEACHER).frozen()
    config = build_config({"teacher": TEACHER, "student": {"architecture": student, "init": "prune"}})
    with pytest.raises(UserError, match=f"student.init: 'prune' does not fit, .*{obstacle}"):
        make_student(whole, config, None)
    fresh, auto = (make_learner(whole, replaced(config, init), "cpu", None).student for init in ("random", "auto"))
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), auto.parameters(), strict=True))


def replaced(config: Any, init: str) -> Any:
    return replace(config, student=replace(config.student, init=init))


def test_other_layers_than_chains_are_told() -> None:
    residual = {"name": "wide_resnet", "depth": 10, "width": 1}
    whole = teacher(tiny.COLOUR, residual)
    assert "other layers" in str(prune_obstacle(whole, whole))
