"""The choice among a prior's samples: what the teacher answers decidedly, of all kinds that there are."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gasim_ray.core import choice
from gasim_ray.core.answers import COMPARED
from gasim_ray.core.choice import Chosen, k_means
from gasim_ray.core.model import Model, ModelConfig
from gasim_ray.core.observation import ObservationSpec
from gasim_ray.core.outputs import policy_logits
from gasim_ray.core.prior import Prior, Uniform
from gasim_ray.core.seeds import rng
from gasim_ray.errors import UserError


class Drawn(Prior):
    """Uniform vectors that are kept, so that a test sees what was chosen from."""

    def sample(self, count: int, generator: torch.Generator) -> torch.Tensor:
        self.last = Uniform.sample(self, count, generator)  # type: ignore[arg-type]
        return self.last


def test_the_chosen_are_those_that_each_action_is_answered_most_decidedly() -> None:
    teacher = tiny.model(tiny.VECTOR)
    drawn = Drawn(teacher, "cpu")
    chosen = Chosen(drawn, teacher, candidates=5)
    sample = chosen.sample(31, rng("cpu", 0))
    assert sample.shape == (31, 4)
    assert drawn.last.shape == (155, 4)
    decided, answered = chosen.answered(drawn.last).decided, chosen.answered(sample).decided
    for action in range(3):
        # The excitement of the middle observation is part of the measure, so ranks are compared and not values.
        best = drawn.last[decided[:, action].argsort(descending=True)[:10]]
        assert torch.equal(sample[action::3][:10], best)
        assert answered[action::3, action].mean() > decided[:, action].mean()


def test_what_the_last_hidden_layer_answers_strongly_is_chosen_before_the_rest() -> None:
    teacher = tiny.model(tiny.VECTOR)
    hidden = next(m for m in teacher.modules() if isinstance(m, nn.Linear))
    read = teacher.config.observation.normalise

    def gain(observations: torch.Tensor) -> torch.Tensor:
        inputs = read(observations)
        return ((inputs @ hidden.weight.T).norm(dim=1) / inputs.norm(dim=1)).mean()

    by_answer, by_both = (Chosen(Uniform(teacher, "cpu"), teacher, 8, power) for power in (0.0, 4.0))
    plain, aligned = (chosen.sample(60, rng("cpu", 0)) for chosen in (by_answer, by_both))
    assert gain(aligned) > 1.02 * gain(plain)


def test_a_teacher_that_computes_in_bf16_has_a_gain_and_clusters() -> None:
    teacher = tiny.model(tiny.GREY).computing(bf16=True, channels_last=False)
    assert Chosen(Uniform(teacher, "cpu"), teacher, 4, 4.0, 2).sample(6, rng("cpu", 0)).shape == (6, 1, 28, 28)


def test_large_pictures_are_chosen_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = tiny.model(tiny.GREY)
    monkeypatch.setattr(choice, "MOST_NUMBERS", 5 * 8 * 28 * 28)
    drawn = Drawn(teacher, "cpu")
    chosen = Chosen(drawn, teacher, 8)
    sample = chosen.sample(7, rng("cpu", 0))
    # Parts of as many as there are actions, so that each begins with the first.
    assert len(drawn.last) == 8
    best = drawn.last[chosen.answered(drawn.last).decided[:, 0].argmax()]
    assert torch.equal(sample[6], best)


class TwoKinds(Prior):
    """Few vectors along the first axis, many along the third."""

    def sample(self, count: int, generator: torch.Generator) -> torch.Tensor:
        return torch.eye(4)[torch.where(torch.arange(count) % 25 == 0, 0, 2)]


def test_of_two_kinds_that_are_answered_alike_both_are_chosen_where_there_are_clusters() -> None:
    teacher = tiny.model(tiny.VECTOR)
    first, last = (m for m in teacher.modules() if isinstance(m, nn.Linear))
    for parameter in (first.weight, first.bias, last.weight, last.bias):
        parameter.data.zero_()
    # Both speak for action 0, the first more.
    first.weight.data[0, 0], first.weight.data[1, 2] = 1.0, 1.0
    last.weight.data[0, 0], last.weight.data[0, 1] = 2.0, 1.0

    def of_the_first_kind(clusters: int) -> int:
        sample = Chosen(TwoKinds(teacher, "cpu"), teacher, 25, clusters=clusters).sample(30, rng("cpu", 0))
        return int((sample[::3, 0] == 1.0).sum())

    assert of_the_first_kind(clusters=0) == 10
    assert of_the_first_kind(clusters=2) == 5


def test_of_more_actions_than_observations_some_are_drawn() -> None:
    teacher = tiny.model(tiny.VECTOR)
    chosen = Chosen(Uniform(teacher, "cpu"), teacher, 50, clusters=20)
    samples = torch.cat([chosen.sample(1, rng("cpu", seed)) for seed in range(20)])
    assert set(policy_logits(teacher(samples), 1.0).argmax(1).tolist()) == {0, 1, 2}


def test_of_a_wide_layer_some_numbers_tell_clusters() -> None:
    teacher = Model(ModelConfig({"name": "mlp", "hidden": [1000, 8]}, tiny.VECTOR, 3, "logits")).frozen()
    chosen = Chosen(Uniform(teacher, "cpu"), teacher, 4, clusters=2)
    assert chosen.answered(chosen.prior.sample(5, rng("cpu", 0))).features.shape == (5, COMPARED)


@pytest.mark.parametrize(
    ("spec", "architecture", "hidden"),
    [
        (tiny.GREY, {"name": "lenet5"}, "features.5"),
        (tiny.VECTOR, {"name": "mlp", "hidden": [8, 6]}, "layers.2"),
        (tiny.VECTOR, {"name": "dueling_mlp", "hidden": [8, 6], "stream_hidden": []}, "encoder.2"),
        (tiny.VECTOR, {"name": "strange:Named", "width": 6}, "second"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_the_last_hidden_layer_is_the_one_before_that_which_answers(
    spec: ObservationSpec, architecture: dict[str, Any], hidden: str
) -> None:
    teacher = Model(ModelConfig(architecture, spec, 3, "logits")).frozen()
    chosen = Chosen(Uniform(teacher, "cpu"), teacher, 2, 4.0, 2)
    assert {name for name, module in teacher.network.named_modules() if module is chosen.hidden} == {hidden}
    assert chosen.sample(4, rng("cpu", 0)).shape == (4, *spec.shape)


def test_a_teacher_whose_layers_read_nothing_of_each_observation_is_refused() -> None:
    teacher = Model(ModelConfig({"name": "strange:Functional"}, tiny.VECTOR, 3, "logits")).frozen()
    with pytest.raises(UserError, match=r"generator\.candidates: 8, but the teacher has no layer that reads each"):
        Chosen(Uniform(teacher, "cpu"), teacher, 8)


def test_a_teacher_that_answers_nothing_finite_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = tiny.model(tiny.VECTOR)
    next(m for m in teacher.modules() if isinstance(m, nn.Linear)).weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match="teacher: answered NaN"):
        Chosen(Uniform(teacher, "cpu"), teacher, 8).sample(4, rng("cpu", 0))


@given(seed=st.integers(0, 2**31), sizes=st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_two_heaps_are_two_clusters(seed: int, sizes: tuple[int, int]) -> None:
    heap = torch.arange(2).repeat_interleave(torch.tensor(sizes))
    points = 100.0 * heap.unsqueeze(1) + torch.rand(sum(sizes), 2, generator=rng("cpu", seed))
    member = k_means(points, 2, rng("cpu", seed))
    assert torch.equal(member == member[0], heap == heap[0])


@pytest.mark.parametrize(("name", "value"), [("alignment", 4.0), ("clusters", 5)])
def test_alignment_and_clusters_ask_for_a_dense_layer(name: str, value: Any) -> None:
    teacher = tiny.model(tiny.GREY)
    teacher.network = nn.Sequential(nn.Conv2d(1, 3, 28), nn.Flatten())
    with pytest.raises(
        UserError,
        match=rf"generator\.{name}: {value}, but .* no dense layer that reads each observation; set it to 0",
    ):
        Chosen(Uniform(teacher, "cpu"), teacher, 8, **{name: value})
