"""What one loop drives: null actors without PyTorch, and the tables that are made of what was measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cells, scaling
from benchmarks.loop_cost import NullWorkers, by_loop, by_plain_ray
from gasim_ray.config import build_config

COST = {"generator_seconds": 0.1, "teacher_seconds": 0.01, "learner_seconds": 0.02, "batch_bytes": 4e4}


def test_null_actors_import_neither_pytorch_nor_ray() -> None:
    code = "import sys, benchmarks.null_actors; print('torch' in sys.modules, 'ray' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "False False\n"


def test_both_sides_drive_null_actors(monkeypatch: pytest.MonkeyPatch, vector_teacher: Path, on_cluster: None) -> None:
    monkeypatch.setattr("benchmarks.loop_cost.SECONDS", 1.5)
    config = build_config({"teacher": str(vector_teacher)})
    workers = NullWorkers(config, 3)
    try:
        assert by_loop(workers, config) > 0
        assert by_plain_ray(workers, config) > 0
        assert workers.memory() > 1e6
    finally:
        workers.close()


def test_the_model_takes_what_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "ROOT", tmp_path)
    assert any("not measured" in row for row in scaling.model_rows())

    def add(**line: Any) -> None:
        cells.append_result("scaling", {"date": "2026-01-01", "hardware": "a machine", **line})

    for count, rate in ((1, 900.0), (100, 2000.0)):
        add(task="null", generators=count, loop=rate, plain=1000.0, memory=5e7)
    add(task="acrobot-dqn", **COST, weight_bytes=2e4, observations=256)
    add(task="mnist", **{**COST, "learner_seconds": 1e-6}, weight_bytes=2e4, observations=256)
    rows = scaling.model_rows()
    assert "| acrobot-dqn | 8 | 50 | 12,800 | learner |" in rows
    assert "| mnist | 8 | 80 | 20,480 | generators |" in rows
    assert "| mnist | 512 | 2,000 | 512,000 | loop |" in rows
    assert "| 100 | 2,000 | 1,000 | 2.00 | 50 |" in scaling.loop_rows()
    assert "| acrobot-dqn | 256 | 100.0 | 10.0 | 20.0 | 40.0 | 20.0 |" in scaling.cost_rows()
