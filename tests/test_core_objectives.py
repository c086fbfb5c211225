"""Terms of the objective against values worked out by hand, and the two losses that are made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import log

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gasim_ray.core import objectives
from gasim_ray.core.distill import (
    check_objective,
    generator_loss,
    last_dense,
    new_student,
    recorded,
    shifted,
    student_loss,
    views,
)
from gasim_ray.core.model import Model, ModelConfig
from gasim_ray.core.moments import moments
from gasim_ray.core.observation import ObservationSpec
from gasim_ray.core.seeds import rng
from gasim_ray.core.settings import GeneratorSettings, ObjectiveSettings, StudentSettings
from gasim_ray.errors import UserError

#: Softmax gives (1/4, 3/4) and (1/2, 1/2).
LOGITS = torch.tensor([[0.0, log(3.0)], [1.0, 1.0]])


def test_one_hot_is_the_surprise_at_the_teachers_own_choice() -> None:
    torch.testing.assert_close(objectives.one_hot(LOGITS), torch.tensor([-log(0.75), log(2.0)]))


def test_label_is_the_surprise_at_the_wanted_action() -> None:
    torch.testing.assert_close(objectives.label(LOGITS, torch.tensor([0, 1])), torch.tensor([log(4.0), log(2.0)]))


def test_the_wanted_logit_goes_on_rising_where_its_surprise_is_gone() -> None:
    sure, surer = torch.tensor([[40.0, 0.0]]), torch.tensor([[80.0, 0.0]])
    wanted = torch.tensor([0])
    assert float(objectives.label(sure, wanted)) == float(objectives.label(surer, wanted)) == 0.0
    assert float(objectives.wanted_logit(surer, wanted)) == -80.0 < float(objectives.wanted_logit(sure, wanted))


def test_entropy_is_lowest_for_a_balanced_batch() -> None:
    balanced, lopsided = 20 * torch.eye(3), 20 * torch.eye(3)[[0, 0, 0]]
    assert float(objectives.information_entropy(balanced)) == pytest.approx(-log(3.0))
    assert float(objectives.information_entropy(lopsided)) == pytest.approx(0.0, abs=1e-5)


def test_activation_rewards_excitement_of_either_sign() -> None:
    features = torch.tensor([[1.0, -3.0], [0.0, 0.0]])
    assert objectives.activation(features).tolist() == [-2.0, 0.0]


def test_contrast_is_the_surprise_at_a_samples_own_second_view() -> None:
    east, north = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    first, second = torch.stack([2 * east, north]), torch.stack([east, 3 * north])
    own, other = torch.tensor([1.0, 0.0]) / 0.5, torch.tensor([1.0, 0.0, 0.0, 1.0]) / 0.5
    expected = [-float(own[0] - torch.logsumexp(torch.cat([own, other[[1]]]), 0))] * 2
    found = objectives.contrastive(first, second, torch.empty(0, 2), 0.5)
    torch.testing.assert_close(found, torch.tensor(expected))
    remembered = objectives.contrastive(first, second, east.expand(3, 2), 0.5)
    assert float(remembered[0]) > float(found[0])
    assert float(remembered[0]) > float(remembered[1])


@given(st.integers(1, 6), st.integers(0, 4), st.integers(0, 2**31))
def test_contrast_is_lowest_for_samples_unlike_each_other(count: int, memory: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    alike = torch.rand((1, 8), generator=random).expand(count, 8)
    unlike = torch.eye(8)[:count]
    earlier = torch.rand((memory, 8), generator=random)
    same = objectives.contrastive(alike, alike, earlier)
    assert bool((objectives.contrastive(unlike, unlike, torch.empty(0, 8)) <= same + 1e-5).all())
    assert bool((same >= 0).all())


def test_total_variation_counts_both_directions() -> None:
    image = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]], [[[5.0, 5.0], [5.0, 5.0]]]])
    assert objectives.total_variation(image).tolist() == [1.0, 0.0]
    assert torch.equal(objectives.total_variation(image.transpose(2, 3)), objectives.total_variation(image))


def test_batch_norm_statistics_measure_mean_and_variance() -> None:
    zero, one = torch.zeros(4), torch.ones(4)
    assert float(objectives.batch_norm_statistics([(zero, one, zero, one)])) == 0.0
    assert float(objectives.batch_norm_statistics([(one, one, zero, one), (zero, zero, zero, 2 * one)])) == 6.0


matrices = st.lists(st.lists(st.floats(-5, 5, width=32), min_size=3, max_size=3), min_size=2, max_size=6)


@given(matrices)
def test_kl_is_that_of_the_two_policies(rows: list[list[float]]) -> None:
    teacher, student = torch.tensor(rows), torch.tensor(rows[::-1])
    policies = [torch.distributions.Categorical(logits=x) for x in (teacher, student)]
    expected = torch.distributions.kl_divergence(*policies)
    found = objectives.divergence(teacher, student, "kl", bound=1e9)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@given(matrices)
def test_jensen_shannon_is_symmetric_and_at_most_ln_2(rows: list[list[float]]) -> None:
    teacher, student = torch.tensor(rows), torch.tensor(rows[::-1])
    one = objectives.divergence(teacher, student, "js", bound=1e9)
    other = objectives.divergence(student, teacher, "js", bound=1e9)
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert bool((one >= -1e-5).all())
    assert bool((one <= log(2.0) + 1e-5).all())


def test_jensen_shannon_of_opposite_certainties_is_ln_2() -> None:
    sure = torch.tensor([[40.0, 0.0]])
    assert float(objectives.divergence(sure, sure.flip(1), "js", bound=9.0)) == pytest.approx(log(2.0))


def test_l1_is_the_distance_of_the_logits() -> None:
    assert objectives.divergence(LOGITS, LOGITS + torch.tensor([[1.0, -3.0]]), "l1", bound=9.0).tolist() == [2.0, 2.0]


@pytest.mark.parametrize("kind", ["kl", "js", "l1"])
def test_beyond_the_bound_nothing_more_is_gained(kind: objectives.Divergence) -> None:
    student = torch.tensor([[9.0, -9.0], [0.1, 0.0]], requires_grad=True)
    reward = objectives.divergence(torch.tensor([[-9.0, 9.0], [0.0, 0.1]]), student, kind, bound=0.5)
    (gradient,) = torch.autograd.grad(reward.sum(), student)
    assert reward[0] == 0.5
    assert reward[1] < 0.5
    assert gradient[0].tolist() == [0.0, 0.0]
    assert bool((gradient[1] != 0).all())


def test_the_adversary_counts_only_agreement_when_masked() -> None:
    teacher, student = torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    open_, masked = (objectives.adversarial(teacher, student, "kl", 9.0, mask) for mask in (False, True))
    assert bool((open_ < 0).all())
    assert masked[0] == open_[0]
    assert masked[1] == 0


def test_values_count_beyond_what_rewards_allow() -> None:
    assert objectives.value_excess(torch.tensor([-3.0, -1.0, 0.5, 1.5]), 1.0).tolist() == [2.0, 0.0, 0.0, 0.5]


def test_bellman_s_error_is_none_for_a_reward_of_a_point() -> None:
    later = torch.tensor([0.5, 0.5, 0.5, 0.5])
    now = 0.99 * later + torch.tensor([0.0, 1.0, -1.0, 3.0])
    torch.testing.assert_close(objectives.bellman(now, later), torch.tensor([0.0, 0.0, 0.0, 4.0]))


def test_decided_is_the_distance_of_the_entropy() -> None:
    even = torch.zeros(2, 4)
    torch.testing.assert_close(objectives.decided(even, log(4.0)), torch.zeros(2))
    torch.testing.assert_close(objectives.decided(even, 0.0), torch.full((2,), log(4.0) ** 2))


TERMS = ("one_hot", "label", "entropy", "activation", "adversarial", "total_variation")


def loss_of(settings: ObjectiveSettings, observations: Tensor, teacher: Model | None = None) -> Tensor:
    spec = tiny.GREY
    labels = torch.arange(len(observations)) % 3
    return generator_loss(observations, teacher or tiny.model(spec), tiny.model(spec, seed=1), labels, settings)


@pytest.fixture
def images() -> Tensor:
    return 255 * torch.rand((6, *tiny.GREY.shape), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("term", TERMS)
def test_each_term_reaches_the_observations(term: str, images: Tensor) -> None:
    x = images.requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(ObjectiveSettings(**{term: 1.0}), x), x)
    assert bool((gradient != 0).any())


def test_the_loss_is_the_weighted_sum_of_its_terms(images: Tensor) -> None:
    weights = {term: 0.5 + i for i, term in enumerate(TERMS)}
    parts = sum(weight * loss_of(ObjectiveSettings(**{term: 1.0}), images) for term, weight in weights.items())
    torch.testing.assert_close(loss_of(ObjectiveSettings(**weights), images), parts)


def test_q_values_are_compared_on_the_teachers_scale(images: Tensor) -> None:
    teacher = tiny.model(tiny.GREY)
    large = tiny.model(tiny.GREY, outputs="q_values")
    last_dense(large).weight.data.mul_(100)
    last_dense(large).bias.data.mul_(100)
    large.config = replace(large.config, output_scale=100.0)
    settings = ObjectiveSettings(one_hot=1.0, adversarial=1.0)
    torch.testing.assert_close(loss_of(settings, images, large), loss_of(settings, images, teacher))


class Normalised(nn.Module):
    """A teacher that stores batch statistics."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(input_shape[0])
        self.head = nn.Linear(input_shape[0], outputs)

    def forward(self, x: Tensor) -> Tensor:
        answered: Tensor = self.head(self.norm(x).mean((2, 3)))
        return answered


