"""Priors and generators for vectors and for images of any shape: bounds, repeatability, improvement, saved state."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gasim_ray.core.generator import DirectGenerator, NetworkGenerator, element_spread, smooth, unit_rms
from gasim_ray.core.geometry import Geometry, Undecided
from gasim_ray.core.mixture import Chosen, Mixture
from gasim_ray.core.model import Model, ModelConfig
from gasim_ray.core.observation import ObservationSpec
from gasim_ray.core.pictures import Contours, Fields, Leaves, Shapes, enlargements
from gasim_ray.core.prior import Prior, Uniform
from gasim_ray.core.seeds import rng
from gasim_ray.core.settings import GeneratorSettings
from gasim_ray.errors import UserError

CPU = torch.device("cpu")
#: Name of the prior, name of the spec.
PRIORS = [("geometry", "vector"), ("undecided", "vector")]
PRIORS += [(prior, spec) for prior in ("uniform", "gaussian") for spec in tiny.SPECS]
PRIORS += [(prior, spec) for prior in ("fields", "contours") for spec in tiny.SPECS if spec != "vector"]


def assert_within(observations: Tensor, spec: ObservationSpec) -> None:
    low, high = spec.bounds()
    slack = 1e-5 * (high - low)
    assert bool(torch.isfinite(observations).all())
    assert bool(((observations >= low - slack) & (observations <= high + slack)).all())


@pytest.fixture(params=PRIORS, ids="-".join)
def prior(request: pytest.FixtureRequest) -> Prior:
    name, spec = request.param
    return Mixture([name], tiny.model(tiny.SPECS[spec]), "cpu")


def test_a_prior_lies_within_the_bounds_and_varies(prior: Prior) -> None:
    sample = prior.sample(20, rng("cpu", 0))
    assert sample.shape == (20, *prior.spec.shape)
    assert sample.dtype == torch.float32
    assert_within(sample, prior.spec)
    assert len({tuple(row) for row in sample.flatten(1).tolist()}) == 20


def test_a_prior_depends_on_its_random_stream_alone(prior: Prior) -> None:
    first, again, other = (prior.sample(5, rng("cpu", seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_uniform_fills_the_bounds() -> None:
    sample = Uniform(tiny.model(tiny.VECTOR), "cpu").sample(5000, rng("cpu", 0))
    low, high = tiny.VECTOR.bounds()
    unit = (sample - low) / (high - low)
    torch.testing.assert_close(unit.mean(0), torch.full((4,), 0.5), atol=0.02, rtol=0)
    torch.testing.assert_close(unit.std(0), torch.full((4,), 12**-0.5), atol=0.02, rtol=0)


def test_geometry_lies_where_units_of_the_teacher_switch() -> None:
    teacher = tiny.model(tiny.VECTOR)
    first = next(m for m in teacher.network.modules() if isinstance(m, torch.nn.Linear))

    def units_near_their_boundary(prior: Prior) -> float:
        sample = tiny.VECTOR.normalise(prior.sample(1000, rng("cpu", 0)))
        return float((first(sample).abs() < 0.3).float().mean())

    assert units_near_their_boundary(Geometry(teacher, "cpu")) > 3 * units_near_their_boundary(Uniform(teacher, "cpu"))


def test_undecided_lies_where_the_teachers_outputs_differ_less() -> None:
    teacher = tiny.model(tiny.VECTOR)

    def spread(prior: Prior) -> float:
        return float(teacher(prior.sample(1000, rng("cpu", 0))).std(-1).median())

    class Unselected(Undecided):
        candidates = 1

    assert spread(Undecided(teacher, "cpu")) < 0.9 * spread(Unselected(teacher, "cpu"))
    points = [prior(teacher, "cpu").bank for prior in (Undecided, Geometry)]
    chosen, all_points = (teacher(p).std(-1) for p in points)
    assert float(chosen.max()) <= float(all_points.quantile(1 / 16)) + 1e-6


@pytest.mark.parametrize("spec", [tiny.GREY, tiny.COLOUR, tiny.ATARI])
@pytest.mark.parametrize("kind", [Fields, Contours])
def test_pictures_are_smoother_than_noise(kind: type[Prior], spec: ObservationSpec) -> None:
    teacher = tiny.model(spec)
    pictures, noise = (spec.normalise(k(teacher, "cpu").sample(20, rng("cpu", 0))) for k in (kind, Uniform))
    roughness = [float((x[..., 1:] - x[..., :-1]).abs().mean() / x.std()) for x in (pictures, noise)]
    assert roughness[0] < 0.6 * roughness[1]


@pytest.mark.parametrize("kind", [Shapes, Leaves])
@pytest.mark.parametrize("mean", [60.0, 195.0])
def test_objects_differ_from_their_ground_as_the_normaliser_tells(kind: type[Prior], mean: float) -> None:
    def contrast(std: float) -> float:
        spec = replace(tiny.GREY, mean=(mean,), std=(std,))
        pictures = kind(tiny.model(spec), "cpu").sample(500, rng("cpu", 0)) / 255
        amid = pictures if mean < 127.5 else 1 - pictures
        return float(amid.square().mean() / amid.mean())

    assert contrast(100.0) > contrast(70.0) + 0.1


@given(count=st.integers(3, 12), side=st.integers(2, 40))
def test_enlarging_by_matrices_is_bicubic_interpolation(count: int, side: int) -> None:
    coarse = torch.randn((1, 1, count, count), generator=rng("cpu", count))
    matrix = enlargements((2, 12), side)[count - 2, :, :count]
    whole = F.interpolate(coarse, (side, side), mode="bicubic", align_corners=True)
    torch.testing.assert_close(matrix @ coarse @ matrix.T, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spec", [tiny.GREY, tiny.ATARI])
def test_contours_leave_the_corners_empty(spec: ObservationSpec) -> None:
    images = Contours(tiny.model(spec), "cpu").unit(64, rng("cpu", 0))
    middle = images.shape[-1] // 2
    assert float(images[..., 0, 0].mean()) < 0.01
    assert float(images[..., middle, middle].mean()) > 0.04


def test_the_standardised_spec_makes_samples_of_the_prior_standard() -> None:
    prior = Uniform(tiny.model(tiny.VECTOR), "cpu")
    network_input = prior.standardised().normalise(prior.sample(5000, rng("cpu", 1)))
    torch.testing.assert_close(network_input.mean(0), torch.zeros(4), atol=0.05, rtol=0)
    torch.testing.assert_close(network_input.std(0), torch.ones(4), atol=0.05, rtol=0)
    assert Uniform(tiny.model(tiny.GREY), "cpu").standardised() == tiny.GREY


def test_a_mixture_has_equal_shares_and_the_most_knowledge() -> None:
    teacher = tiny.model(tiny.GREY)
    mixture = Mixture(["uniform", "gaussian", "fields"], teacher, "cpu")
    assert mixture.knowledge == "generic"
    assert Mixture(["uniform", "gaussian"], teacher, "cpu").knowledge == "bounds"
    sample = mixture.sample(11, rng("cpu", 0))
    assert len(sample) == 11
    stream = rng("cpu", 0)
    for part, prior in zip(sample.split([4, 4, 3]), mixture.priors, strict=True):
        assert torch.equal(part, prior.sample(len(part), stream))


def narrow() -> Model:
    """A teacher with fewer units in its first layer than the observation has elements."""
    return Model(ModelConfig({"name": "mlp", "hidden": [3]}, tiny.VECTOR, 2, "logits"))


def out_of_bounds() -> Model:
    """A teacher whose units switch far outside the bounds."""
    teacher = tiny.model(tiny.VECTOR)
    for parameter in teacher.parameters():
        if parameter.dim() == 1:
            parameter.data.fill_(1e6)
    return teacher


@pytest.mark.parametrize(
    ("name", "teacher", "said"),
    [
        ("geometry", tiny.model(tiny.GREY), "generator.prior: 'geometry' needs a vector teacher"),
        ("geometry", narrow(), "generator.prior: 'geometry' needs a vector teacher"),
        ("geometry", out_of_bounds(), "generator.prior: 'geometry' finds no observation within the bounds"),
        ("fields", tiny.model(tiny.VECTOR), "generator.prior: pictures are for images"),
        ("unifrom", tiny.model(tiny.VECTOR), "generator.prior: 'unifrom' is not one of uniform, "),
    ],
)
def test_a_prior_that_does_not_fit_the_teacher_is_refused(name: str, teacher: Model, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Mixture([name], teacher, "cpu")


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
    assert_within(emitted, spec)
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


class Drawn(Prior):
    """Uniform vectors that are kept, so that a test sees what was chosen from."""

    def sample(self, count: int, generator: torch.Generator) -> torch.Tensor:
        self.last = Uniform.sample(self, count, generator)  # type: ignore[arg-type]
        return self.last


def test_the_chosen_are_those_that_each_action_is_answered_most_decidedly() -> None:
    teacher = tiny.model(tiny.VECTOR)
    drawn = Drawn(teacher, "cpu")
    chosen = Chosen(drawn, teacher, candidates=5, contrast=0.0)
    sample = chosen.sample(31, rng("cpu", 0))
    assert sample.shape == (31, 4)
    assert drawn.last.shape == (155, 4)
    decided, answered = chosen.decidedness(drawn.last), chosen.decidedness(sample)
    for action in range(3):
        # The excitement of the middle observation is part of the measure, so ranks are compared and not values.
        best = drawn.last[decided[:, action].argsort(descending=True)[:10]]
        assert torch.equal(sample[action::3][:10], best)
        assert answered[action::3, action].mean() > decided[:, action].mean()


@pytest.mark.parametrize("spec", [tiny.GREY, replace(tiny.GREY, mean=(200.0,))])
def test_the_contrast_of_the_chosen_is_raised(spec: ObservationSpec) -> None:
    teacher = tiny.model(spec)
    faint, strong = (
        Chosen(Mixture(["shapes"], teacher, "cpu"), teacher, 2, contrast).sample(50, rng("cpu", 0)) / 255
        for contrast in (0.0, 2.0)
    )
    ground = 1.0 if spec.mean == (200.0,) else 0.0
    before, after = (faint - ground).abs(), (strong - ground).abs()
    assert ((after >= before - 1e-6) & (after <= 3 * before + 1e-6)).all()
    assert after.mean() > 1.1 * before.mean()
    assert strong.min() >= 0
    assert strong.max() <= 1


def test_contrast_is_refused_for_vectors() -> None:
    teacher = tiny.model(tiny.VECTOR)
    with pytest.raises(UserError, match=r"generator.contrast: 1.0 is for images"):
        Chosen(Uniform(teacher, "cpu"), teacher, 2, 1.0)


@pytest.mark.parametrize("name", ["shapes", "leaves"])
def test_shapes_lie_amid_an_empty_ground_and_half_of_them_are_their_own_mirror_image(name: str) -> None:
    images = Mixture([name], tiny.model(tiny.GREY), "cpu").sample(400, rng("cpu", 0)) / 255
    alike = ((images - images.flip(3)).abs().amax((1, 2, 3)) < 1e-4).float().mean()
    assert 0.4 < alike < 0.6
    corners = images[..., [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.mean() < 0.3 * images[..., 10:18, 10:18].mean()
    assert images.mean(0).std() > 0.05


def test_what_a_direct_generator_started_from_is_kept_if_that_is_wanted() -> None:
    prior = Uniform(tiny.model(tiny.VECTOR), "cpu")
    settings = GeneratorSettings(batch_size=16, steps=2, keep_start=True)
    generator = DirectGenerator(prior, settings, rng("cpu", 0))
    generator.start(rng("cpu", 1))
    generator.improve(lambda x: x.square().sum(), rng("cpu", 2))
    first, moved = generator.emit(rng("cpu", 3)).chunk(2)
    assert torch.equal(first, prior.sample(16, rng("cpu", 1)))
    assert (first - moved).abs().amax(1).min() > 0
