"""Draws score against seconds for every task whose cells kept snapshots: python -m benchmarks.figures.

One picture a task under benchmarks/figures/: a line a method, the mean over its seeds, and the teacher's score; of
policies, KL on the teacher's real states against synthetic observations. And one a recorded sweep: score against what
makes generators diverse.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from math import nan
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
from cycler import cycler
from matplotlib.ticker import NullFormatter

from benchmarks.cells import CONTROLS, ROOT, current_results, remark, suite_names
from benchmarks.sweep_tables import DIVERSITY, FRESH_SEEDS, TRIALS, diverse
from benchmarks.tables import mean_shares, merged_tasks, scaled

#: Of twenty methods; those beyond have broken lines.
COLOURS = plt.colormaps["tab20"].colors
#: Seconds of the cells whose curves share a figure; longer ones have another.
MINUTE = 60.0


def main() -> int:
    """Draw every figure for which there are curves."""
    for suite in suite_names():
        lines = list(current_results(suite).values())
        for task in dict.fromkeys(line["task"] for line in lines if line.get("curve")):
            print(draw(suite, task, [line for line in lines if line["task"] == task]))
        grown = [line for line in lines if line.get("growth")]
        for task in dict.fromkeys(line["task"] for line in grown):
            own = [line for line in grown if line["task"] == task]
            for name, some in (
                ("minute", [line for line in own if line["budget_seconds"] <= MINUTE]),
                ("growth", [line for line in own if line["budget_seconds"] > MINUTE]),
            ):
                if some:
                    print(draw_growth(suite, task, some, name))
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
    """Write the figure of a task with hidden modes, method by method: the student's accuracy on its worst one, and the
    share of the pool in each, in percent.
    """
    groups = by_method(lines)
    worst = [mean(100 * line["worst_class_score"] for line in group) for group in groups]
    shares = pd.DataFrame([mean_shares(group) for group in groups]) * 100
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 1.1 + 0.27 * len(groups)), layout="constrained", sharey=True
    )
    left.barh(range(len(groups)), worst)
    left.set(xlabel="accuracy on the worst hidden mode, %", xlim=(0, 100))
    left.set_yticks(range(len(groups)), [named(group[0]) for group in groups])
    left.grid(alpha=0.3, axis="x")
    # Beyond a third of the pool all is as dark, so that shares around an even one can be told apart.
    right.imshow(shares, aspect="auto", cmap="Blues", vmin=0, vmax=33)
    for row, column in zip(*shares.notna().to_numpy().nonzero(), strict=True):
        share = shares.iloc[row, column]
        right.text(column, row, f"{share:.0f}", ha="center", va="center", color="white" if share > 20 else "black")
    right.set_xticks(range(len(shares.columns)), shares.columns)
    right.set(xlabel=f"share of the pool in each hidden mode, % (even: {100 / len(shares.columns):.0f})")
    figure.suptitle(title(task))
    return save(figure, f"modes-{task}")


def draw(suite: str, task: str, lines: Sequence[dict[str, Any]]) -> str:
    """Write the figure of one task, in which what has no curve is a level; returns its path."""
    figure, axes = curves()
    for group in by_method([line for line in lines if line.get("curve")]):
        seconds, scores = mean_curve(group)
        axes.plot(seconds, scores, marker=".", label=named(group[0]))
    for (control, name), dashes in zip(CONTROLS.items(), ("--", "-."), strict=True):
        levels = [scaled(line, line["student_score"]) for line in lines if line["method"] == control]
        if levels:
            axes.axhline(mean(levels), color="grey", linestyle=dashes, label=name)
    axes.axhline(scaled(lines[0], lines[0]["teacher_score"]), color="black", linestyle=":", label="teacher")
    axes.set(xlabel="seconds of distillation", ylabel=label(lines[0]), title=title(task))
    axes.grid(alpha=0.3)
    figure.legend(fontsize="small", ncols=3, loc="outside lower center")
    return save(figure, f"{suite}-{task}")


def draw_growth(suite: str, task: str, lines: Sequence[dict[str, Any]], name: str) -> str:
    """Write how one task's students came nearer to their teacher with what was invented, the first seed of each.

    A curve's last point is the last checkpoint. The legend begins with the one that ends nearest. Returns the figure's
    path.
    """
    scored = any(line.get("growth_scores") for line in lines)
    figure, panels = plt.subplots(1, 2 + scored, figsize=(11 + 4 * scored, 5.2), layout="constrained")
    left, right, *third = panels
    for axes in panels:
        axes.set_prop_cycle(cycler(linestyle=["-", "--"]) * cycler(color=COLOURS))
        axes.set(xlabel="synthetic observations", xscale="log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3, which="both")
    for first in sorted((first for first, *_ in by_method(lines)), key=lambda line: line["kl"]):
        ended = first["synthetic_observations"]
        last = [first["wall_seconds"], ended, first["agreement"], first["kl"]]
        _, observations, agreement, kl = zip(*first["growth"], last, strict=True)
        left.plot(observations, kl, marker=".", label=named(first))
        right.plot(observations, [100 * share for share in agreement], marker=".")
        for axes in third:
            scores = first.get("growth_scores", [(nan, nan)])
            score = first["sticky"]["student"] if "sticky" in first else first["student_score"]
            axes.plot(*zip(*scores, (ended, score), strict=True), marker=".")
            axes.set(ylabel="return, with sticky actions in a game")
    for axes in third:
        first = lines[0]
        teacher = first["sticky"]["teacher"] if "sticky" in first else first["teacher_score"]
        axes.axhline(teacher, color="black", linestyle=":", label="teacher")
    left.set(ylabel="KL on the teacher's real states, nats", yscale="log")
    right.set(ylabel="agreement there, %")
    figure.suptitle(title(task))
    figure.legend(fontsize="small", ncols=4, loc="outside lower center")
    return save(figure, f"{suite}-{task}-{name}")


def title(task: str) -> str:
    """A task's name, and beneath it what has to stand beside its figures."""
    return f"{task}\n{remark(task)}".strip()


def curves() -> tuple[Any, Any]:
    """An empty figure and its axes, with colours for twenty methods and room for a legend below."""
    figure, axes = plt.subplots(figsize=(7, 5.2), layout="constrained")
    axes.set_prop_cycle(color=COLOURS)
    return figure, axes


def by_method(lines: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The lines of each method, in the order in which methods are first named."""
    return [[line for line in lines if line["method"] == m] for m in dict.fromkeys(line["method"] for line in lines)]


def named(line: dict[str, Any]) -> str:
    """What a figure calls a line's method: with what it knows."""
    return f"{line['method']} ({line['knowledge']})"


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
