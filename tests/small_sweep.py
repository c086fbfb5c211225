"""A sweep small enough for a test, and how it is run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
from conftest import Gasim

#: Writes a configuration; see the fixture `config_file`.
Write = Callable[..., Path]


def sweep_tree(teacher: object, **changed: Any) -> dict[str, Any]:
    """A sweep of four trials that are over in a moment."""
    base = tiny.tree(teacher, generator={"actors": 1, "cpus": 0.25}, budget={"student_steps": 24})
    return {
        "base": {**base, "student": {**base["student"], "cpus": 0.25}},
        "space": {"generator.steps": {"integer": [0, 2]}, "pool.hard": {"choice": [0.0, 0.5]}},
        "searcher": "random",
        "trials": 4,
        "reports": 2,
        "validation": {"observations": 32, "student_steps": 4},
        **changed,
    }


def run_tune(gasim: Gasim, address: str, *arguments: object) -> str:
    """What `gasim tune` says, which has to end well."""
    process = gasim("tune", *arguments, RAY_ADDRESS=address)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return out + error
