"""Makes the tables of the READMEs and docs/methods.md from recorded results: python -m benchmarks.tables [--check].

Each table stands between two marks, `<!-- table:SUITE -->` (`SUITE:short` for the methods that most tasks have) and
`<!-- end -->`; everything outside them is left alone.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks import choices, scaling
from benchmarks.cells import CONTROLS, LABELS, ROOT, Cell, current_results, load_suite, read_results
from benchmarks.game_tables import game_rows, short_rows
from benchmarks.markdown import MISSING, heading, row
from benchmarks.methods import architecture_rows, method_pages, prior_rows
from benchmarks.sweep_tables import SUITE, diversity_rows, sweep_rows

FILES = (ROOT.parent / "README.md", ROOT / "README.md", ROOT / "scaling.md", ROOT.parent / "docs" / "methods.md")
MARKED = re.compile(r"(<!-- table:([\w:-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
#: How a line of `speed` names its figures -> how tables do.
SPEED_UNITS = {
    "seconds": "s",
    "observations_per_second": "observations/s",
    "environment_steps_per_second": "environment steps/s",
    "stacks_per_second": "stacks/s",
}


def main() -> int:
    """Write the tables, or with --check only say whether they are up to date."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a table is out of date")
    check = parser.parse_args().check
    stale = [path for path in FILES if path.exists() and update(path, check)]
    for path in stale:
        print(f"{os.path.relpath(path)}: {'out of date; run python -m benchmarks.tables' if check else 'written'}")
    return 1 if check and stale else 0


def update(path: Path, check: bool) -> bool:
    """Bring a file's tables up to date; returns whether they were not."""
    before = path.read_text()
    after = MARKED.sub(lambda found: found[1] + table(found[2]) + found[3], before)
    if after != before and not check:
        path.write_text(after)
    return after != before


def table(name: str) -> str:
    """A table as Markdown: one of its own, or a suite's results with command, hardware and dates beneath."""
    if name in REGISTERED:
        return "\n" + "\n".join(REGISTERED[name]()) + "\n\n"
    rows = OWN[name]() if name in OWN else suite_rows(*name.split(":"))
    return "\n".join(rows) + "\n"


def suite_rows(suite: str, short: str = "") -> list[str]:
    """A suite's results; `short` for the methods that most of its tasks have."""
    cells, results = load_suite(suite), current_results(suite)
    if short:
        cells = widely_tried(cells)
        results = {cell.name: results[cell.name] for cell in cells if cell.name in results}
    rows = ROWS[suite if suite in ROWS else cells[0].kind](cells, results)
    command = f"python -m benchmarks.run {suite}" + " --size gpu" * (cells[0].size == "gpu")
    return [*rows, "", provenance(command, list(results.values()))]


def games() -> list[str]:
    """Atari's games, a column each."""
    cells, results = load_suite("atari"), current_results("atari")
    made_by = provenance("python -m benchmarks.run atari", list(results.values()))
    return [*short_rows(cells, results), "", made_by]


def sweeps() -> list[str]:
    """What sweeps found, and what diversity was worth in them."""
    made_by = provenance("python -m benchmarks.sweeps", read_results(SUITE))
    return [*sweep_rows(), "", made_by, "", *diversity_rows()]


def scaled_to_many(name: str) -> list[str]:
    """One of the tables of benchmarks/scaling.md."""
    return [*scaling.TABLES[name](), "", provenance("python -m benchmarks.scaling", list(scaling.newest().values()))]


def chosen() -> list[str]:
    """What a choice of pictures leaves out."""
    return [*choices.choice_rows(), "", provenance("python -m benchmarks.choices", choices.newest())]


