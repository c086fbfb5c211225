"""samples.png: what the generators invented, by the class or action that the teacher chooses for it.

And worst.png: the real observations on which a student is farthest from its teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import softmax

from gasim_ray.core.observation import ObservationSpec

#: Pictures in a column of the grid.
IMAGES_PER_CLASS = 8
#: Stacks of frames that are shown, and in how many columns.
STACKS, STACK_COLUMNS = 16, 2
#: Where there are more classes, those chosen most often are shown.
MAX_CLASSES = 20
#: Where a vector has more elements, the first ones are shown.
MAX_ELEMENTS = 16

Observations = npt.NDArray[Any]
Labels = npt.NDArray[np.int64]
Policies = npt.NDArray[np.float32]


def save_samples(
    path: Path, observations: Observations, teacher_outputs: npt.NDArray[np.float32], spec: ObservationSpec
) -> None:
    """Draw observations (N, *spec.shape) by the teacher's choice, the argmax of its outputs (N, actions).

    Images: a grid, one column a class, in the order given. Stacks of frames: some of them, oldest frame first, with the
    teacher's action and its probability by the softmax of the outputs. Vectors: the distribution of each element,
    stacked by action, beside its bounds. Raises UserError if the observations are not of the spec's shape.
    """
    spec.check_batch(observations)
    choices = teacher_outputs.argmax(1).astype(np.int64)
    counts = np.bincount(choices, minlength=teacher_outputs.shape[1])
    if spec.is_image and spec.stack > 1:
        titles = [_chosen(policy, spec) for policy in softmax(teacher_outputs, axis=1)[:STACKS]]
        heading = _title(observations, f"of which {len(titles)}, oldest frame first")
        figure = _stacks(observations, titles, heading, spec)
    elif spec.is_image:
        figure = _image_grid(observations, choices, counts, spec)
    else:
        figure = _marginals(observations, choices, counts, spec)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, format="png")


def save_worst(
    path: Path, observations: Observations, teacher: Policies, student: Policies, kl: Policies, spec: ObservationSpec
) -> None:
    """Draw those of the pictures (N, *spec.shape) whose `kl` (N,), in nats, is highest, the worst first.

    Beside each stand the likeliest actions, or classes, of both policies (N, actions).
    """
    worst = np.argsort(-kl, kind="stable")[:STACKS]
    titles = [
        f"KL {kl[i]:.2g}: teacher's {_chosen(teacher[i], spec)}, student's {_chosen(student[i], spec)}" for i in worst
    ]
    heading = f"farthest from the teacher among {len(observations):,} real observations"
    path.parent.mkdir(parents=True, exist_ok=True)
    _stacks(observations[worst], titles, heading, spec).savefig(path, dpi=100, format="png")


def _chosen(policy: Policies, spec: ObservationSpec) -> str:
    action = int(policy.argmax())
    return f"{'action' if spec.stack > 1 else 'class'} {action}: {100 * policy[action]:.0f} %"


def _image_grid(observations: Observations, choices: Labels, counts: Labels, spec: ObservationSpec) -> Figure:
    classes = np.sort(np.argsort(-counts, kind="stable")[:MAX_CLASSES])
    _, height, width = spec.network_shape
    gap = 1 + height // 16
    # One white sheet instead of an axes a picture: with twenty classes that would take seconds.
    sheet = np.ones((IMAGES_PER_CLASS * (height + gap), len(classes) * (width + gap), 3), np.float32)
    for column, label in enumerate(classes):
        for row, observation in enumerate(observations[choices == label][:IMAGES_PER_CLASS]):
            top, left = row * (height + gap), column * (width + gap)
            (sheet[top : top + height, left : left + width],) = frames_of(observation, spec)
    inches_wide = max(4.0, 0.9 * len(classes) * width / height)
    figure = Figure(figsize=(inches_wide, 0.9 * IMAGES_PER_CLASS + 0.9), layout="constrained")
    figure.suptitle(_title(observations, "by the teacher's class"), fontsize=10)
    axes: Axes = figure.subplots()
    axes.imshow(sheet[:-gap, :-gap], interpolation="nearest")
    axes.xaxis.tick_top()
    middles = (np.arange(len(classes)) + 0.5) * (width + gap) - gap / 2
    axes.set_xticks(middles, [f"{label}\n{_share(counts, label)}" for label in classes], fontsize=8)
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _stacks(observations: Observations, titles: Sequence[str], heading: str, spec: ObservationSpec) -> Figure:
    shown = len(titles)
    rows = -(-shown // STACK_COLUMNS)
    _, height, width = spec.network_shape
    gap = 1 + width // 16
    figure = Figure(
        figsize=(STACK_COLUMNS * max(3.2, 1.0 * spec.stack + 0.3), 1.25 * rows * height / width + 0.6),
        layout="constrained",
    )
    figure.suptitle(heading, fontsize=10)
    for index, axes in enumerate(figure.subplots(rows, STACK_COLUMNS, squeeze=False).flat):
        axes.set_axis_off()
        if index >= shown:
            continue
        strip = np.ones((height, spec.stack * (width + gap) - gap, 3), np.float32)
        for place, frame in enumerate(frames_of(observations[index], spec)):
            strip[:, place * (width + gap) : place * (width + gap) + width] = frame
        axes.imshow(strip, interpolation="nearest")
        axes.set_title(titles[index], fontsize=8)
    return figure


def frames_of(observation: Observations, spec: ObservationSpec) -> list[npt.NDArray[np.float32]]:
    """Each frame as (height, width, 3), or (height, width, 1) where it is grey; from 0 to 1."""
    low, high = spec.picture_range
    picture = np.moveaxis(observation, 0, -1) if spec.layout == "CHW" else observation
    unit = ((picture.astype(np.float32) - low) / (high - low)).clip(0, 1)
    frames = np.split(unit, spec.stack, axis=-1)
    return [frame if frame.shape[-1] == 3 else frame[..., -1:] for frame in frames]


def _marginals(observations: Observations, choices: Labels, counts: Labels, spec: ObservationSpec) -> Figure:
    shown = min(spec.shape[0], MAX_ELEMENTS)
    columns = min(4, shown)
    rows = -(-shown // columns)
    figure = Figure(figsize=(3.0 * columns + 0.5, 2.1 * rows + 1.0), layout="constrained")
    which = "by element" if shown == spec.shape[0] else f"the first {shown} of {spec.shape[0]} elements"
    figure.suptitle(_title(observations, f"{which}, coloured by the teacher's action"), fontsize=10)
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for element, axes in enumerate(grid):
        if element >= shown:
            axes.set_axis_off()
            continue
        _marginal(axes, observations[:, element], choices, counts, _stated_bounds(spec, element))
        axes.set_title(f"element {element}", fontsize=8)
    handles, labels = grid[0].get_legend_handles_labels()
    # Matplotlib lists filled steps from the top of the stack down.
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=min(6, len(labels)), fontsize=8)
    return figure


def _marginal(
    axes: Axes,
    values: Observations,
    choices: Labels,
    counts: Labels,
    bounds: tuple[float | None, float | None],
) -> None:
    by_action = [values[choices == action] for action in range(len(counts))]
    names = [f"action {action}: {_share(counts, action)}" for action in range(len(counts))]
    axes.hist(by_action, bins=50, histtype="stepfilled", stacked=True, label=names)
    for bound in bounds:
        if bound is not None:
            axes.axvline(bound, color="black", linestyle="--", linewidth=1)
    sides = [side for side, bound in zip(("below", "above"), bounds, strict=True) if bound is None]
    if sides:
        axes.set_xlabel(f"unbounded {' and '.join(sides)}", fontsize=7)
    axes.set_yticks([])
    axes.tick_params(labelsize=7)


def _stated_bounds(spec: ObservationSpec, element: int) -> tuple[float | None, float | None]:
    low = spec.low[element if len(spec.low) > 1 else 0]
    high = spec.high[element if len(spec.high) > 1 else 0]
    return low, high


def _share(counts: Labels, label: int) -> str:
    return f"{100 * counts[label] / max(1, counts.sum()):.0f} %"


def _title(observations: Observations, what: str) -> str:
    return f"{len(observations):,} invented observations, {what}"
