"""What a run survives: lost, silent and mad actors, and damaged checkpoints."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from conftest import processes_of, wait_for
from rich.console import Console
from safetensors import SafetensorError

from benchmarks.cells import load_suite
from benchmarks.chaos import as_expected, measure_fault
from benchmarks.chaos.cluster import Cluster
from benchmarks.chaos.hosts import RedisHosts
from benchmarks.chaos.scene import Look, Scene
from gasim_ray import cli
from gasim_ray.actors.loop import Loop, Progress
from gasim_ray.actors.ray_workers import RayWorkers
from gasim_ray.actors.workers import Answer, LocalWorkers, Workers
from gasim_ray.config import DistillConfig, build_config
from gasim_ray.core.batch import SyntheticBatch, fault_of
from gasim_ray.core.learner import Learner
from gasim_ray.core.model import Model, load_model, save_model
from gasim_ray.core.settings import PoolSettings, StudentSettings
from gasim_ray.errors import UserError
from gasim_ray.report.display import Display
from gasim_ray.run import distill
from gasim_ray.run_folder import Metrics, RunFolder, alone_in
from gasim_ray.teachers import load_teacher


class Saboteur(Display):
    """Does something once, when a run has come so far."""

    def __init__(self, at_step: int, act: Callable[[], None]) -> None:
        self.output = StringIO()
        super().__init__(Console(file=self.output, width=1000))
        self.at_step, self.act, self.done = at_step, act, False
        self.steps: list[int] = []
        self.observations: list[int] = []

    def show(self, progress: Progress) -> None:
        super().show(progress)
        self.steps.append(progress.student_steps)
        self.observations.append(progress.observations)
        if progress.student_steps >= self.at_step and not self.done:
            self.done = True
            self.act()


def kill_learner() -> None:
    for process in processes_of("LearnerActor"):
        os.kill(process, signal.SIGKILL)


@pytest.mark.parametrize(
    ("checkpoint_seconds", "has_checkpoint", "synchronous"),
    [(0.1, True, False), (600.0, False, False), (0.1, True, True)],
)
def test_a_killed_learner_goes_on_from_the_last_checkpoint(
    checkpoint_seconds: float,
    has_checkpoint: bool,
    synchronous: bool,
    tmp_path: Path,
    vector_teacher: Path,
    on_cluster: None,
) -> None:
    """Without a checkpoint the run begins again."""
    run = tmp_path / "run"
    budget, generator = {"student_steps": 600}, {"actors": 1}
    tree = tiny.tree(
        vector_teacher, out=str(run), checkpoint_seconds=checkpoint_seconds, generator=generator, budget=budget
    )
    tree["synchronous"] = synchronous
    saboteur = Saboteur(300, kill_learner)
    distill(build_config(tree), saboteur)
    assert "warning: the learner was lost (" in saboteur.output.getvalue()
    restarted = min(after for before, after in zip(saboteur.steps, saboteur.steps[1:], strict=False) if after < before)
    assert (restarted > 0) == has_checkpoint
    assert saboteur.steps[-1] >= 600
    assert (run / "summary.json").exists()
    rows = [float(row.split(",")[0]) for row in (run / "metrics.csv").read_text().splitlines()[1:]]
    assert rows == sorted(rows)


def test_a_silent_generator_actor_is_replaced_and_the_others_go_on(
    tmp_path: Path, vector_teacher: Path, on_cluster: None
) -> None:
    halted: list[int] = []

    def halt() -> None:
        halted.append(processes_of("GeneratorActor")[0])
        os.kill(halted[0], signal.SIGSTOP)

    tree = tiny.tree(vector_teacher, out=str(tmp_path / "run"), generator={"timeout": 1.0})
    saboteur = Saboteur(20, halt)
    distill(build_config({**tree, "budget": {"seconds": 8}}), saboteur)
    assert "is replaced: no answer for 1 s" in saboteur.output.getvalue()
    # Ray kills one that is halted after some seconds, the run may be over by then.
    wait_for(lambda: halted[0] not in processes_of("GeneratorActor"))
    halted_at = saboteur.observations[[step >= 20 for step in saboteur.steps].index(True)]
    assert saboteur.observations[-1] > 2 * halted_at


def test_an_actor_that_waits_for_a_node_is_not_silent(vector_teacher: Path, on_cluster: None) -> None:
    tree = tiny.tree(vector_teacher, elastic=True, generator={"actors": 4, "cpus": 1.5, "timeout": 4.0})
    config = build_config({**tree, "budget": {"seconds": 8}})
    workers = RayWorkers(load_teacher(vector_teacher), config)
    try:
        progress = Loop(workers, config, lambda: False, lambda loop: None).run()
        assert [workers.begun(actor) for actor in range(4)].count(True) == 2
    finally:
        workers.close()
    assert (progress.actors_alive, progress.restarts) == (2, 0)


class Mad(LocalWorkers):
    """One actor of two makes what no teacher answers, until it is replaced; or for ever."""

    def __init__(self, config: DistillConfig, for_ever: bool) -> None:
        super().__init__(load_teacher(config.teacher), config)
        self.mad = set(range(config.generator.actors)) if for_ever else {1}
        self.for_ever = for_ever

    def order(self, actor: int, order: int, weights: Any) -> Answer:
        answer = super().order(actor, order, weights)
        if actor in self.mad:
            answer.payload.teacher_answers[3] = np.nan
        return answer

    def replace(self, actor: int) -> None:
        if not self.for_ever:
            self.mad.discard(actor)


def test_two_batches_of_nan_in_one_update_replace_their_actor_once(vector_teacher: Path) -> None:
    config = build_config(tiny.tree(vector_teacher, local=True))
    notes: list[str] = []
    workers = Mad(config, for_ever=False)
    loop = Loop(workers, config, lambda: False, lambda loop: None, notes.append)
    for _ in range(2):
        loop._take_order(loop._order(1), 1)
    loop._update(2)
    loop._finish_updates(list(loop.updates))
    assert len(notes) == loop.progress.restarts == 1
    assert loop.progress.observations == 0


def test_a_batch_of_nan_costs_its_actor_alone(vector_teacher: Path) -> None:
    config = build_config(tiny.tree(vector_teacher, local=True))
    notes: list[str] = []
    workers = Mad(config, for_ever=False)
    progress = Loop(workers, config, lambda: False, lambda loop: None, notes.append).run()
    assert notes == ["warning: generator actor 1 is replaced: a batch of it holds NaN or infinity"]
    assert progress.restarts == 1
    assert progress.student_steps >= 40
    assert progress.observations == progress.pool_size == len(workers.learner.pool)
    assert bool(workers.learner.pool.answers[: len(workers.learner.pool)].isfinite().all())


def test_a_run_of_which_no_batch_can_be_taken_ends(vector_teacher: Path) -> None:
    config = build_config(tiny.tree(vector_teacher, local=True))
    with pytest.raises(UserError, match=r"^generator: actors fail again and again.*holds NaN"):
        Loop(Mad(config, for_ever=True), config, lambda: False, lambda loop: None).run()


def made(**changed: Any) -> SyntheticBatch:
    """A batch as a generator makes it, with changes."""
    config = build_config(tiny.tree(TEACHER, local=True))
    workers = LocalWorkers(load_teacher(config.teacher), config)
    batch: SyntheticBatch = workers.order(0, 0, workers.student_weights()).payload
    return replace(batch, **changed)


TEACHER = Path(__file__).parents[1] / "benchmarks" / "teachers" / "cartpole-dqn"


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({}, None),
        ({"observations": np.zeros((32, 5), np.float32)}, r"has observations float32 (32, 5)"),
        ({"observations": np.zeros((31, 4), np.float32)}, r"has observations float32 (31, 4)"),
        ({"observations": np.zeros((32, 4), np.float64)}, r"has observations float64 (32, 4)"),
        ({"observations": np.full((32, 4), np.inf, np.float32)}, "holds NaN or infinity"),
        ({"teacher_answers": np.zeros((32, 3), np.float32)}, "has answers float32 (32, 3), not float32 (32, 2)"),
        ({"teacher_answers": np.zeros((32, 2), object)}, "has answers object (32, 2), not float32 (32, 2)"),
        ({"teacher_answers": np.full((32, 2), np.nan, np.float32)}, "holds NaN or infinity"),
    ],
)
def test_only_what_a_generator_should_make_is_taken_in(changed: dict[str, Any], fault: str | None) -> None:
    teacher, batch = load_teacher(TEACHER), made(**changed)
    assert fault_of(batch, teacher.config.observation, 2) == fault
    learner = Learner(load_model(TEACHER), StudentSettings(batch_size=8, steps=2), PoolSettings(), 0, "cpu")
    report, _ = learner.update(0.0, batch)
    assert report.refused == (() if fault is None else ((batch.info, fault),))
    assert (report.pool_size, report.student_step) == ((32, 2) if fault is None else (0, 0))


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_the_checkpoint_before_a_damaged_one_is_taken(
    damage: str, tmp_path: Path, config_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = ["distill", str(config_file(tiny.tree(TEACHER, local=True, out=str(run))))]
    assert cli.main(command) == 0
    assert cli.main([*command, "--resume", "--budget.student_steps=80"]) == 0
    folder = RunFolder(run)
    assert [torch.load(path)["progress"]["student_steps"] for path in (folder.previous, folder.checkpoint)] == [40, 80]
    content = bytearray(folder.checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    {
        "truncated": lambda: folder.checkpoint.write_bytes(content[:3000]),
        "altered": lambda: folder.checkpoint.write_bytes(content),
        "missing": lambda: folder.checkpoint.unlink(),  # a kill between two renames
    }[damage]()
    capsys.readouterr()
    assert cli.main([*command, "--resume", "--budget.student_steps=80"]) == 0
    assert "the one before it is taken" in capsys.readouterr().err
    rows = (run / "metrics.csv").read_text().splitlines()
    assert rows[0].split(",")[3] == "student_steps"
    assert int(rows[-1].split(",")[3]) == 80


def test_lost_work_and_recovery_are_told_from_looks(tmp_path: Path) -> None:
    looks = [(0, 0, 0), (1, 1, 100), (2, 2, 200), (3, 0, 0), (4, 1.5, 150), (5, 2.5, 250), (6, 3.5, 350), (7, 4.5, 450)]
    scene = Scene(Cluster(), tmp_path / "run", {}, looks=[Look(*look) for look in looks], faults=[2.5, 5.5])
    assert scene.lost() == (0.5, 50)
    assert scene.recovery_seconds() == 2.5
    scene.looks[2] = Look(2.6, 2, 200)  # the fault is noticed late
    assert scene.recovery_seconds() == 2.5
    scene.resumed.append(5.7)
    assert scene.recovery_seconds() == 2.5
    scene.resumed[0] = 6.5
    scene.faults[0] = 4.9
    assert scene.recovery_seconds() == 1.5
    scene.faults.append(7.5)
    assert scene.recovery_seconds() is None
    scene.faults.clear()
    assert scene.recovery_seconds() == 0.0


@pytest.mark.parametrize(
    ("fault", "codes", "expected"),
    [
        ("learner-killed", [0], True),
        ("learner-killed", [2], False),
        ("learner-killed", [2, 0], False),
        ("spot-notice", [130, 0], True),
        ("spot-notice", [1, 0], False),
        ("head-killed", [1, 0], True),
        ("driver-killed", [-9, 2], False),
    ],
)
def test_a_run_has_to_end_as_the_fault_allows(fault: str, codes: list[int], expected: bool) -> None:
    assert as_expected(codes, fault) == expected


def test_a_fault_of_the_suite_is_made_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real cluster of two nodes, one of which loses its raylet."""
    (cell,) = [c for c in load_suite("chaos") if c.name == "acrobot-dqn-node-killed-0"]
    monkeypatch.chdir(tmp_path)
    teacher = str(TEACHER.with_name("acrobot-dqn"))
    small = replace(cell, tree={**cell.tree, "teacher": teacher, "budget": {"seconds": 14}, "checkpoint_seconds": 1})
    _, told = measure_fault(small)
    assert told["recovered"]
    assert (told["exit_codes"], told["orphans"]) == ([0], 0)
    assert told["restarts"] >= 1
    assert told["recovery_seconds"] is not None


