"""`gasim status`: what it shows of a run on a real cluster."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from conftest import Gasim

from gasim_ray import cli
from gasim_ray.actors.loop import Progress
from gasim_ray.actors.status import Status, leave_status, read_status, status_lines, take_status_back


def test_a_status_is_there_until_it_is_taken_back(on_cluster: None) -> None:
    leave_status("runs/mine", "acrobot-dqn, gasim", vars(Progress(spent=0.5, student_steps=1_200)))
    leave_status("runs/mine", "acrobot-dqn, gasim", vars(Progress(spent=0.75, student_steps=1_800)))
    (status,) = read_status()
    assert (status.run, status.what, status.figures["student_steps"]) == ("runs/mine", "acrobot-dqn, gasim", 1_800)
    first, second = status_lines([status])
    assert first.startswith("runs/mine (acrobot-dqn, gasim), ")
    assert "0 actors alive, 0 restarts" in second
    take_status_back()
    assert read_status() == []


def test_a_run_that_is_not_heard_of_is_silent() -> None:
    assert status_lines([Status("a", "b", 3.0, vars(Progress()))])[0] == "a (b), 3 s ago"
    assert status_lines([Status("a", "b", 100.0, vars(Progress()))])[0] == "a (b), 100 s ago, silent"


def test_the_command_shows_a_run_while_it_goes_on(
    tmp_path: Path, vector_teacher: Path, config_file: Callable[..., Path], gasim: Gasim, cluster_address: str
) -> None:
    run, budget = tmp_path / "run", {"student_steps": 10**9, "seconds": 300.0}
    tree = tiny.tree(vector_teacher, out=str(run), generator={"actors": 1}, budget=budget)
    running = gasim("distill", config_file(tree), RAY_ADDRESS=cluster_address)
    deadline, said = time.monotonic() + 120, ""
    while not (run / "metrics.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    while "vector, gasim" not in said and time.monotonic() < deadline:
        process = gasim("status", cluster_address)
        said = process.communicate()[0]
        assert process.returncode == 0
    assert str(run) in said
    running.terminate()
    assert running.wait() == 130
    process = gasim("status", cluster_address)
    assert "no run is under way" in process.communicate()[0]


@pytest.mark.parametrize("wrong", ["127.0.0.1:1", "nowhere", "127.0.0.1:99999"])
def test_a_cluster_that_is_not_there(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", wrong]) == 2
    complaint = capsys.readouterr().err
    assert f"address: no Ray cluster at {wrong} (" in complaint
    assert complaint.count("\n") == 1
