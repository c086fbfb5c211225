"""samples.png: what is drawn, where."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread

from gasim_ray.core.observation import ObservationSpec
from gasim_ray.errors import UserError
from gasim_ray.report import samples
from gasim_ray.report.samples import MAX_CLASSES, MAX_ELEMENTS, save_samples

RGB = ObservationSpec((6, 6, 3), "uint8", "HWC", (0.0,), (255.0,))
VECTOR = ObservationSpec((2,), "float32", "vector", (-1.0, None), (1.0, None))


def drawn(path, observations, outputs, spec):
    save_samples(path, observations, outputs, spec)
    return imread(path)[..., :3]


def columns_of(picture, colour):
    """Horizontal places of the pixels of exactly this colour."""
    return np.flatnonzero((np.abs(picture - np.array(colour)) < 0.01).all(2).any(0))


@pytest.mark.parametrize("layout", ["HWC", "CHW"])
def test_each_class_has_its_column(tmp_path, layout):
    colours = 255 * np.eye(3, dtype=np.uint8)
    order = np.array([2, 0, 1, 0, 2])
    observations = np.tile(colours[order][:, None, None], (1, 6, 6, 1))
    spec = RGB
    if layout == "CHW":
        observations, spec = np.moveaxis(observations, -1, 1), replace(RGB, shape=(3, 6, 6), layout="CHW")
    picture = drawn(tmp_path / "new" / "samples.png", observations, np.eye(3, dtype=np.float32)[order], spec)
    red, green, blue = (columns_of(picture, colour / 255) for colour in colours)
    assert red.max() < green.min()
    assert green.max() < blue.min()


def test_a_class_that_is_never_chosen_stays_empty(tmp_path):
    observations = np.tile(np.array([255, 0, 0], np.uint8), (3, 6, 6, 1))
    picture = drawn(tmp_path / "s.png", observations, np.eye(4, dtype=np.float32)[[3, 3, 3]], RGB)
    assert columns_of(picture, (1, 0, 0)).min() > 0.7 * picture.shape[1]


@pytest.mark.parametrize("layout", ["HWC", "CHW"])
def test_all_frames_of_a_stack_are_shown_oldest_first(tmp_path, layout):
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    stack = np.concatenate([np.broadcast_to(colour, (6, 6, 3)) for colour in colours], axis=-1)[None]
    spec = ObservationSpec((6, 6, 9), "uint8", "HWC", (0.0,), (255.0,), stack=3)
    if layout == "CHW":
        stack, spec = np.moveaxis(stack, -1, 1), replace(spec, shape=(9, 6, 6), layout="CHW")
    picture = drawn(tmp_path / "a.png", stack, np.zeros((1, 2), np.float32), spec)
    red, green, blue = (columns_of(picture, colour / 255) for colour in colours)
    assert red.max() < green.min()
    assert green.max() < blue.min()


def test_a_stack_is_shown_with_the_teachers_action_and_its_probability():
    spec = ObservationSpec((4, 6, 6), "float32", "CHW", (0.0,), (1.0,), stack=4)
    policies = np.array([[0.25, 0.75], [0.9, 0.1], [0.5, 0.5]], np.float32)
    figure = samples._stacks(np.zeros((3, 4, 6, 6), np.float32), [samples._chosen(p, spec) for p in policies], "", spec)
    assert [axes.get_title() for axes in figure.axes] == ["action 1: 75 %", "action 0: 90 %", "action 0: 50 %", ""]


def test_a_classifier_s_choice_is_a_class():
    spec = ObservationSpec((1, 6, 6), "float32", "CHW", (0.0,), (1.0,))
    assert samples._chosen(np.array([0.25, 0.75], np.float32), spec) == "class 1: 75 %"


def test_the_worst_come_first_with_both_policies(tmp_path, monkeypatch):
    spec = ObservationSpec((4, 6, 6), "float32", "CHW", (0.0,), (1.0,), stack=4)
    stacks = np.broadcast_to(np.array([0.0, 0.5, 1.0], np.float32)[:, None, None, None], (3, 4, 6, 6))
    teacher = np.array([[0.25, 0.75], [0.9, 0.1], [0.5, 0.5]], np.float32)
    shown = []
    draw = samples._stacks
    monkeypatch.setattr(samples, "_stacks", lambda *given: (shown.append(given[:2]), draw(*given))[1])
    samples.save_worst(tmp_path / "w.png", stacks, teacher, teacher[:, ::-1], np.array([0.1, 2.0, 0.5]), spec)
    ((pictures, titles),) = shown
    assert pictures[:, 0, 0, 0].tolist() == [0.5, 1.0, 0.0]
    assert titles[0] == "KL 2: teacher's action 0: 90 %, student's action 1: 90 %"
    assert imread(tmp_path / "w.png").shape[0] > 100


def test_the_commonest_of_many_classes_are_shown(tmp_path):
    classes = MAX_CLASSES + 5
    choices = np.concatenate([np.arange(classes), np.full(5, classes - 1)])
    observations = np.zeros((len(choices), 6, 6, 3), np.uint8)
    observations[choices == classes - 1] = (255, 0, 0)
    observations[choices == classes - 2] = (0, 0, 255)
    picture = drawn(tmp_path / "s.png", observations, np.eye(classes, dtype=np.float32)[choices], RGB)
    assert len(columns_of(picture, (1, 0, 0))) > 0
    assert len(columns_of(picture, (0, 0, 1))) == 0


def test_bounds_are_drawn_beside_the_values(tmp_path):
    observations = np.random.default_rng(0).uniform(-0.2, 0.2, (200, 2)).astype(np.float32)
    outputs = np.eye(2, dtype=np.float32)[np.arange(200) % 2]
    stated = drawn(tmp_path / "a.png", observations, outputs, VECTOR)
    unstated = drawn(tmp_path / "b.png", observations, outputs, replace(VECTOR, low=(None,), high=(None,)))
    assert stated.shape == unstated.shape
    half = stated.shape[1] // 2
    # Beside bounds five times as wide, the histogram of the first element takes a fifth of its width.
    blue = (0x1F / 255, 0x77 / 255, 0xB4 / 255)
    body = slice(40, -60)
    assert len(columns_of(stated[body, :half], blue)) < 0.4 * len(columns_of(unstated[body, :half], blue))


def test_long_vectors_show_their_first_elements(tmp_path):
    few, many = (
        drawn(
            tmp_path / f"{size}.png",
            np.zeros((4, size), np.float32),
            np.zeros((4, 2), np.float32),
            ObservationSpec((size,), "float32", "vector", (-1.0,), (1.0,)),
        )
        for size in (MAX_ELEMENTS, 3 * MAX_ELEMENTS)
    )
    assert few.shape == many.shape


def test_observations_of_another_shape_are_refused(tmp_path):
    with pytest.raises(UserError, match="observations: shape"):
        save_samples(tmp_path / "s.png", np.zeros((1, 3), np.float32), np.zeros((1, 2), np.float32), VECTOR)
