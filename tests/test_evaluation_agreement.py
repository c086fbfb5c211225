"""Agreement, KL, intervals and latency: their laws, and what they refuse."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import entropy

from gasim_ray.core.model import Model, ModelConfig
from gasim_ray.core.observation import ObservationSpec
from gasim_ray.core.prior import random_observations
from gasim_ray.errors import UserError
from gasim_ray.evaluation.agreement import (
    BATCH,
    answers,
    check_same_task,
    constant_kl,
    kl_nats,
    same_action,
)
from gasim_ray.evaluation.intervals import mean_interval, proportion_interval
from gasim_ray.evaluation.latency import latency_ms

SPEC = ObservationSpec((3,), "float32", "vector", (-1.0,), (1.0,))
CONFIG = ModelConfig({"name": "mlp", "hidden": [8]}, SPEC, 4, "logits")

outputs = hnp.arrays(np.float32, (5, 4), elements=st.floats(-20, 20, width=32)).map(torch.from_numpy)
scales = st.floats(0.1, 10)


def model(seed, config=CONFIG):
    torch.manual_seed(seed)
    return Model(config).eval()


@settings(deadline=None)
@given(outputs, outputs)
def test_agreement_is_a_symmetric_fraction(a, b):
    assert same_action(a, a) == 1
    assert same_action(a, b) == same_action(b, a)
    assert same_action(a, b) == sum(int(x.argmax()) == int(y.argmax()) for x, y in zip(a, b, strict=True)) / 5


@settings(max_examples=30, deadline=None)
@given(outputs, scales, outputs, scales)
def test_no_policy_that_never_looks_is_nearer_than_the_mean(a, a_scale, b, b_scale):
    least = constant_kl(a, a_scale)
    assert -1e-6 <= least <= kl_nats(a, a_scale, b[:1].expand_as(a), b_scale) + 1e-4
    assert constant_kl(a[:1].expand_as(a), a_scale) == pytest.approx(0, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(outputs, scales, outputs, scales)
def test_kl_is_that_of_the_two_policies(a, a_scale, b, b_scale):
    p, q = (torch.softmax(x.double() / scale, 1).numpy() for x, scale in ((a, a_scale), (b, b_scale)))
    expected = entropy(p, q, axis=1).mean()
    assert kl_nats(a, a_scale, b, b_scale) == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert kl_nats(a, a_scale, b, b_scale) >= 0
    assert kl_nats(a, a_scale, a, a_scale) == 0


@settings(max_examples=30, deadline=None)
@given(outputs, outputs, st.floats(0.1, 10), st.floats(-5, 5))
def test_units_of_the_student_do_not_matter(a, b, factor, shift):
    assert kl_nats(a, 1.0, factor * b + shift, factor) == pytest.approx(kl_nats(a, 1.0, b, 1.0), rel=1e-2, abs=1e-3)


def test_answers_do_not_depend_on_the_batches():
    observations = np.random.default_rng(0).uniform(-1, 1, (BATCH + 7, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model(0)(torch.from_numpy(observations))
    assert torch.allclose(answers(model(0), observations), expected, atol=1e-6)


def test_student_that_reads_something_else_is_refused():
    with pytest.raises(UserError, match=r"student.observation: \[5\] where the teacher reads \[3\]"):
        check_same_task(CONFIG, replace(CONFIG, observation=replace(SPEC, shape=(5,))))


def test_student_whose_frames_are_stacked_otherwise_is_refused():
    with pytest.raises(UserError, match=r"student\.observation: stack 3 where the teacher reads stack 1"):
        check_same_task(CONFIG, replace(CONFIG, observation=replace(SPEC, stack=3)))


def test_student_with_other_actions_is_refused():
    with pytest.raises(UserError, match=r"student.actions: 3 where the teacher has 4"):
        check_same_task(CONFIG, replace(CONFIG, actions=3))


def test_observations_of_another_shape_are_refused():
    with pytest.raises(UserError, match=r"shape \[2\] where the model reads \[3\]"):
        answers(model(0), np.zeros((1, 2), np.float32))


def test_nan_names_who_gave_it():
    broken = model(0)
    next(broken.parameters()).data.fill_(float("nan"))
    with pytest.raises(UserError, match="teacher: answered NaN"):
        answers(broken, np.zeros((1, 3), np.float32), "teacher")


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.float64, st.integers(2, 30), elements=st.floats(-500, 500)))
def test_interval_holds_the_mean_and_stays_in_range(values):
    interval = mean_interval(values)
    assert interval.low <= interval.mean <= interval.high
    assert interval.mean == pytest.approx(values.mean())
    assert values.min() - 1e-6 <= interval.low
    assert interval.high <= values.max() + 1e-6


def test_equal_returns_have_no_width():
    interval = mean_interval(np.full(10, 500.0))
    assert (interval.low, interval.mean, interval.high) == (500, 500, 500)


def test_interval_holds_the_true_mean_about_95_times_in_100():
    samples = np.random.default_rng(0).normal(3, 2, (100, 60))
    held = sum(i.low <= 3 <= i.high for i in map(mean_interval, samples))
    assert 88 <= held <= 99


def test_one_episode_has_no_interval():
    with pytest.raises(UserError, match="1 is too few"):
        mean_interval(np.ones(1))


@settings(deadline=None)
@given(st.integers(1, 500), st.data())
def test_proportion_interval_holds_the_fraction(trials, data):
    successes = data.draw(st.integers(0, trials))
    interval = proportion_interval(successes, trials)
    assert 0 <= interval.low <= interval.mean + 1e-12
    assert interval.mean == successes / trials
    assert interval.mean - 1e-12 <= interval.high <= 1
    assert interval.high > interval.low


def test_latency_leaves_the_threads_as_they_were():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert latency_ms(model(0), 1) > 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_latency_is_measured_on_observations_in_bounds():
    spec = ObservationSpec((1, 4, 4), "uint8", "CHW", (0.0,), (255.0,))
    image = random_observations(model(0, replace(CONFIG, observation=spec)), 50)
    vector = random_observations(model(0), 50)
    assert (image.dtype, image.shape) == (torch.uint8, (50, 1, 4, 4))
    assert vector.abs().max() <= 1
    assert vector.std() > 0.3
