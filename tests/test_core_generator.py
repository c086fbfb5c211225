"""Generators for vectors and for images of any shape: bounds, improvement, restarts, saved state."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from gasim_ray.core.generator import AdamDirection, DirectGenerator, NetworkGenerator, element_spread, smooth, unit_rms
from gasim_ray.core.observation import ObservationSpec
from gasim_ray.core.prior import Uniform
from gasim_ray.core.seeds import rng
from gasim_ray.core.settings import GeneratorSettings

CPU = torch.device("cpu")


def settings(**changed: object) -> GeneratorSettings:
    given: dict[str, object] = {"batch_size": 4, "steps": 1, "learning_rate": 0.1, "latent": 5}
    return GeneratorSettings(**(given | changed))  # type: ignore[arg-type]


def make(kind: str, spec: ObservationSpec, **changed: object) -> DirectGenerator | NetworkGenerator:
    prior = Uniform(tiny.model(spec), "cpu")
    if kind == "direct":
        return DirectGenerator(prior, settings(**changed), rng("cpu", 0))
    return NetworkGenerator(prior if kind == "network on a prior" else None, settings(**changed), spec, CPU)


@pytest.fixture(params=["direct", "network", "network on a prior"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=list(tiny.SPECS))
def spec(request: pytest.FixtureRequest) -> ObservationSpec:
    return tiny.SPECS[request.param]


def test_observations_fit_the_spec(kind: str, spec: ObservationSpec) -> None:
    generator = make(kind, spec)
    generator.start(rng("cpu", 1))
    generator.improve(lambda x: spec.normalise(x).square().mean(), rng("cpu", 2))
    emitted = generator.emit(rng("cpu", 3))
    assert emitted.shape == (4, *spec.shape)
    assert not emitted.requires_grad
    tiny.assert_within(emitted, spec)
    stored = spec.quantise(emitted)
    assert stored.dtype == spec.torch_dtype
    assert float((stored.float() - emitted).abs().max()) <= (0.5 if spec.dtype == "uint8" else 1e-4)


@pytest.mark.parametrize("spec", [tiny.VECTOR, replace(tiny.COLOUR, shape=(3, 13, 9))], ids=["vector", "image"])
def test_improving_lowers_the_objective(kind: str, spec: ObservationSpec) -> None:
    low, high = spec.bounds()

    def objective(x: Tensor) -> Tensor:
        return ((x - low) / (high - low) - 0.8).square().mean()

    rate = 0.1 if kind == "direct" else 0.01
    generator = make(kind, spec, steps=10, learning_rate=rate)
    generator.start(rng("cpu", 1))
    before = float(objective(generator.emit(rng("cpu", 2))))
    for order in range(3):
        generator.improve(objective, rng("cpu", 3, order))
    assert float(objective(generator.emit(rng("cpu", 2)))) < 0.9 * before


def test_a_start_forgets_everything(kind: str) -> None:
    generator = make(kind, tiny.VECTOR)
    generator.start(rng("cpu", 1))
    fresh = generator.emit(rng("cpu", 2))
    generator.improve(lambda x: x.square().mean(), rng("cpu", 3))
    assert not torch.equal(generator.emit(rng("cpu", 2)), fresh)
    generator.start(rng("cpu", 1))
    assert torch.equal(generator.emit(rng("cpu", 2)), fresh)


@pytest.mark.parametrize("learned", [{}, {"fixed_latent": True, "meta": 0.5}], ids=["plain", "learned"])
@pytest.mark.parametrize("spec", [tiny.VECTOR, tiny.GREY], ids=["vector", "image"])
def test_a_restored_network_goes_on_as_the_saved_one(spec: ObservationSpec, learned: dict[str, Any]) -> None:
    saved, restored = make("network", spec, **learned), make("network", spec, **learned)
    saved.start(rng("cpu", 1))
    saved.improve(lambda x: x.square().mean(), rng("cpu", 2))
    restored.load_state_dict(tiny.through_file(saved.state_dict()))
    for order in range(3):
        if order == 2:
            saved.start(rng("cpu", 5))
            restored.start(rng("cpu", 5))
        values = [g.improve(lambda x: x.square().mean(), rng("cpu", 3, order)) for g in (saved, restored)]
        assert values[0] == values[1]
    assert torch.equal(saved.emit(rng("cpu", 4)), restored.emit(rng("cpu", 4)))


def test_learned_latent_vectors_are_emitted_whatever_the_order_draws() -> None:
    generator = make("network", tiny.VECTOR, fixed_latent=True)
    generator.start(rng("cpu", 1))
    first = generator.emit(rng("cpu", 2))
    assert torch.equal(generator.emit(rng("cpu", 3)), first)
    latent = generator.state_dict()["latent"].clone()
    generator.improve(lambda x: x.square().mean(), rng("cpu", 4))
    assert not torch.equal(generator.state_dict()["latent"], latent)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_meta_learned_start_moves_towards_where_the_last_life_ended(share: float) -> None:
    generator = make("network", tiny.VECTOR, meta=share, learning_rate=0.1)
    generator.start(rng("cpu", 1))
    begun = {name: tensor.clone() for name, tensor in generator.state_dict()["network"].items()}
    generator.improve(lambda x: x.square().mean(), rng("cpu", 2))
    ended = {name: tensor.clone() for name, tensor in generator.state_dict()["network"].items()}
    generator.start(rng("cpu", 3))
    for name, tensor in generator.state_dict()["network"].items():
        torch.testing.assert_close(tensor, torch.lerp(begun[name], ended[name], share))


def test_a_network_on_a_prior_starts_as_that_prior(spec: ObservationSpec) -> None:
    generator = make("network on a prior", spec)
    generator.start(rng("cpu", 1))
    emitted = generator.emit(rng("cpu", 2))
    stream = rng("cpu", 2)
    torch.randn((4, 5), generator=stream)
    expected = Uniform(tiny.model(spec), "cpu").sample(4, stream)
    low, high = spec.bounds()
    assert float(((emitted - expected) / (high - low)).abs().max()) < 1e-3


def test_starting_leaves_the_global_random_state_alone() -> None:
    state = torch.random.get_rng_state()
    make("network", tiny.VECTOR).start(rng("cpu", 1))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_direct_step_is_as_long_as_the_settings_say() -> None:
    wide = replace(tiny.VECTOR, low=(None,), high=(None,), std=(1e3,))
    prior = Uniform(tiny.model(wide), "cpu")
    generator = DirectGenerator(prior, settings(steps=1, learning_rate=0.01), rng("cpu", 0))
    generator.start(rng("cpu", 1))
    before = generator.emit(rng("cpu", 1)).clone()
    generator.improve(lambda x: (x * torch.tensor([1.0, -2.0, 0.5, 3.0])).sum(), rng("cpu", 2))
    moved = (generator.emit(rng("cpu", 1)) - before) / generator.spread
    torch.testing.assert_close(moved.square().mean(1).sqrt(), torch.full((4,), 0.01), rtol=1e-2, atol=0)
    assert torch.sign(moved[0]).tolist() == [-1, 1, -1, -1]


def test_without_a_gradient_nothing_moves() -> None:
    generator = make("direct", tiny.VECTOR)
    generator.start(rng("cpu", 1))
    before = generator.emit(rng("cpu", 1)).clone()
    assert generator.improve(lambda x: (0 * x).sum(), rng("cpu", 2)) == 0
    assert torch.equal(generator.emit(rng("cpu", 1)), before)


def test_gradients_are_scaled_sample_by_sample() -> None:
    gradient = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-12, 1e-12]])
    assert unit_rms(gradient)[1].tolist() == [0, 0]
    torch.testing.assert_close(unit_rms(gradient)[[0, 2]].square().mean(1), torch.ones(2))


def test_spread_is_measured_for_each_element_of_a_vector() -> None:
    low, high = tiny.VECTOR.bounds()
    spread = element_spread(Uniform(tiny.model(tiny.VECTOR), "cpu"), rng("cpu", 0))
    torch.testing.assert_close(spread, (high - low) / 12**0.5, rtol=0.1, atol=0)
    assert element_spread(Uniform(tiny.model(tiny.GREY), "cpu"), rng("cpu", 0)).dim() == 0


def test_blur_spreads_over_height_and_width_only() -> None:
    point = torch.zeros(1, 3, 9, 9)
    point[0, 1, 4, 4] = 1
    blurred = smooth(point, 1.0, replace(tiny.COLOUR, shape=(3, 9, 9)))
    assert float(blurred.sum()) == pytest.approx(1.0)
    assert blurred[0, [0, 2]].abs().max() == 0
    assert 0.1 < float(blurred[0, 1, 4, 4]) < 0.3
    torch.testing.assert_close(blurred[0, 1], blurred[0, 1].T)
    hwc = replace(tiny.COLOUR, shape=(9, 9, 3), layout="HWC")
    assert torch.equal(smooth(point.permute(0, 2, 3, 1), 1.0, hwc), blurred.permute(0, 2, 3, 1))
    assert smooth(point, 0.0, tiny.COLOUR) is point


def test_what_a_direct_generator_started_from_is_kept_if_that_is_wanted() -> None:
    prior = Uniform(tiny.model(tiny.VECTOR), "cpu")
    settings = GeneratorSettings(batch_size=16, steps=2, keep_start=True)
    generator = DirectGenerator(prior, settings, rng("cpu", 0))
    generator.start(rng("cpu", 1))
    generator.improve(lambda x: x.square().sum(), rng("cpu", 2))
    first, moved = generator.emit(rng("cpu", 3)).chunk(2)
    assert torch.equal(first, prior.sample(16, rng("cpu", 1)))
    assert (first - moved).abs().amax(1).min() > 0


def test_a_direct_generator_that_lives_on_goes_on_from_where_it_is() -> None:
    def made() -> DirectGenerator:
        prior = Uniform(tiny.model(tiny.VECTOR), "cpu")
        lasting = settings(batch_size=16, steps=1, learning_rate=0.01, keep_start=True, reset_every=2)
        return DirectGenerator(prior, lasting, rng("cpu", 0))

    def improve(generator: DirectGenerator) -> Tensor:
        generator.improve(lambda x: x.square().sum(), rng("cpu", 2))
        return generator.emit(rng("cpu", 3))

    generator, restored = made(), made()
    generator.start(rng("cpu", 1))
    _, moved = improve(generator).chunk(2)
    restored.load_state_dict(tiny.through_file(generator.state_dict()))
    again = improve(generator)
    assert len(again) == 16  # what it started from was emitted once
    step = ((again - moved) / generator.spread).square().mean(1).sqrt()
    assert float((step - 0.01).abs().max()) < 1e-3
    assert torch.equal(improve(restored), again)


def test_adam_steps_as_pytorchs() -> None:
    target = torch.tensor([[1.0, -20.0], [0.3, 4.0]])
    learned = torch.zeros(2, 2, requires_grad=True)
    optimiser = torch.optim.Adam([learned], lr=0.1, betas=AdamDirection.decays)
    ours, direction = torch.zeros(2, 2), AdamDirection()
    for _ in range(5):
        optimiser.zero_grad()
        torch.autograd.backward((learned - target).square().sum())
        optimiser.step()
        ours = ours - 0.1 * direction(2 * (ours - target))
    torch.testing.assert_close(ours, learned.detach())


def test_adams_first_step_is_of_one_length_in_every_element() -> None:
    generator = make("direct", tiny.GREY, steps=1, learning_rate=0.01, adam=True)
    assert isinstance(generator, DirectGenerator)
    generator.start(rng("cpu", 0))
    first = generator.emit(rng("cpu", 0))
    weights = torch.randn(first.shape, generator=rng("cpu", 1))
    generator.improve(lambda observations: (weights * observations).sum(), rng("cpu", 0))
    aim = (first - 0.01 * generator.spread * weights.sign()).clamp(0, 255)
    torch.testing.assert_close(generator.emit(rng("cpu", 0)), aim)