def test_redis_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="redis-server"):
        RedisHosts()


def test_a_run_without_a_single_batch_is_no_result(
    tmp_path: Path, vector_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gasim_ray.run._drive", lambda *_: (Progress(seconds=60.0, spent=1.0), {}))
    config = build_config(tiny.tree(vector_teacher, local=True, out=str(tmp_path / "run")))
    with pytest.raises(UserError, match=r"^budget: no batch came in 60 s; give more budget\.seconds"):
        distill(config, Display(Console(file=StringIO())))
    assert not (tmp_path / "run" / "summary.json").exists()


def test_rows_of_a_power_cut_are_left_out_and_what_follows_is_written(tmp_path: Path) -> None:
    metrics, folder = Metrics(tmp_path), RunFolder(tmp_path)
    for second in (1.0, 2.0, 3.0):
        metrics.write(Progress(seconds=second))
    path = tmp_path / "metrics.csv"
    path.write_bytes(path.read_bytes() + b"2.5,7\n" + b"\0" * 30)
    folder.forget_after(2.0)
    metrics.write(Progress(seconds=2.2))
    metrics.close()
    assert [line.split(",")[0] for line in path.read_text().splitlines()] == ["seconds", "1.0", "2.0", "2.2"]


def test_what_is_no_part_of_a_run_is_not_replaced(tmp_path: Path, vector_teacher: Path) -> None:
    config = build_config(tiny.tree(vector_teacher))
    RunFolder(tmp_path / "run").begin(config, overwrite=False)
    (tmp_path / "run" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"run holds thesis\.tex, which is no part of a run"):
        RunFolder(tmp_path / "run").begin(config, overwrite=True)
    (tmp_path / "run" / "thesis.tex").unlink()
    RunFolder(tmp_path / "run").begin(config, overwrite=True)


def test_a_model_that_does_not_fit_on_the_disk_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tiny.model(tiny.VECTOR, seed=1)
    save_model(before, tmp_path)

    def full(weights: object, path: Path) -> None:
        path.write_bytes(b"a part")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("gasim_ray.core.model.save_file", full)
    with pytest.raises(OSError, match=r"not written \(No space left"):
        save_model(tiny.model(tiny.VECTOR, seed=2), tmp_path)
    kept = load_model(tmp_path).network.state_dict()
    assert all(kept[name].equal(tensor) for name, tensor in before.network.state_dict().items())


def test_a_run_that_another_process_began_meanwhile_is_left_alone(
    tmp_path: Path, vector_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = build_config(tiny.tree(vector_teacher, local=True, out=str(tmp_path / "run")))

    def slow(teacher: Model, given: DistillConfig) -> Workers:
        RunFolder(tmp_path / "run").begin(config, overwrite=False)
        held.enter_context(alone_in(tmp_path / "run"))
        return LocalWorkers(teacher, given)

    monkeypatch.setattr("gasim_ray.run.start_workers", slow)
    with ExitStack() as held, pytest.raises(UserError, match=r"^out: another process is at work in .*run; wait"):
        distill(config, Display(Console(file=StringIO())), overwrite=True)
    assert (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize("way", ["resume", "overwrite"])
def test_two_processes_do_not_work_in_one_folder(way: str, tmp_path: Path, vector_teacher: Path) -> None:
    config = build_config(tiny.tree(vector_teacher, local=True, out=str(tmp_path / "run")))
    display = Display(Console(file=StringIO()))
    distill(config, display)
    with alone_in(tmp_path / "run"), pytest.raises(UserError, match=r"^out: another process is at work in .*run; wait"):
        distill(config, display, **{way: True})
    assert (tmp_path / "run" / "summary.json").exists()
    distill(config, display, **{way: True})
