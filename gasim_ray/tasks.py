"""Classifiers by name: which data set, teacher and student. What `--task` stands for; one line a task.

Nothing here reads a data set: a task's teacher lies in a folder, shipped or made by `gasim teacher train --task NAME`.
"""

from __future__ import annotations

from argparse import ArgumentError, ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from gasim_ray.errors import UserError, nearest
from gasim_ray.evaluation.datasets import find_source, parse_groups

_REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class NamedTask:
    """A teacher to be distilled, and the student that it is usually distilled into."""

    #: What the teacher is trained on, see evaluation.datasets.
    dataset: str
    #: The teacher's architecture.
    teacher: Mapping[str, Any]
    #: The student's.
    student: Mapping[str, Any]
    #: Classes that are merged, such as 0,1/2,3; empty for none.
    groups: str = ""
    #: How the teacher is trained, where it is not by default.
    training: Mapping[str, Any] = field(default_factory=dict)


def _wide(depth: int, width: int) -> dict[str, Any]:
    return {"name": "wide_resnet", "depth": depth, "width": width}


_LENET, _LENET_HALF = {"name": "lenet5"}, {"name": "lenet5", "width": 0.5}
_RESNET_34, _RESNET_18 = {"name": "resnet", "depth": 34}, {"name": "resnet", "depth": 18}
_PLAIN = {"normalised": False}
_CIFAR = {"epochs": 40, "flip": True, "weight_decay": 0.05}

#: Name -> task. Fashion's four groups: upper body (T-shirt, pullover, coat, shirt), legs (trouser, dress), shoes, bag.
TASKS: dict[str, NamedTask] = {
    "mnist": NamedTask("mnist", _LENET, _LENET_HALF),
    "fashion-mnist": NamedTask("fashion-mnist", _LENET, _LENET_HALF, training={"epochs": 30}),
    "mnist-pairs": NamedTask("mnist", _LENET, _LENET_HALF, "0,1/2,3/4,5/6,7/8,9"),
    "mnist-parity": NamedTask("mnist", _LENET, _LENET_HALF, "0,2,4,6,8/1,3,5,7,9"),
    "mnist-uneven": NamedTask("mnist", _LENET, _LENET_HALF, "0,3,6,7/1,9/2,4,5,8"),
    "fashion-merged": NamedTask("fashion-mnist", _LENET, _LENET_HALF, "0,2,4,6/1,3/5,7,9/8", {"epochs": 30}),
    "mnist-sample": NamedTask("mnist-sample", _LENET, _LENET_HALF),
    "cifar10-small": NamedTask("cifar10", _wide(16, 2), _wide(16, 1), training={**_CIFAR, "epochs": 20}),
    "cifar10": NamedTask("cifar10", _RESNET_34, _RESNET_18, training=_CIFAR),
    "cifar10-wrn": NamedTask("cifar10", _wide(40, 2), _wide(16, 1), training=_CIFAR),
    "cifar10-nobn": NamedTask("cifar10", {**_RESNET_34, **_PLAIN}, {**_RESNET_18, **_PLAIN}, training=_CIFAR),
}


def find_task(name: str, groups: str | None = None) -> NamedTask:
    """The task, with other groups if they are given.

    Raises UserError that names the nearest, or if the groups are no partition of the data set's classes.
    """
    if name not in TASKS:
        raise UserError(f"task: {name!r} is not known; {nearest(name, TASKS)}")
    task = TASKS[name]
    if groups is None:
        return task
    if groups:
        parse_groups(groups, len(find_source(task.dataset).class_names))
    return NamedTask(task.dataset, task.teacher, task.student, groups, task.training)


def teacher_folder(name: str, groups: str | None = None) -> Path:
    """Where the task's teacher lies: in ./teachers or where the repository ships it; else where it would be made."""
    made = folder_to_train(name, groups)
    places = (made.parent, Path("benchmarks") / "teachers", _REPOSITORY / "benchmarks" / "teachers")
    found = [place / made.name for place in places if (place / made.name / "config.json").exists()]
    return found[0] if found else made


def judge_folder(dataset: str) -> Path:
    """Where a teacher of all the data set's classes lies, of whichever task has one; else where it would be made."""
    names = [name for name, task in TASKS.items() if task.dataset == dataset != name and not task.groups]
    folders = [teacher_folder(name) for name in [dataset, *names] if name in TASKS] or [Path("teachers") / dataset]
    return next((folder for folder in folders if (folder / "config.json").exists()), folders[0])


def folder_to_train(name: str, groups: str | None = None) -> Path:
    """Where the task's teacher is made unless told otherwise; one for tasks that are the same."""
    task = find_task(name, groups)
    same = [other for other, known in TASKS.items() if known == task]
    folder = name if name in same else same[0] if same else f"{name}-{task.groups.replace('/', '_')}"
    return Path("teachers") / folder


def split_task(arguments: Sequence[str]) -> tuple[tuple[str, str | None] | None, list[str]]:
    """Take `--task` and `--groups` out of a command line: ((name, groups), the rest), or (None, all of it).

    Raises UserError for groups without a task.
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--task")
    parser.add_argument("--groups")
    try:
        given, rest = parser.parse_known_args(list(arguments))
    except ArgumentError as error:
        raise UserError(str(error)) from error
    if given.task is None and given.groups is not None:
        raise UserError("groups: they need a --task whose classes they merge")
    return (None if given.task is None else (given.task, given.groups)), rest


def distillation_of(name: str, groups: str | None = None) -> dict[str, Any]:
    """What `gasim distill --task` stands for, as a tree; raises UserError that says how to make a missing teacher."""
    folder = teacher_folder(name, groups)
    if not (folder / "config.json").exists():
        grouping = "" if groups is None else f" --groups {groups}"
        raise UserError(f"task: no teacher in {folder}; make it with: gasim teacher train --task {name}{grouping}")
    return {"teacher": str(folder), "student": {"architecture": dict(find_task(name, groups).student)}}


def training_of(name: str, groups: str | None = None) -> dict[str, Any]:
    """What `gasim teacher train --task` stands for: the fields of ClassifierTraining.

    However long its epochs take: a distillation of the task takes its teacher for a finished one.
    """
    task = find_task(name, groups)
    architecture = dict(task.teacher)
    return {
        "dataset": task.dataset,
        "groups": task.groups,
        "model": architecture.pop("name"),
        "arguments": architecture,
        "budget_seconds": inf,
        **task.training,
    }