def score_rows(cells: list[Cell], results: dict[str, dict[str, Any]]) -> list[str]:
    """One column a task, one row a method or control; mean ± standard deviation over seeds."""
    tasks, methods = list(dict.fromkeys(c.task for c in cells)), list(dict.fromkeys(c.method for c in cells))
    recorded = {task: [results[c.name] for c in cells if c.task == task and c.name in results] for task in tasks}
    declared = {(c.task, c.method) for c in cells}

    def common_row(name: str, word: Callable[[list[dict[str, Any]]], str]) -> str:
        return row(name, "", *(word(recorded[task]) for task in tasks))

    def method_row(method: str) -> str:
        levels = {line["knowledge"] for lines in recorded.values() for line in lines if line["method"] == method}
        name = CONTROLS.get(method, f"`{method}`")
        scores = [
            spread([x for x in recorded[t] if x["method"] == method]) if (t, method) in declared else "" for t in tasks
        ]
        return row(name, ", ".join(sorted(levels)), *scores)

    return [
        *heading("", "knowledge", *tasks),
        common_row("teacher", lambda lines: number(lines, lambda line: line["teacher_score"])),
        common_row("untrained", lambda lines: number(lines, lambda line: line["controls"]["untrained"])),
        *(method_row(method) for method in methods),
        common_row("parameters", size),
        common_row("seconds (with start and end)", seconds),
    ]


def widely_tried(cells: list[Cell]) -> list[Cell]:
    """Those of methods that at least three tasks have: what takes a part out is tried on fewer."""
    tasks = Counter(method for _, method in {(cell.task, cell.method) for cell in cells})
    return [cell for cell in cells if tasks[cell.method] >= 3]


def merged_tasks(lines: list[dict[str, Any]]) -> list[str]:
    """Tasks whose classes hide modes."""
    return list(dict.fromkeys(line["task"] for line in lines if line.get("mode_shares")))


def mode_rows(lines: list[dict[str, Any]]) -> list[str]:
    """One row a task and method: accuracy on the worst hidden mode, and how the pool is spread over all of them."""
    head = (
        "task", "method", "knowledge", "accuracy on the worst hidden mode", "mode recall", "smallest share",
        "largest share",
    )  # fmt: skip
    rows = heading(*head)
    for task in merged_tasks(lines):
        found = [line for line in lines if line["task"] == task]
        for method in dict.fromkeys(line["method"] for line in found):
            own = [line for line in found if line["method"] == method]
            worst = [100 * line["worst_class_score"] for line in own]
            deviation = f" ± {stdev(worst):.1f}" if len(worst) > 1 else ""
            name, shares = CONTROLS.get(method, f"`{method}`"), mean_shares(own)
            spread_over = [""] * 3
            if shares:
                recall = mean(line["mode_recall"] for line in own)
                spread_over = [f"{100 * recall:.0f} %", *(f"{100 * f(shares.values()):.1f} %" for f in (min, max))]
            told = f"{mean(worst):.1f}{deviation} ({len(worst)})"
            rows.append(row(task, name, own[0]["knowledge"], told, *spread_over))
    return rows


