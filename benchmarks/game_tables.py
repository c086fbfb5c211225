"""The table of Atari's games: one row a task and student, with how far it is from random to its teacher."""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

from benchmarks.cells import CONTROLS, Cell

HEAD = (
    "task", "student", "parameters", "knowledge", "return", "normalised", "sticky return", "normalised", "KL",
    "agreement", "observations",
)  # fmt: skip
MISSING = "not measured"


def game_rows(cells: list[Cell], results: dict[str, dict[str, Any]]) -> list[str]:
    """Mean and standard deviation over seeds; a task of which nothing is recorded is one row."""
    rows = ["| " + " | ".join(HEAD) + " |", "|" + " --- |" * len(HEAD)]
    for task in dict.fromkeys(cell.task for cell in cells):
        own = [cell for cell in cells if cell.task == task]
        lines = [results[cell.name] for cell in own if cell.name in results]
        if not lines:
            rows.append(row(task, f"all {len({cell.method for cell in own})}", *[""] * 2, MISSING))
            continue
        first, sticky = lines[0], lines[0]["sticky"]
        played = f"{first['teacher_score']:.1f}", "1", f"{sticky['teacher']:.1f}", "1"
        rows.append(row(task, "teacher", f"{first['teacher_parameters']:,}", "", *played))
        rows.append(
            row(
                task,
                "random actions",
                "",
                "",
                f"{first['controls']['random']:.1f}",
                "0",
                f"{sticky['random']:.1f}",
                "0",
            )
        )
        for method in dict.fromkeys(cell.method for cell in own):
            rows.append(student_row(task, method, [line for line in lines if line["method"] == method]))
    return rows


def row(*words: str) -> str:
    """Cells of one row; what is left out is empty."""
    return "| " + " | ".join([*words, *[""] * (len(HEAD) - len(words))]) + " |"


def student_row(task: str, method: str, lines: list[dict[str, Any]]) -> str:
    """A student's row over its seeds."""
    control, _, size = method.partition("-")
    name = f"{CONTROLS[control]} {size}".strip() if control in CONTROLS else f"`{method}`"
    if not lines:
        return row(task, name, "", "", MISSING)
    share = 100 * lines[0]["student_parameters"] / lines[0]["teacher_parameters"]
    made = mean(line["environment_steps"] or line["synthetic_observations"] for line in lines)
    return row(
        task,
        name,
        f"{share:.1f} %",
        lines[0]["knowledge"],
        *returns([(x["student_score"], x["controls"]["random"], x["teacher_score"]) for x in lines]),
        *returns([(x["sticky"]["student"], x["sticky"]["random"], x["sticky"]["teacher"]) for x in lines]),
        f"{mean(line['kl'] for line in lines):.3g}",
        f"{100 * mean(line['agreement'] for line in lines):.1f} %",
        f"{made:,.0f}",
    )


def returns(played: list[tuple[float, float, float]]) -> tuple[str, str]:
    """Mean returns, and how far they are from random actions, 0, to the teacher, 1 (as Mnih et al. 2015 by humans).

    played: of each seed the returns of student, random actions and teacher.
    """
    shares = [(student - random) / (teacher - random) for student, random, teacher in played]
    return spread([student for student, _, _ in played], 1), spread(shares, 2)


def spread(values: list[float], digits: int) -> str:
    """Mean, standard deviation and number of seeds."""
    deviation = f" ± {stdev(values):.{digits}f} ({len(values)})" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}"
