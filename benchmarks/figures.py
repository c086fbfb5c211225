"""Draws score against seconds for every task whose cells kept snapshots: python -m benchmarks.figures.

One picture a task under benchmarks/figures/: a line a method, the mean over its seeds, and the teacher's score; of
policies, KL on the teacher's real states against synthetic observations. And one a recorded sweep: score against what
makes generators diverse.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

from benchmarks.cells import ROOT, current_results, suite_names
from benchmarks.sweep_tables import DIVERSITY, FRESH_SEEDS, TRIALS, diverse
from benchmarks.tables import merged_tasks, scaled


def main() -> int:
    """Draw every figure for which there are curves."""
    for suite in suite_names():
        lines = [line for line in current_results(suite).values() if line.get("curve")]
        for task in dict.fromkeys(line["task"] for line in lines):
            print(draw(suite, task, [line for line in lines if line["task"] == task]))
        grown = [line for line in current_results(suite).values() if line.get("growth")]
        for task in dict.fromkeys(line["task"] for line in grown):
            print(draw_growth(suite, task, [line for line in grown if line["task"] == task]))
    images = list(current_results("images").values())
    for task in merged_tasks(images):
        print(draw_modes(task, [line for line in images if line["task"] == task]))
    for name in FRESH_SEEDS:
        path = TRIALS / f"{name}.csv"
        if path.exists():
            print(draw_diversity(name, diverse(pd.read_csv(path))))
    return 0


def draw_diversity(name: str, trials: pd.DataFrame) -> str:
    """Write the figure of one sweep: each finished trial's true score against what makes its generators diverse."""
    figure, all_axes = plt.subplots(1, len(DIVERSITY), figsize=(10, 3.2), layout="constrained", sharey=True)
    for axes, setting in zip(all_axes, DIVERSITY, strict=True):
        axes.scatter(trials[setting], trials["score"], alpha=0.7)
        axes.set(xlabel=setting)
        axes.set_xscale("symlog")
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("true score")
    figure.suptitle(name)
    return save(figure, f"sweeps-{name}")


def draw_modes(task: str, lines: Sequence[dict[str, Any]]) -> str:
    """Write the figure of a task with hidden modes: the student's accuracy on its worst one, method by method."""
    methods = list(dict.fromkeys(line["method"] for line in lines))
    worst = [mean(100 * line["worst_class_score"] for line in lines if line["method"] == method) for method in methods]
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.27 * len(methods)), layout="constrained")
    axes.barh(methods[::-1], worst[::-1])
    axes.set(xlabel="accuracy on the worst hidden mode, %", xlim=(0, 100), title=task)
    axes.grid(alpha=0.3, axis="x")
    return save(figure, f"modes-{task}")


def draw(suite: str, task: str, lines: Sequence[dict[str, Any]]) -> str:
    """Write the figure of one task; returns its path."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for method in dict.fromkeys(line["method"] for line in lines):
        seconds, scores = mean_curve([line for line in lines if line["method"] == method])
        axes.plot(seconds, scores, marker=".", label=method)
    axes.axhline(scaled(lines[0], lines[0]["teacher_score"]), color="black", linestyle=":", label="teacher")
    axes.set(xlabel="seconds of distillation", ylabel=label(lines[0]), title=task)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=2)
    return save(figure, f"{suite}-{task}")


def draw_growth(suite: str, task: str, lines: Sequence[dict[str, Any]]) -> str:
    """Write how the KL of one task's students fell with what was invented, the first seed of each; returns its path."""
    figure, axes = plt.subplots(figsize=(7, 4.8), layout="constrained")
    for method in dict.fromkeys(line["method"] for line in lines):
        first = next(line for line in lines if line["method"] == method)
        _, observations, _, kl = zip(*first["growth"], strict=True)
        axes.plot(observations, kl, marker=".", label=method)
    axes.set(
        xlabel="synthetic observations",
        ylabel="KL on the teacher's real states, nats",
        title=task,
        xscale="log",
        yscale="log",
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small", ncols=3)
    return save(figure, f"{suite}-{task}-growth")


def save(figure: Any, name: str) -> str:
    """Write a figure and close it; returns its path."""
    path = ROOT / "figures" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return str(path.relative_to(ROOT.parent))


def mean_curve(lines: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Seconds and mean score over seeds at each snapshot that all seeds have, and at the end."""
    ends = [[line["wall_seconds"], line["student_score"]] for line in lines]
    points = [*zip(*(line["curve"] for line in lines), strict=False), ends]
    return [mean(p[0] for p in point) for point in points], [
        scaled(lines[0], mean(p[1] for p in point)) for point in points
    ]


def label(line: dict[str, Any]) -> str:
    """What the score is."""
    return "test accuracy, %" if line["metric"] == "accuracy" else "mean return"


if __name__ == "__main__":
    sys.exit(main())
