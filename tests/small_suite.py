"""A benchmark suite small enough for a test, in a folder of the test's own; see the fixture `suite` in conftest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import cells, figures, tables

TEACHER = Path(__file__).parents[1] / "benchmarks" / "teachers" / "cartpole-dqn"
ARCHITECTURE = {"name": "mlp", "hidden": [8]}


def begin(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Declare `small`, of one task and three methods; nothing that is recorded leaves the folder."""
    (folder / "suites").mkdir()
    monkeypatch.setattr(cells, "ROOT", folder)
    monkeypatch.setattr(figures, "ROOT", folder)
    monkeypatch.setattr(tables, "FILES", (folder / "README.md",))
    monkeypatch.chdir(folder)
    declared = {
        "kind": "distill",
        "size": "cpu",
        "methods": {"noise": [0], "gasim": [0, 1], "real": [0]},
        "episodes": 2,
        "tasks": {"cartpole": {"teacher": str(TEACHER)}},
        "config": {
            "local": True,
            "student": {"architecture": ARCHITECTURE, "batch_size": 32},
            "generator": {"batch_size": 32},
            "budget": {"student_steps": 40},
        },
    }
    declare(declared)
    return declared


def declare(declared: dict[str, Any]) -> None:
    """Write the suite's file."""
    (cells.ROOT / "suites" / "small.yaml").write_text(yaml.safe_dump(declared, sort_keys=False))


def started(monkeypatch: pytest.MonkeyPatch, module: Any, *arguments: str) -> int:
    """Run a command of `benchmarks` with these arguments; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    return int(module.main())