def mean_shares(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Hidden mode -> its share of the pool, the mean over seeds; empty for a control, which has no pool."""
    shares = [line["mode_shares"] for line in lines if "mode_shares" in line]
    return {mode: mean(each[mode] for each in shares) for mode in shares[0]} if shares else {}


def scaled(line: dict[str, Any], value: float) -> float:
    """Accuracies in percent, returns as they are."""
    return 100 * value if line["metric"] == "accuracy" else value


def number(lines: list[dict[str, Any]], pick: Any) -> str:
    """Mean over all lines of a figure that does not depend on the method."""
    return f"{mean(scaled(line, pick(line)) for line in lines):.4g}" if lines else MISSING


def spread(lines: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, with agreement on the teacher's real observations."""
    if not lines:
        return MISSING
    scores = [scaled(line, line["student_score"]) for line in lines]
    digits = 2 if lines[0]["metric"] == "accuracy" else 1
    deviation = f" ± {stdev(scores):.{digits}f}" if len(scores) > 1 else ""
    agreement = 100 * mean(line["agreement"] for line in lines)
    return f"{mean(scores):.{digits}f}{deviation} ({agreement:.0f} %, {len(scores)})"


def size(lines: list[dict[str, Any]]) -> str:
    """Parameters of student and teacher."""
    if not lines:
        return MISSING
    student, teacher = lines[0]["student_parameters"], lines[0]["teacher_parameters"]
    return f"{student:,} of {teacher:,} ({100 * student / teacher:.1f} %)"


def seconds(lines: list[dict[str, Any]]) -> str:
    """Wall time of a distillation, the longest recorded; training on labels is none and takes its own time.

    In brackets what it takes with start and end, where that is recorded.
    """
    timed = [line for line in lines if line["method"] != LABELS]
    wholes = [line["whole_seconds"] for line in timed if "whole_seconds" in line]
    whole = f" ({max(wholes):.0f})" if wholes else ""
    return f"{max(line['wall_seconds'] for line in timed):.0f}{whole}" if timed else MISSING


def speed_rows(cells: list[Cell], results: dict[str, dict[str, Any]]) -> list[str]:
    """One row a ratio."""
    rows = heading("what", "sides", "ratio")
    for cell in cells:
        line = results.get(cell.name)
        if line is None:
            rows.append(row(cell.task, MISSING, MISSING))
        else:
            unit, word = next((key, word) for key, word in SPEED_UNITS.items() if key in line)
            first, second = line[unit]
            rows.append(row(cell.task, f"{first:,.0f} to {second:,.0f} {word}", f"{line['ratio']:.2f}"))
    return rows


def chaos_rows(cells: list[Cell], results: dict[str, dict[str, Any]]) -> list[str]:
    """One row a task and fault; without one, mean and spread over seeds."""
    head = ("task", "fault", "recovered", "replaced actors", "lost s", "lost observations", "s to recover", "score")
    rows = heading(*head)
    for task, method in dict.fromkeys((cell.task, cell.method) for cell in cells):
        lines = [results[c.name] for c in cells if (c.task, c.method) == (task, method) and c.name in results]
        told = [MISSING, *[""] * 4, MISSING]
        if lines:
            last = lines[-1]
            recovery = last["recovery_seconds"]
            told = [
                "yes" if all(line["recovered"] for line in lines) else f"no (exit {last['exit_codes']})",
                str(last["restarts"]),
                f"{last['lost_seconds']:.1f}",
                f"{last['lost_observations']:,}",
                "never" if recovery is None else f"{recovery:.1f}",
                spread(lines),
            ]
        rows.append(row(task, method, *told))
    return rows


#: What is listed without a measurement, or in many paragraphs.
REGISTERED: dict[str, Callable[[], list[str]]] = {
    "methods": lambda: [method_pages(spread)],
    "priors": prior_rows,
    "architectures": architecture_rows,
}

#: What is no suite's table.
OWN: dict[str, Callable[[], list[str]]] = {
    "games": games,
    "sweeps": sweeps,
    "modes": lambda: mode_rows(list(current_results("images").values())),
    choices.SUITE: chosen,
    **{name: partial(scaled_to_many, name) for name in scaling.TABLES},
}

#: Kind of a suite, or one of its own -> its table.
ROWS: dict[str, Callable[[list[Cell], dict[str, dict[str, Any]]], list[str]]] = {
    "distill": score_rows,
    "speed": speed_rows,
    "chaos": chaos_rows,
    "atari": game_rows,
    "atari-gpu": game_rows,
}


def provenance(command: str, lines: list[dict[str, Any]]) -> str:
    """The command, and what it ran on."""
    if not lines:
        return f"`{command}`: {MISSING}."
    dates = sorted({line["date"] for line in lines})
    days = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    machines = "; ".join(sorted({line["hardware"] for line in lines}))
    return f"`{command}`, {len(lines)} cells, {days}, {machines}."


if __name__ == "__main__":
    sys.exit(main())
