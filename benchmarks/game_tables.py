"""The table of Atari's games: one row a task and student, with how far it is from random to its teacher."""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

from benchmarks.cells import CONTROLS, Cell
from benchmarks.markdown import MISSING, heading, row

HEAD = (
    "task", "student", "parameters", "knowledge", "return", "normalised", "sticky return", "normalised", "KL",
    "agreement", "observations",
)  # fmt: skip
#: Students of the short table.
SHORT = (
    "scenes-12", "weights-12", "scenes-7", "weights-7", "noise-7", "real-7",
    "telling-scratch", "scenes-scratch", "noise-scratch",
)  # fmt: skip


def game_rows(cells: list[Cell], results: dict[str, dict[str, Any]]) -> list[str]:
    """Mean and standard deviation over seeds; of each task, what is not recorded shares a last row."""
    rows = heading(*HEAD)
    for task in dict.fromkeys(cell.task for cell in cells):
        own = [cell for cell in cells if cell.task == task]
        lines = [results[cell.name] for cell in own if cell.name in results]
        if lines:
            rows += reference_rows(task, lines[0])
        blind = [line["constant_kl"] for line in lines if "constant_kl" in line]
        if blind:
            rows.append(filled(task, "teacher's mean policy, whatever is seen", *[""] * 6, f"{blind[-1]:.3g}"))
        missing = []
        for method in dict.fromkeys(cell.method for cell in own):
            recorded = [line for line in lines if line["method"] == method]
            if recorded:
                rows.append(student_row(task, recorded))
            else:
                missing.append(student_name(method))
        rows += [filled(task, ", ".join(missing), "", "", MISSING)] if missing else []
    return rows


def short_rows(cells: list[Cell], results: dict[str, dict[str, Any]]) -> list[str]:
    """One column a task: normalised sticky returns of SHORT, mean and standard deviation over seeds."""
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    declared = {(cell.task, cell.method) for cell in cells}
    lines = {task: [results[c.name] for c in cells if c.task == task and c.name in results] for task in tasks}

    def word(task: str, method: str) -> str:
        own = [line for line in lines[task] if line["method"] == method]
        played = [(x["sticky"]["student"], x["sticky"]["random"], x["sticky"]["teacher"]) for x in own]
        return returns(played)[1] if played else MISSING if (task, method) in declared else ""

    def reference(name: str) -> list[str]:
        return [f"{own[0]['sticky'][name]:.1f}" if own else MISSING for own in lines.values()]

    made = [
        ["teacher, return", "", *reference("teacher")],
        ["random actions, return", "", *reference("random")],
        *([student_name(m), shares_of(m, lines), *(word(task, m) for task in tasks)] for m in SHORT),
    ]
    return [*heading("", "parameters", *tasks), *(row(*words) for words in made)]


def shares_of(method: str, lines: dict[str, list[dict[str, Any]]]) -> str:
    """How large a method's students are, rounded, over all tasks."""
    found = [line for own in lines.values() for line in own if line["method"] == method]
    whole = sorted({round(100 * line["student_parameters"] / line["teacher_parameters"]) for line in found})
    return " to ".join(str(n) for n in dict.fromkeys((whole[0], whole[-1]))) + " %" if whole else ""


def reference_rows(task: str, line: dict[str, Any]) -> list[str]:
    """Between what the students of a task stand: teacher, random actions, and one of them with fresh weights."""
    ends = {
        "teacher": (line["teacher_score"], line["sticky"]["teacher"]),
        "random actions": (line["controls"]["random"], line["sticky"]["random"]),
        "untrained": (line["controls"]["untrained"], line["sticky"]["untrained"]),
    }
    sizes = {"teacher": f"{line['teacher_parameters']:,}", "untrained": share(line)}
    found = []
    for name, scores in ends.items():
        played = zip(scores, ends["random actions"], ends["teacher"], strict=True)
        words = [word for score, low, high in played for word in returns([(score, low, high)])]
        found.append(filled(task, name, sizes.get(name, ""), "", *words))
    return found


def filled(*words: str) -> str:
    """One row of the long table; what is left out is empty."""
    return row(*words, *[""] * (len(HEAD) - len(words)))


def student_name(method: str) -> str:
    """What the table calls a method, or a control and its size."""
    control, _, size = method.partition("-")
    return f"{CONTROLS[control]} {size}".strip() if control in CONTROLS else f"`{method}`"


def student_row(task: str, lines: list[dict[str, Any]]) -> str:
    """A student's row over its seeds."""
    made = mean(line["environment_steps"] or line["synthetic_observations"] for line in lines)
    return filled(
        task,
        student_name(lines[0]["method"]),
        share(lines[0]),
        lines[0]["knowledge"],
        *returns([(x["student_score"], x["controls"]["random"], x["teacher_score"]) for x in lines]),
        *returns([(x["sticky"]["student"], x["sticky"]["random"], x["sticky"]["teacher"]) for x in lines]),
        f"{mean(line['kl'] for line in lines):.3g}",
        f"{100 * mean(line['agreement'] for line in lines):.1f} %",
        f"{made:,.0f}",
    )


def share(line: dict[str, Any]) -> str:
    """How large the student is."""
    return f"{100 * line['student_parameters'] / line['teacher_parameters']:.1f} %"


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