def test_batch_norm_statistics_are_taken_from_the_teachers_layers(images: Tensor) -> None:
    teacher = Model(replace(tiny.model(tiny.GREY).config, architecture={"name": f"{__name__}:Normalised"})).frozen()
    network_input = tiny.GREY.normalise(images)
    mean, var = network_input.mean((0, 2, 3)), network_input.var((0, 2, 3), correction=0)
    expected = mean.norm() + (var - 1).norm()
    torch.testing.assert_close(loss_of(ObjectiveSettings(batch_norm=2.0), images, teacher), 2 * expected)
    assert not teacher.network.norm._forward_pre_hooks


def test_recording_leaves_no_hook_behind_after_an_error() -> None:
    teacher = tiny.model(tiny.VECTOR)
    with pytest.raises(ZeroDivisionError), recorded(teacher, ObjectiveSettings(activation=1.0)):
        raise ZeroDivisionError
    assert not last_dense(teacher)._forward_pre_hooks


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (ObjectiveSettings(batch_norm=1.0), r"^objective\.batch_norm: the teacher has no batch-norm layer"),
        (ObjectiveSettings(total_variation=1.0), r"^objective\.total_variation: the teacher reads vectors"),
        (ObjectiveSettings(), r"^generator\.steps: 6 steps have nothing to improve"),
    ],
)
def test_an_objective_that_does_not_fit_the_teacher_is_refused(settings: ObjectiveSettings, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_objective(tiny.model(tiny.VECTOR), GeneratorSettings(), settings)


def test_no_objective_is_needed_where_nothing_is_improved() -> None:
    check_objective(tiny.model(tiny.VECTOR), GeneratorSettings(steps=0), ObjectiveSettings())


def test_a_term_of_layers_that_a_teacher_does_not_use_is_refused() -> None:
    teacher = Model(ModelConfig({"name": "strange:Functional"}, tiny.VECTOR, 3, "logits")).frozen()
    with pytest.raises(UserError, match=r"^objective\.activation, .*the teacher does not use its output layer"):
        check_objective(teacher, GeneratorSettings(), ObjectiveSettings(activation=0.1))
    teacher.network.add_module("norm", nn.BatchNorm1d(4))
    with pytest.raises(UserError, match=r"^objective\.batch_norm: the teacher does not use its batch-norm layers"):
        check_objective(teacher, GeneratorSettings(), ObjectiveSettings(batch_norm=0.1))


def test_a_student_that_answers_as_its_teacher_loses_nothing() -> None:
    assert student_loss(LOGITS, LOGITS, StudentSettings(logits_weight=1.0)).tolist() == [0.0, 0.0]


def test_temperature_softens_the_policies_and_is_squared() -> None:
    student = LOGITS.flip(1)
    soft = student_loss(student, LOGITS, StudentSettings(temperature=2.0))
    torch.testing.assert_close(soft, 4 * student_loss(student / 2, LOGITS / 2, StudentSettings()))
    assert soft[0] > 0


def test_logits_weight_adds_their_distance() -> None:
    student = LOGITS + 1.0
    assert student_loss(student, LOGITS, StudentSettings(logits_weight=3.0)).tolist() == pytest.approx([3.0, 3.0])


def test_a_new_student_depends_on_the_seed_alone() -> None:
    teacher = tiny.model(tiny.VECTOR)
    first, again, other = (new_student(teacher, StudentSettings(), seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_each_image_is_shifted_by_its_own_pixels_and_repeats_its_edges() -> None:
    images = torch.arange(36, dtype=torch.uint8).reshape(1, 1, 6, 6).repeat(60, 2, 1, 1)
    moved = shifted(images, 1, rng("cpu", 0))
    assert moved.dtype == torch.uint8
    assert set(moved[:, 0, 2, 2].tolist()) == {14 + 6 * dy + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    for before, after in zip(images, moved, strict=True):
        offset = int(after[0, 2, 2]) - 14
        down, right = (offset + 7) // 6 - 1, (offset + 7) % 6 - 1
        padded = nn.functional.pad(before.float(), (1, 1, 1, 1), mode="replicate")
        assert torch.equal(after.float(), padded[:, 1 + down : 7 + down, 1 + right : 7 + right])


@pytest.mark.parametrize("spec", [tiny.GREY, tiny.ATARI], ids=["CHW", "HWC"])
def test_views_follow_the_images_and_vectors_have_one(spec: ObservationSpec) -> None:
    settings = GeneratorSettings(views=3, shift=2)
    images = spec.quantise(255 * torch.rand((4, *spec.shape), generator=rng("cpu", 0)))
    seen = views(images, settings, spec, rng("cpu", 1))
    assert seen.shape == (12, *spec.shape)
    assert torch.equal(seen[:4], images)
    assert not torch.equal(seen[4:8], images)
    assert not torch.equal(seen[4:8], seen[8:])
    still = views(images, replace(settings, views=9, shift=0, mirror=True), spec, rng("cpu", 1))
    across = 3 if spec.layout == "CHW" else 2
    for place, image in enumerate(images):
        further = still[4 + place :: 4]
        mirrored = [torch.equal(view, image.flip(across - 1)) for view in further]
        assert {True, False} == set(mirrored)
        assert all(flipped or torch.equal(view, image) for view, flipped in zip(further, mirrored, strict=True))
    vectors = torch.zeros(4, 4)
    assert views(vectors, settings, tiny.VECTOR, rng("cpu", 1)) is vectors


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 4, 5)])
@pytest.mark.parametrize(("dtype", "precise"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_moments_and_their_gradients_are_those_of_mean_and_var(
    shape: tuple[int, ...], dtype: torch.dtype, precise: float
) -> None:
    x = 1.0 + torch.randn(shape, generator=rng("cpu", 0)).to(dtype)
    weights = torch.randn((2, 3), generator=rng("cpu", 1))
    axes = [0, *range(2, len(shape))]

    def with_gradient(pair: Callable[[Tensor], tuple[Tensor, Tensor]], at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        at = at.clone().requires_grad_()
        mean, variance = pair(at)
        torch.autograd.backward((weights[0] * mean + weights[1] * variance).sum())
        assert at.grad is not None
        return mean.detach(), variance.detach(), at.grad.float()

    found = with_gradient(moments, x)
    expected = with_gradient(lambda at: (at.mean(axes), at.var(axes, correction=0)), x.float())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=precise, rtol=precise)
