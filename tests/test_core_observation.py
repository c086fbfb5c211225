"""ObservationSpec: bounds, normalisation, the storage grid, its description; seeds and the scale of outputs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from gasim_ray.core.observation import UNBOUNDED_REACH, ObservationSpec
from gasim_ray.core.outputs import MEDIAN_GAP, log_policy, policy_logits, q_value_scale
from gasim_ray.core.seeds import rng
from gasim_ray.errors import UserError

number = st.floats(-50, 50, width=32)
positive = st.floats(0.125, 50, width=32)


@st.composite
def specs(draw: st.DrawFn) -> ObservationSpec:
    """Any spec that is allowed: vectors and images, bounded or not, one normaliser or one a channel."""
    layout = draw(st.sampled_from(["vector", "CHW", "HWC"]))
    sizes = st.integers(1, 5)
    shape = (draw(sizes),) if layout == "vector" else (draw(sizes), draw(sizes), draw(sizes))
    elements = shape[0] if layout == "vector" else 1
    count = draw(st.sampled_from([1, elements]))
    low = [draw(st.none() | number) for _ in range(count)]
    high = [None if v is None and draw(st.booleans()) else (v or 0.0) + draw(positive) for v in low]
    high = [None if v is not None and draw(st.booleans()) else h for v, h in zip(low, high, strict=True)]
    channels = shape[-1] if layout == "HWC" else shape[0]
    normalisers = draw(st.sampled_from([1, channels]))
    return ObservationSpec(
        shape,
        "float32",
        layout,
        tuple(low),
        tuple(high),
        tuple(draw(st.floats(-5, 5, width=32)) for _ in range(normalisers)),
        tuple(draw(positive) for _ in range(normalisers)),
        draw(st.none() | positive),
        stack=draw(st.sampled_from([n for n in range(1, 6) if channels % n == 0])),
    )


def observations_of(spec: ObservationSpec, seed: int) -> torch.Tensor:
    return 100 * torch.randn((7, *spec.shape), generator=torch.Generator().manual_seed(seed))


@given(specs())
def test_stated_bounds_hold_and_the_others_are_finite(spec: ObservationSpec) -> None:
    low, high = (b.flatten() for b in spec.bounds())
    assert bool((low < high).all())
    assert bool(torch.isfinite(low).all() & torch.isfinite(high).all())
    for bound, stated in ((low, spec.low), (high, spec.high)):
        for index, value in enumerate(stated):
            if value is not None:
                assert float(bound[index]) == float(np.float32(value))


def test_an_unbounded_element_reaches_ten_deviations_around_its_mean() -> None:
    low, high = tiny.VECTOR.bounds()
    assert low.tolist() == pytest.approx([-1.0, 0.1 - 0.5 * UNBOUNDED_REACH, -2.0, 0.0])
    assert high.tolist() == pytest.approx([1.0, 0.1 + 0.5 * UNBOUNDED_REACH, 2.0, 5.0])


@given(specs(), st.integers(0, 9))
def test_quantised_observations_lie_within_the_bounds_and_stay_there(spec: ObservationSpec, seed: int) -> None:
    once = spec.quantise(observations_of(spec, seed))
    low, high = spec.bounds()
    assert bool(((once >= low) & (once <= high)).all())
    assert torch.equal(spec.quantise(once), once)
    assert once.dtype == spec.torch_dtype


def test_bytes_are_rounded_to_the_grid() -> None:
    raw = torch.tensor([-3.0, 0.4, 0.6, 254.6, 300.0]).reshape(-1, 1, 1, 1).expand(-1, *tiny.ATARI.shape)
    stored = tiny.ATARI.quantise(raw)
    assert stored.dtype == torch.uint8
    assert stored[:, 0, 0, 0].tolist() == [0, 0, 1, 255, 255]


@given(specs(), st.integers(0, 9))
def test_normalising_is_undone_by_the_mean_and_the_deviation(spec: ObservationSpec, seed: int) -> None:
    spec = replace(spec, clip=None)
    observations = observations_of(spec, seed)
    network_input = spec.normalise(observations)
    assert network_input.shape[1:] == spec.network_shape
    mean, std = (np.array(v, np.float32) for v in (spec.mean, spec.std))
    if spec.layout == "CHW":
        mean, std = mean.reshape(-1, 1, 1), std.reshape(-1, 1, 1)
    expected = (observations.numpy() - mean) / std
    if spec.layout == "HWC":
        expected = np.moveaxis(expected, -1, 1)
    np.testing.assert_allclose(network_input.numpy(), expected, rtol=1e-4, atol=1e-4)


@given(specs(), positive)
def test_clipping_is_the_last_step(spec: ObservationSpec, clip: float) -> None:
    observations = observations_of(spec, 0)
    unclipped = replace(spec, clip=None).normalise(observations)
    assert torch.equal(replace(spec, clip=clip).normalise(observations), unclipped.clamp(-clip, clip))


def test_a_normaliser_of_pixels_from_0_to_1_is_refused_for_bytes() -> None:
    with pytest.raises(
        UserError, match=r"^observation\.std: \[0\.25\] of bytes; mean and std are in the pixels' own units"
    ):
        replace(tiny.GREY, mean=(0.5,), std=(0.25,))
    assert replace(tiny.GREY, mean=(0.0,), std=(1.0,)).std == (1.0,)
    assert replace(tiny.GREY, mean=(3.0,), std=(0.6,)).std == (0.6,)  # a few of all the levels there might be
    assert replace(tiny.GREY, high=(1.0,), mean=(0.5,), std=(0.25,)).high == (1.0,)


@given(specs())
def test_a_spec_survives_json(spec: ObservationSpec) -> None:
    assert ObservationSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"shape": (4, 1)}, r"observation\.shape: \[4, 1\] does not fit layout 'vector'"),
        ({"shape": (0,)}, r"observation\.shape: \[0\]"),
        ({"low": (0.0, 1.0)}, r"observation\.low: 2 values for shape \[4\]; give 1 or 4"),
        ({"mean": (0.0,) * 3}, r"observation\.mean: 3 values"),
        ({"std": (0.0,)}, r"observation\.std: 0\.0 is not positive"),
        ({"low": (1.0,), "high": (1.0,)}, r"observation\.low: .* is not below observation\.high"),
        ({"stack": 3}, r"observation\.stack: 3 frames do not make 4 channels"),
        ({"stack": 0}, r"observation\.stack: 0 frames"),
        ({"dtype": "uint8"}, r"observation\.low: .* is more than uint8 holds; state bounds"),
    ],
)
def test_contradictions_are_named(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        replace(tiny.VECTOR, **changed)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"bounds": 3}, "bounds: no such field; known: shape, dtype"),
        ({"hihg": [3]}, "hihg: no such field; did you mean 'high'"),
        ({"dtype": None}, "dtype: missing; give float32 or uint8"),
        ({"dtype": "float64"}, "dtype: 'float64' does not fit; give float32 or uint8"),
        ({"layout": ["CHW"]}, r"layout: \['CHW'\] does not fit; give vector, CHW or HWC"),
        ({"low": -1}, "low: -1 does not fit; give a list of lowest values"),
        ({"shape": [4.0]}, r"shape: \[4\.0\] does not fit"),
        ({"mean": [None]}, r"mean: \[None\] does not fit; give a list of numbers"),
        ({"stack": True}, "stack: True does not fit"),
        ({"low": [-math.inf]}, r"low: \[-inf\] does not fit; give a list of lowest values"),
        ({"mean": [math.nan]}, r"mean: \[nan\] does not fit; give a list of numbers"),
    ],
)
def test_fields_that_cannot_be_read_are_named_with_the_mend(changed: dict[str, Any], said: str) -> None:
    fields = {**tiny.VECTOR.to_json(), **changed}
    with pytest.raises(UserError, match=rf"^observation\.{said}"):
        ObservationSpec.from_json({k: v for k, v in fields.items() if (k, v) != ("dtype", None)})


def test_a_batch_of_another_shape_is_refused() -> None:
    tiny.VECTOR.check_batch(np.zeros((3, 4)))
    with pytest.raises(UserError, match=r"shape \[5\] where the model reads \[4\]"):
        tiny.VECTOR.check_batch(np.zeros((3, 5)))


def test_a_random_stream_depends_on_its_whole_key() -> None:
    keys = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 1, 2), (0, 2, 1), (2**31, 0, 1)]
    drawn = {key: tuple(torch.rand(4, generator=rng("cpu", *key)).tolist()) for key in keys}
    assert len(set(drawn.values())) == len(keys)
    assert all(tuple(torch.rand(4, generator=rng("cpu", *key)).tolist()) == drawn[key] for key in keys)


q_values = st.lists(st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3), min_size=1, max_size=9)


@given(q_values)
def test_scaled_q_values_lie_two_nats_apart_in_the_median(rows: list[list[float]]) -> None:
    values = torch.tensor(rows)

    def median_gap(values: torch.Tensor) -> float:
        best = values.topk(2).values
        return float((best[:, 0] - best[:, 1]).median())

    assume(median_gap(values) > 1e-2)  # what is smaller beside 100 float32 does not hold
    assert median_gap(policy_logits(values, q_value_scale(values))) == pytest.approx(MEDIAN_GAP, rel=1e-2)


def test_a_median_gap_of_four_has_a_scale_of_two() -> None:
    assert q_value_scale(torch.tensor([[5.0, 1.0, 0.0], [0.0, 3.0, 7.0], [9.0, 2.0, 1.0]])) == 2.0


def test_the_scale_follows_the_q_values() -> None:
    values = torch.randn((50, 4), generator=torch.Generator().manual_seed(0))
    assert q_value_scale(1000 * values) == pytest.approx(1000 * q_value_scale(values))
    assert q_value_scale(values + 70) == pytest.approx(q_value_scale(values), rel=1e-3)
    assert q_value_scale(torch.zeros(5, 3)) == 1.0


def test_policy_logits_are_centred_and_mean_the_same_policy() -> None:
    values = torch.tensor([[3.0, 5.0, 10.0]])
    logits = policy_logits(values, 2.0)
    assert logits.tolist() == [[-1.5, -0.5, 2.0]]
    torch.testing.assert_close(torch.log_softmax(logits, -1), log_policy(values, 2.0))
