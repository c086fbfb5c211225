"""How near real pictures lie to those that generators start from, without a student: python -m benchmarks.choices.

What a choice among candidates leaves out shows in the teacher's features: training images of a kind that it passes over
lie far from the nearest picture that it takes. Takes about a minute; nothing here steers a distillation.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from benchmarks.cells import Cell, append_result, load_suite, read_results
from benchmarks.markdown import MISSING, heading, row
from benchmarks.provenance import provenance
from gasim_ray.actors.workers import make_prior
from gasim_ray.config import DistillConfig
from gasim_ray.core.model import Model
from gasim_ray.core.prune import layers_of, with_layer_inputs
from gasim_ray.core.seeds import rng
from gasim_ray.errors import exit_code
from gasim_ray.evaluation.datasets import load_dataset
from gasim_ray.teachers import load_teacher

SUITE = "choices"
#: Cells of the suite `images` whose settings are compared, the first with the others.
CHOICES = ("gasim-8-candidates", "gasim-aligned", "gasim")
TASKS = ("mnist-pairs", "mnist-parity", "fashion-merged")
#: Orders, and pictures in each, that a choice makes.
ORDERS, PICTURES = 6, 256
#: Training images that are looked for among them.
REAL = 3000


def main() -> int:
    """Record a line for each task; returns the exit code."""
    return exit_code("choices", record_choices)


def record_choices() -> None:
    """See `main`."""
    for task in TASKS:
        cells = cells_of(task)
        distances = {method: mode_distances(cells[method].config) for method in CHOICES}
        line = {"suite": SUITE, "task": task, "distances": distances, "definitions": definitions(cells)}
        append_result(SUITE, {**line, **provenance()})


def cells_of(task: str) -> dict[str, Cell]:
    """The task's first cell of each choice."""
    cells = [cell for cell in load_suite("images") if cell.task == task and cell.seed == 0]
    return {cell.method: cell for cell in cells if cell.method in CHOICES}


def definitions(cells: Mapping[str, Cell]) -> dict[str, str]:
    """What a line is of: choice -> its cell's definition."""
    return {method: cells[method].definition for method in CHOICES}


def mode_distances(config: DistillConfig) -> dict[str, float]:
    """Former class -> mean distance of its training images to the nearest picture that generators start from."""
    teacher = load_teacher(config.teacher)
    prior = make_prior(teacher, config, "cpu")
    assert prior is not None
    invented = torch.cat([features(teacher, prior.sample(PICTURES, rng("cpu", order))) for order in range(ORDERS)])
    dataset = load_dataset(teacher.config.source["dataset"])
    images, labels = torch.from_numpy(dataset.train_images[:REAL]), torch.from_numpy(dataset.train_labels[:REAL])
    nearest = torch.cdist(features(teacher, images), invented).min(1).values
    return {name: float(nearest[labels == index].mean()) for index, name in enumerate(dataset.class_names)}


@torch.no_grad()
def features(teacher: Model, observations: Tensor) -> Tensor:
    """What the teacher's last layer reads of observations (N, *spec.shape): (N, features)."""
    return with_layer_inputs(teacher, observations)[1][layers_of(teacher)[-1]].flatten(1)


def choice_rows() -> list[str]:
    """One row a task: distances as multiples of those with the first choice, the mean over modes and the greatest."""
    rows = heading("task", *(f"`{name}`" for name in CHOICES[1:]))
    for task in TASKS:
        told = [MISSING] * (len(CHOICES) - 1)
        for line in newest(task):
            usual, *others = (line["distances"][method] for method in CHOICES)
            shares = [{mode: found[mode] / usual[mode] for mode in usual} for found in others]
            told = [f"{mean(s.values()):.2f} ({max(s.values()):.2f}: {max(s, key=s.__getitem__)})" for s in shares]
        rows.append(row(task, *told))
    return rows


def newest(*tasks: str) -> list[dict[str, Any]]:
    """The newest line of each task that was recorded with today's settings."""
    lines, found = read_results(SUITE), []
    for task in tasks or TASKS:
        wanted = definitions(cells_of(task))
        found += [line for line in lines if (line["task"], line.get("definitions")) == (task, wanted)][-1:]
    return found


if __name__ == "__main__":
    sys.exit(main())
