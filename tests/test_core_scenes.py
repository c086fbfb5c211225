"""Scenes: what moves, what stays, and what they are made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gasim_ray.core.generator import DirectGenerator
from gasim_ray.core.model import Model, ModelConfig, load_model
from gasim_ray.core.scenes import CHUNK, LEVELS, PLACES, Scenes, SceneSettings, telling_levels
from gasim_ray.core.seeds import rng
from gasim_ray.core.settings import GeneratorSettings
from gasim_ray.errors import UserError

BARE = SceneSettings(sprites=0, static=0, noise=0.0, text=0.0)
FRAMES = replace(tiny.ATARI, layout="CHW", shape=(4, 84, 84))


def frames(settings: SceneSettings, count: int = 100, seed: int = 0) -> Tensor:
    """(count, 4, 84, 84) in 0 to 1."""
    return Scenes(tiny.model(FRAMES), "cpu", settings).sample(count, rng("cpu", seed)).float() / 255


def test_with_nothing_in_it_a_scene_is_a_ground_of_random_level() -> None:
    grounds = frames(BARE).flatten(1)
    assert torch.equal(grounds.amin(1), grounds.amax(1))
    assert 0.2 < float(grounds[:, 0].std()) < 0.4


def test_static_things_stay_and_sprites_move() -> None:
    still = frames(replace(BARE, static=6))
    assert torch.equal(still, still[:, :1].expand_as(still))
    moving = frames(replace(BARE, sprites=6))
    assert float((moving[:, 1:] != moving[:, :1]).flatten(1).any(1).float().mean()) > 0.8
    stopped = frames(replace(BARE, sprites=6, speed=0.0))
    assert torch.equal(stopped, stopped[:, :1].expand_as(stopped))


def test_some_scenes_may_stand_still() -> None:
    moving = replace(BARE, sprites=8)

    def still(share: float) -> float:
        stacks = frames(replace(moving, still=share), 400)
        return float((stacks == stacks[:, :1]).flatten(1).all(1).float().mean())

    assert still(0.0) < 0.15
    assert 0.3 < still(0.4) < 0.55
    assert still(1.0) == 1.0


def test_bands_reach_from_border_to_border_and_only_things_that_stay_are_bands() -> None:
    def covered(settings: SceneSettings) -> Tensor:
        """Share of rows and columns (scenes that hold the thing, 2) that a lone small thing touches."""
        scene = frames(replace(settings, largest=12.0), 400)[:, 0]
        thing = scene != scene.flatten(1).median(1).values.reshape(-1, 1, 1)
        touched = torch.stack([thing.any(2).float().mean(1), thing.any(1).float().mean(1)], 1)
        return touched[touched[:, 0] > 0]

    bands = covered(replace(BARE, static=1, bands=1.0))
    assert bool(((bands == 1).sum(1) == 1).all())
    assert 0.4 < float((bands[:, 0] == 1).float().mean()) < 0.6
    some = (covered(replace(BARE, static=1, bands=0.3)) == 1).any(1).float().mean()
    assert 0.2 < float(some) < 0.4
    for none in (replace(BARE, static=1), replace(BARE, sprites=1, bands=1.0)):
        assert bool((covered(none) < 0.2).all())


@given(seed=st.integers(0, 10_000), largest=st.floats(1.0, 80.0), speed=st.floats(0.0, 100.0))
def test_a_thing_is_whole_in_every_frame(seed: int, largest: float, speed: float) -> None:
    settings = replace(BARE, sprites=1, largest=largest, speed=speed)
    scene = frames(settings, 20, seed)
    ground = scene.flatten(2).median(2).values.unsqueeze(-1)
    area = (scene.flatten(2) != ground).sum(2)
    small = area.amax(1) < 84 * 84 / 2  # of a larger one the median is the thing
    assert torch.equal(area[small], area[small, :1].expand_as(area[small]))


def test_sizes_lie_between_the_bounds_and_are_spread_over_scales() -> None:
    scene = frames(replace(BARE, static=1, smallest=2.0, largest=32.0), 2000)[:, 0]
    covered = scene != scene.flatten(1).median(1).values.reshape(-1, 1, 1)
    heights = covered.any(2).sum(1)
    heights = heights[heights > 0].float()
    assert (float(heights.min()), float(heights.max())) == (2.0, 32.0)
    assert float(heights.median()) == pytest.approx(8, abs=1.5)


def test_each_scene_may_have_a_contrast_of_its_own() -> None:
    def median_contrast(**tones: float) -> float:
        scene = frames(replace(BARE, static=1, **tones), 1000)[:, 0].flatten(1)
        contrast = scene.amax(1) - scene.amin(1)
        assert float(contrast.max()) <= 0.5
        return float(contrast[contrast > 0].median())

    alike = median_contrast(contrast=0.5)
    assert 0.1 * alike < median_contrast(contrast=0.5, faintest=0.02) < 0.5 * alike


@torch.no_grad()
def sees_edges_at(dark: bool) -> Model:
    """A teacher whose answer depends on edges, and only while the ground is dark, or only while it is bright."""
    architecture = {"name": "cnn", "filters": [[1, 8, 8]], "hidden": [], "activation": "relu"}
    teacher = Model(ModelConfig(architecture, FRAMES, 2, "logits"))
    convolution, head = (m for m in teacher.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    edge = torch.ones(8).index_fill(0, torch.arange(4), -1.0)
    convolution.weight.copy_((edge + (-0.3 if dark else 0.3)).expand(convolution.weight.shape) / 32)
    convolution.bias.fill_(0.0 if dark else -2.0)
    head.weight.copy_(torch.tensor([[1.0], [0.0]]).expand(head.weight.shape))
    return teacher.frozen()


@pytest.mark.parametrize("dark", [True, False])
def test_the_teacher_tells_the_level_of_the_ground(dark: bool) -> None:
    settings = SceneSettings(telling=True, contrast=0.3, noise=0.0)
    scenes = Scenes(sees_edges_at(dark), "cpu", settings)
    levels = scenes.things(500, rng("cpu", 0)).ground
    assert levels.shape == (500, 1)
    assert float((levels - (0.0 if dark else 1.0)).abs().mean()) < 0.3  # 0.5 for any level
    assert 0.4 < float(Scenes(sees_edges_at(dark), "cpu").things(500, rng("cpu", 0)).ground.mean()) < 0.6
    again = Scenes(sees_edges_at(dark), "cpu", settings)
    assert torch.equal(again.sample(3, rng("cpu", 1)), scenes.sample(3, rng("cpu", 1)))


@pytest.mark.parametrize(("name", "level"), [("breakout-ppo", 0.0), ("pong-ppo-0", 0.34), ("pong-ppo-1", 0.34)])
def test_shipped_teachers_tell_the_level_of_their_games_ground(name: str, level: float) -> None:
    teacher = load_model(Path(__file__).parents[1] / "benchmarks" / "teachers" / name).frozen()
    told = telling_levels(teacher, torch.device("cpu"), SceneSettings())
    assert abs(float(told.argmax()) / (LEVELS - 1) - level) < 0.1


def test_seaquest_s_teacher_tells_that_its_sea_is_dark() -> None:
    teacher = load_model(Path(__file__).parents[1] / "benchmarks" / "teachers" / "seaquest-ppo").frozen()
    told = telling_levels(teacher, torch.device("cpu"), SceneSettings())
    assert float(told[:3].min()) > float(told[3:].max())  # 0, 0.1 and 0.2 of the range; most of it is at 0.125


@torch.no_grad()
def test_the_teacher_tells_where_it_looks() -> None:
    teacher = sees_edges_at(dark=True)
    (head,) = (m for m in teacher.modules() if isinstance(m, nn.Linear))
    squares = head.weight.reshape(2, 10, 10)
    squares[:, :, :8] = 0.0  # blind but for the right border
    settings = replace(BARE, sprites=4, contrast=0.3, largest=4.0, looked_at=1.0)
    scenes = Scenes(teacher, "cpu", settings)
    assert scenes.places is not None
    columns = scenes.places.reshape(PLACES, PLACES).sum(0)
    assert float(columns[-4:].sum()) > 0.95
    things = scenes.things(200, rng("cpu", 0))
    last = things.way + 3 * things.speed
    assert float((last[..., 1] > 50).float().mean()) > 0.9
    assert bool(((last >= -1e-3) & (last <= 84)).all())
    assert Scenes(teacher, "cpu", replace(BARE, looked_at=1.0, telling=True)).sample(3, rng("cpu", 0)).shape[0] == 3
    anywhere = Scenes(teacher, "cpu", replace(settings, looked_at=0.0)).things(200, rng("cpu", 0)).way % 160
    assert 0.1 < float(((anywhere[..., 1] > 50) & (anywhere[..., 1] < 110)).float().mean()) < 0.6


def test_struck_out_things_have_gaps_and_noise_is_everywhere() -> None:
    def kinds_of_rows(settings: SceneSettings) -> float:
        scene = frames(settings)[:, 0]
        return sum(len({tuple(row) for row in picture.tolist()}) for picture in scene) / len(scene)

    boxes = replace(BARE, static=1, smallest=20.0)
    assert kinds_of_rows(boxes) <= 2
    pixels = frames(replace(BARE, noise=1.0)).flatten(1)
    assert bool((pixels.std(1) > 0).all())
    changes = frames(replace(boxes, text=1.0))[:, 0].diff(dim=2).ne(0).sum((1, 2)).float()
    assert float(changes.mean()) > 2 * float(frames(boxes)[:, 0].diff(dim=2).ne(0).sum((1, 2)).float().mean())


def test_what_is_drawn_does_not_depend_on_the_layout_and_colours_fit() -> None:
    assert torch.equal(
        Scenes(tiny.model(FRAMES), "cpu").sample(CHUNK + 1, rng("cpu", 0)),
        Scenes(tiny.model(tiny.ATARI), "cpu").sample(CHUNK + 1, rng("cpu", 0)).permute(0, 3, 1, 2),
    )
    coloured = replace(tiny.ATARI, shape=(84, 84, 6), stack=2)
    assert Scenes(tiny.model(coloured), "cpu").sample(3, rng("cpu", 0)).shape == (3, 84, 84, 6)


def test_a_generator_moves_what_starts_as_whole_numbers() -> None:
    prior = Scenes(tiny.model(FRAMES), "cpu")
    generator = DirectGenerator(prior, GeneratorSettings(batch_size=8, steps=2, keep_start=True), rng("cpu", 0))
    generator.start(rng("cpu", 1))
    generator.improve(lambda x: x.square().mean(), rng("cpu", 2))
    start, moved = generator.emit(rng("cpu", 3)).chunk(2)
    assert float(moved.mean()) < float(start.mean())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sprites": -1}, r"scenes\.sprites: -1 is impossible; give at least 0"),
        ({"smallest": 5.0, "largest": 2.0}, r"scenes\.largest: 2\.0 is impossible; give at least 5"),
        ({"contrast": 0.2, "faintest": 0.3}, r"scenes\.faintest: 0\.3 is impossible; give at most 0\.2"),
        ({"looked_at": 1.5}, r"scenes\.looked_at: 1\.5 is impossible; give at most 1"),
        ({"text": 1.5}, r"scenes\.text: 1\.5 is impossible; give at most 1"),
        ({"bands": 1.5}, r"scenes\.bands: 1\.5 is impossible; give at most 1"),
        ({"still": -0.5}, r"scenes\.still: -0\.5 is impossible; give at least 0"),
    ],
)
def test_impossible_settings(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SceneSettings(**wrong)


@pytest.mark.parametrize(("spec", "message"), [(tiny.VECTOR, "a vector teacher"), (tiny.GREY, "takes 'leaves'")])
def test_teachers_that_see_no_scenes(spec: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Scenes(tiny.model(spec), "cpu")
