"""Priors of vectors and images, mixtures of them and the choice among their samples: bounds, repeatability, shape."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st

from gasim_ray.core.geometry import Geometry, Undecided, boundary_points
from gasim_ray.core.mixture import Mixture
from gasim_ray.core.model import Model, ModelConfig
from gasim_ray.core.observation import ObservationSpec
from gasim_ray.core.pictures import Contours, Contrasted, Fields, Leaves, Shapes, brightness, enlargements
from gasim_ray.core.prior import Prior, Uniform
from gasim_ray.core.seeds import rng
from gasim_ray.errors import UserError

#: Name of the prior, name of the spec.
PRIORS = [("geometry", "vector"), ("undecided", "vector")]
PRIORS += [(prior, spec) for prior in ("uniform", "gaussian") for spec in tiny.SPECS]
PRIORS += [
    (prior, spec)
    for prior in ("fields", "contours", "shapes", "leaves", "nature")
    for spec in tiny.SPECS
    if spec != "vector"
]
PRIORS += [("patches", spec) for spec in tiny.SPECS if spec != "vector"]
PRIORS += [("scenes", "84x84x4")]


@pytest.fixture(params=PRIORS, ids="-".join)
def prior(request: pytest.FixtureRequest) -> Prior:
    name, spec = request.param
    return Mixture([name], tiny.model(tiny.SPECS[spec]), "cpu")


def test_a_prior_lies_within_the_bounds_and_varies(prior: Prior) -> None:
    sample = prior.sample(20, rng("cpu", 0))
    assert sample.shape == (20, *prior.spec.shape)
    assert sample.dtype in (torch.float32, prior.spec.torch_dtype)
    tiny.assert_within(sample, prior.spec)
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


@pytest.mark.parametrize("spec", [spec for spec in tiny.SPECS if spec != "vector"])
def test_patches_lie_where_units_of_the_first_convolution_switch(spec: str) -> None:
    teacher = tiny.model(tiny.SPECS[spec])
    first = next(m for m in teacher.network.modules() if isinstance(m, torch.nn.Conv2d))

    def units_near_their_boundary(prior: Prior) -> float:
        answers = first(prior.spec.normalise(prior.sample(200, rng("cpu", 0))))
        return float((answers.abs() < 1e-2 * answers.abs().mean()).float().mean())

    patches = units_near_their_boundary(Mixture(["patches"], teacher, "cpu"))
    assert patches > 2 * units_near_their_boundary(Uniform(teacher, "cpu"))


def test_patches_know_what_a_network_puts_around_a_picture() -> None:
    config = tiny.model(tiny.GREY).config
    filters = [[4, 8, 4, [1, 2, 2, 1]]]
    torch.manual_seed(0)
    teacher = Model(replace(config, architecture={"name": "cnn", "filters": filters, "hidden": [8]})).frozen()
    read: list[torch.Tensor] = []
    first = teacher.network.convolutions[0]  # type: ignore[index, union-attr]
    first.register_forward_hook(lambda _, inputs, output: read.append(output))  # type: ignore[union-attr]
    near = []
    for prior in ("patches", "uniform"):
        sample = Mixture([prior], teacher, "cpu").sample(200, rng("cpu", 0))
        read.clear()
        teacher(sample)
        near.append(float((read[0].abs() < 1e-2 * read[0].abs().mean()).float().mean()))
    assert near[0] > 2 * near[1]


def test_a_teacher_without_a_convolution_has_no_patches() -> None:
    with pytest.raises(UserError, match="first layer is a plain convolution"):
        Mixture(["patches"], tiny.model(tiny.VECTOR), "cpu")


@pytest.mark.parametrize(
    "architecture", [{"name": "lenet5"}, {"name": "cnn", "filters": [[4, 8, 4]], "hidden": [8], "centred": True}]
)
def test_a_convolution_that_does_more_has_no_patches(architecture: dict[str, Any]) -> None:
    teacher = Model(replace(tiny.model(tiny.GREY).config, architecture=architecture)).frozen()
    with pytest.raises(UserError, match="first layer is a plain convolution"):
        Mixture(["patches"], teacher, "cpu")


@pytest.mark.parametrize(("mean", "std", "told"), [(0.0, 255.0, 0.5), (0.0, 1.0, 0.5), (51.0, 80.0, 0.2)])
def test_a_scale_alone_tells_no_brightness(mean: float, std: float, told: float) -> None:
    assert brightness(replace(tiny.GREY, mean=(mean,), std=(std,))) == pytest.approx(told)


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


def line_reader() -> Model:
    """A teacher of pictures one pixel high."""
    return Model(ModelConfig({"name": "mlp", "hidden": [3]}, replace(tiny.GREY, shape=(1, 1, 28)), 2, "logits"))


def out_of_bounds() -> Model:
    """A teacher whose units switch far outside the bounds."""
    teacher = tiny.model(tiny.VECTOR)
    for parameter in teacher.parameters():
        if parameter.dim() == 1:
            parameter.data.fill_(1e6)
    return teacher


def test_a_first_layer_without_biases_has_a_geometry() -> None:
    teacher = tiny.model(tiny.VECTOR)
    (first, *_) = (m for m in teacher.modules() if isinstance(m, torch.nn.Linear))
    first.bias.data.zero_()
    same = Geometry(teacher, "cpu").bank
    first.bias = None
    boundary_points.cache_clear()  # which goes by the layer
    assert torch.equal(Geometry(teacher, "cpu").bank, same)


@pytest.mark.parametrize(
    ("name", "teacher", "said"),
    [
        ("geometry", tiny.model(tiny.GREY), "generator.prior: 'geometry' needs a vector teacher"),
        ("geometry", narrow(), "'geometry' needs a first layer of as many units .* has 3 for 4; use 'uniform'"),
        ("geometry", out_of_bounds(), "generator.prior: 'geometry' finds no observation within the bounds"),
        ("fields", tiny.model(tiny.VECTOR), "generator.prior: pictures are for images"),
        ("contours", line_reader(), "generator.prior: pictures have no shape in .1, 1, 28.; give 'uniform'"),
        ("unifrom", tiny.model(tiny.VECTOR), "generator.prior: 'unifrom' is not one of uniform, "),
    ],
)
def test_a_prior_that_does_not_fit_the_teacher_is_refused(name: str, teacher: Model, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Mixture([name], teacher, "cpu")


@pytest.mark.parametrize("spec", [tiny.GREY, replace(tiny.GREY, mean=(200.0,))], ids=["dark", "bright"])
def test_contrast_is_raised_from_the_ground(spec: ObservationSpec) -> None:
    teacher = tiny.model(spec)
    shapes = Shapes(teacher, "cpu")
    faint, strong = (p.sample(50, rng("cpu", 0)) / 255 for p in (shapes, Contrasted(shapes, teacher, 2.0)))
    ground = 1.0 if spec.mean == (200.0,) else 0.0
    before, after = (faint - ground).abs(), (strong - ground).abs()
    assert ((after >= before - 1e-6) & (after <= 3 * before + 1e-6)).all()
    assert after.mean() > 1.1 * before.mean()
    tiny.assert_within(strong * 255, spec)


def test_contrast_is_refused_for_vectors() -> None:
    teacher = tiny.model(tiny.VECTOR)
    with pytest.raises(UserError, match=r"generator.contrast: 1.0 is for images"):
        Contrasted(Uniform(teacher, "cpu"), teacher, 1.0)


@pytest.mark.parametrize("name", ["shapes", "leaves"])
def test_shapes_lie_amid_an_empty_ground_and_half_of_them_are_their_own_mirror_image(name: str) -> None:
    images = Mixture([name], tiny.model(tiny.GREY), "cpu").sample(400, rng("cpu", 0)) / 255
    alike = ((images - images.flip(3)).abs().amax((1, 2, 3)) < 1e-4).float().mean()
    assert 0.4 < alike < 0.6
    corners = images[..., [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.mean() < 0.3 * images[..., 10:18, 10:18].mean()
    assert images.mean(0).std() > 0.05
