"""Evaluations as a table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from gasim_ray.evaluation.atari import STICKY, is_atari, sticky_of
from gasim_ray.evaluation.compare import LATENCY_BATCH, Evaluation, Row
from gasim_ray.evaluation.intervals import Interval
from gasim_ray.evaluation.tasks import Metric


def evaluation_table(evaluations: Sequence[Evaluation]) -> Table:
    """Rows of one run or of several, each run under its own heading line; fits 80 columns.

    Accuracies are given in percent, latencies in milliseconds; intervals hold 95 %. Of games, whose models are large,
    the latency of a batch is left to the JSON and sizes are in thousands.
    """
    metrics = sorted({e.metric for e in evaluations})
    classifiers = "accuracy" in metrics
    games = any(is_atari(e.task) for e in evaluations)
    title = ", ".join(sorted({e.task for e in evaluations}))
    table = Table(title=title, caption=_caption(evaluations), box=box.SIMPLE, collapse_padding=True, pad_edge=False)
    table.add_column("model", no_wrap=True)
    columns = [f"{' or '.join(metrics)} (95 %)", "agree %", "KL", "size", "ms"]
    for column in [*columns, *(["norm.", "sticky"] if games else [f"ms/{LATENCY_BATCH}"])]:
        table.add_column(column, justify="right", no_wrap=True)
    if classifiers:
        table.add_column("worst %", justify="right", overflow="fold")
    for evaluation in evaluations:
        if len(evaluations) > 1:
            table.add_section()
            table.add_row(f"[bold]{evaluation.run}[/bold]")
        for row in evaluation.rows:
            table.add_row(*_cells(row, evaluation.metric, classifiers, games))
    return table


def _caption(evaluations: Sequence[Evaluation]) -> str:
    counts = " / ".join(f"{e.observations:,}" for e in evaluations)
    caption = f"agreement and KL (nats) on {counts} real observations of the teacher; size in parameters"
    if sticky := sorted({f"{sticky_of(e.task) or STICKY:g}" for e in evaluations if is_atari(e.task)}):
        caption += "\nnorm.: 0 for random actions, 1 for the teacher; sticky: return if actions repeat with "
        caption += " or ".join(sticky)
    for modes in (e.modes for e in evaluations if e.modes is not None):
        shares = ", ".join(f"{name} {100 * share:.0f}" for name, share in modes.shares.items())
        caption += f"\nhidden modes of what was invented, in percent: {shares}; recall {100 * modes.recall:.0f} %"
    return caption


def _cells(row: Row, metric: Metric, classifiers: bool, games: bool) -> list[str]:
    cells = [
        row.name.replace("_observations", " obs.").replace("_actions", " act."),
        _format(row.score.interval, metric),
        f"{100 * row.agreement:.1f}",
        f"{row.kl:.3f}",
        f"{row.parameters / 1000:.0f}k" if games else f"{row.parameters:,}",
        f"{row.latency_one_ms:.2f}",
    ]
    if games:
        cells.append("-" if row.normalised is None else f"{row.normalised:.2f}")
        cells.append("-" if row.score.sticky is None else f"{row.score.sticky.mean:.1f}")
    else:
        cells.append(f"{row.latency_batch_ms:.2f}")
    if classifiers and row.score.worst_class_accuracy is not None:
        cells.append(f"{row.score.worst_class} {100 * row.score.worst_class_accuracy:.1f}")
    return cells


def _format(interval: Interval, metric: Metric) -> str:
    if metric == "accuracy":
        return f"{100 * interval.mean:.2f} ({100 * interval.low:.1f}, {100 * interval.high:.1f})"
    digits = 0 if abs(interval.mean) >= 1000 else 1
    return f"{interval.mean:.{digits}f} ({interval.low:.{digits}f}, {interval.high:.{digits}f})"
