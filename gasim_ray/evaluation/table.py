"""Evaluations as a table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from gasim_ray.evaluation.compare import LATENCY_BATCH, Evaluation, Row
from gasim_ray.evaluation.intervals import Interval
from gasim_ray.evaluation.tasks import Metric


def evaluation_table(evaluations: Sequence[Evaluation]) -> Table:
    """Rows of one run or of several, each run under its own heading line.

    Accuracies are given in percent and latencies in milliseconds; intervals hold 95 %.
    """
    metrics = sorted({e.metric for e in evaluations})
    classifiers = "accuracy" in metrics
    table = Table(title=", ".join(sorted({e.task for e in evaluations})), caption=_caption(evaluations))
    table.add_column("run" if len(evaluations) > 1 else "model")
    columns = [
        " or ".join(metrics),
        "95 % interval",
        "agreement %",
        "KL nats",
        "parameters",
        "ms",
        f"ms/{LATENCY_BATCH}",
    ]
    for column in columns + ["worst class"] * classifiers:
        table.add_column(column, justify="right")
    for evaluation in evaluations:
        if len(evaluations) > 1:
            table.add_section()
            table.add_row(f"[bold]{evaluation.run}[/bold]")
        for row in evaluation.rows:
            table.add_row(*_cells(row, evaluation.metric, classifiers))
    return table


def _caption(evaluations: Sequence[Evaluation]) -> str:
    counts = " / ".join(f"{e.observations:,}" for e in evaluations)
    return f"agreement and KL(teacher || model) on {counts} real observations of the teacher"


def _cells(row: Row, metric: Metric, classifiers: bool) -> list[str]:
    mean, interval = _format(row.score.interval, metric)
    cells = [
        row.name.replace("_", " "),
        mean,
        interval,
        f"{100 * row.agreement:.1f}",
        f"{row.kl:.3f}",
        f"{row.parameters:,}",
        f"{row.latency_one_ms:.3f}",
        f"{row.latency_batch_ms:.2f}",
    ]
    if classifiers and row.score.worst_class_accuracy is not None:
        cells.append(f"{row.score.worst_class}: {100 * row.score.worst_class_accuracy:.1f}")
    return cells


def _format(interval: Interval, metric: Metric) -> tuple[str, str]:
    unit, digits = (100, 2) if metric == "accuracy" else (1, 1)
    mean, low, high = (f"{unit * value:.{digits}f}" for value in (interval.mean, interval.low, interval.high))
    return mean, f"{low} to {high}"
