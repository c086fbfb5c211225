"""The pages of docs/methods.md: what each method's file says of itself, its settings, what was measured."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from dataclasses import asdict
from statistics import mean
from typing import Any

from benchmarks.cells import Cell, current_results, load_suite, remark
from gasim_ray.config import build_config, dotted, plain
from gasim_ray.core.mixture import PRIORS
from gasim_ray.core.observation import ObservationSpec
from gasim_ray.evaluation.datasets import find_source
from gasim_ray.methods import METHODS, TeacherFacts, preset
from gasim_ray.models import ARCHITECTURES

#: Suites whose results a page shows.
SUITES = ("classic", "images", "cifar-small", "cifar", "atari")

#: The suite whose cells are all variants, so that a method is known by their settings.
VARIED = "atari"

#: Task -> method -> accuracy in percent that was published, at far more time on a GPU: MNIST from the method's paper,
#: CIFAR-10, of the original pixels, as CMI (2021) and Fast-DFKD (2022) compare them.
PUBLISHED = {
    "mnist": {"dafl": "98.20", "dfad": "98.3 ± 0.2"},
    "cifar10": dict(dafl="92.22", dfad="93.3", zskt="93.32", deepinversion="93.26", cmi="94.84", fast="94.05"),
    "cifar10-wrn": dict(dafl="65.71", zskt="83.74", deepinversion="83.04", cmi="90.01", fast="89.3"),
}

#: Teachers for which the settings are shown.
SHOWN = {
    "vectors": TeacherFacts(ObservationSpec((4,), "float32", "vector", (-1.0,), (1.0,)), False, 2),
    "images": TeacherFacts(find_source("mnist").spec(), False, 2),
    "images, teacher without a hidden dense layer": TeacherFacts(find_source("mnist").spec(), False, 1),
    "images, teacher with batch normalisation": TeacherFacts(find_source("mnist").spec(), True, 2),
    "coloured images": TeacherFacts(find_source("cifar10").spec(), False, 1),
    "coloured images, teacher with batch normalisation": TeacherFacts(find_source("cifar10").spec(), True, 1),
    "a game's frames": TeacherFacts(
        ObservationSpec((4, 84, 84), "uint8", "CHW", (0.0,), (255.0,), stack=4, skip=4), False, 2
    ),
}


def architecture_rows() -> list[str]:
    """One row a registered architecture: its name, its settings with their defaults, what its docstring says first."""
    rows = ["| `student.architecture` | settings | what it is |", "| --- | --- | --- |"]
    for name, factory in ARCHITECTURES.items():
        _, _, *given = inspect.signature(factory).parameters.values()
        settings = ", ".join(f"`{setting.name}` {plain(setting.default)}" for setting in given)
        rows.append(f"| `{name}` | {settings} | {first_sentence(factory)} |")
    return rows


def first_sentence(documented: Any) -> str:
    """What a docstring says first, without its full stop."""
    about = " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())
    return re.split(r"(?<!al\.)(?<=\.) |; raises", about)[0].rstrip(".")


def prior_rows() -> list[str]:
    """One row a registered prior: its name, its level of knowledge and what its docstring says first."""
    rows = ["| prior | knowledge | what it is |", "| --- | --- | --- |"]
    for name, prior in PRIORS.items():
        rows.append(f"| `{name}` | {prior.knowledge} | {first_sentence(prior)} |")
    return rows


def method_pages(spread: Callable[[list[dict[str, Any]]], str]) -> str:
    """One section a method, in the order of registration; `spread` words the scores of several seeds."""
    recorded = {suite: list(current_results(suite).values()) for suite in SUITES}
    return "\n\n".join(page(name, recorded, spread) for name in METHODS)


def page(name: str, recorded: dict[str, list[dict[str, Any]]], spread: Callable[[list[dict[str, Any]]], str]) -> str:
    """Source, terms and departures; settings; results."""
    about = inspect.getdoc(importlib.import_module(f"gasim_ray.methods.{name}")) or ""
    usage = f"```sh\ngasim distill --teacher TEACHER --method {name}\n```"
    return "\n\n".join(
        [f"## {name}", about, usage, "Settings, over the defaults:", settings(name), measured(name, recorded, spread)]
    )


def settings(name: str) -> str:
    """One line for each kind of teacher that is treated in its own way."""
    lines: dict[str, str] = {}
    for kind, facts in SHOWN.items():
        tree = preset(name, facts)
        keys = [f"`{section}.{key}` {value}" for section, values in tree.items() for key, value in values.items()]
        lines.setdefault(", ".join(keys), kind)
    return "\n".join(f"- {kind if len(lines) > 1 else 'all'}: {keys}" for keys, kind in lines.items())


def measured(
    name: str, recorded: dict[str, list[dict[str, Any]]], spread: Callable[[list[dict[str, Any]]], str]
) -> str:
    """The method's recorded scores: one line a task, where all are variants one a task and variant."""
    found = []
    for suite, results in recorded.items():
        own = [cell for cell in load_suite(suite) if not cell.control and cell.tree["method"] == name]
        for (task, method), cell in {(c.task, c.method): c for c in own if suite == VARIED or c.method == name}.items():
            lines = [line for line in results if (line["task"], line["method"]) == (task, method)]
            if lines:
                found.append(f"- {entry(cell, lines, spread(lines))}")
            elif published := PUBLISHED.get(task, {}).get(name):
                found.append(f"- {task} not measured; published: {published}")
    return "Measured:\n\n" + "\n".join(found) if found else "Measured: nothing yet."


def entry(cell: Cell, lines: list[dict[str, Any]], scores: str) -> str:
    """One of the method's scores, and what has to stand beside it."""
    method, task = cell.tree["method"], cell.task
    words = [f"{task}{'' if cell.method == method else f' as `{cell.method}`'} {scores} [{lines[0]['knowledge']}]"]
    words += [f"with {', '.join(changed)}"] if (changed := own_settings(cell)) else []
    words += [remark(task)] if remark(task) else []
    # Not beside a remark: what is measured on other pictures is no difference.
    if (published := PUBLISHED.get(task, {}).get(method)) and not remark(task):
        difference = 100 * mean(line["student_score"] for line in lines) - float(published.split()[0])
        words.append(f"published: {published}, difference {difference:+.1f}")
    return "; ".join(words)


def own_settings(cell: Cell) -> list[str]:
    """Settings of a cell that are not those of its method, besides the student's architecture and the budget."""
    usual = dotted(plain(asdict(build_config({"teacher": str(cell.teacher), "method": cell.tree["method"]}))))
    return [
        f"`{key}` {value}"
        for key, value in dotted(cell.tree).items()
        if ("." in key or key == "actor_settings")
        and not key.startswith("budget.")
        and key != "student.architecture"
        and usual[key] != value
    ]
