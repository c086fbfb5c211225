"""The learner: a student that diverges, and moments that come back from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch

from gasim_ray import cli
from gasim_ray.actors.loop import Loop
from gasim_ray.actors.workers import LocalWorkers
from gasim_ray.config import build_config
from gasim_ray.teachers import load_teacher


def test_a_student_that_diverges_is_told_and_leaves_no_student(
    tmp_path: Path, vector_teacher: Path, config_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    tree = tiny.tree(vector_teacher, local=True, out=str(tmp_path / "run"), student={"learning_rate": 1e30})
    assert cli.main(["distill", str(config_file(tree))]) == 2
    assert "student.learning_rate: with 1e+30 the student's loss is" in capsys.readouterr().err
    assert not (tmp_path / "run" / "student").exists()


def test_moments_come_back_in_the_memory_format_of_their_weights(image_teacher: Path) -> None:
    two_layers = {"name": "cnn", "filters": [[4, 8, 4], [4, 3, 1]], "hidden": [8]}
    tree = tiny.tree(image_teacher, local=True, channels_last=True, student={"architecture": two_layers})
    config = build_config(tree)
    workers = LocalWorkers(load_teacher(image_teacher), config)
    Loop(workers, config, stop=lambda: False, report=lambda loop: None).run()
    learner = workers.learner
    state = learner.state_dict()
    moments = state["optimiser"]["state"]
    for each in moments.values():  # as another machine's NumPy may hand them on
        each.update({name: tensor.contiguous(memory_format=torch.contiguous_format) for name, tensor in each.items()})
    learner.load_state_dict(state)
    for parameter, found in learner.optimiser.state.items():
        assert found["exp_avg"].stride() == found["exp_avg_sq"].stride() == parameter.stride()
    *_, filters = (p for p in learner.student.parameters() if p.dim() == 4)
    assert filters.is_contiguous(memory_format=torch.channels_last)
    assert not filters.is_contiguous()
