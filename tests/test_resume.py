"""A run that goes on: from a checkpoint, with what may change, where its teacher or its version is another."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from tiny import rows_of, student_of

from gasim_ray import cli
from gasim_ray.actors import workers
from gasim_ray.core.model import load_config, save_model
from gasim_ray.run_folder import saved_config


def interrupt(process: subprocess.Popen[str], run: Path) -> tuple[int, str]:
    """Press Ctrl-C once there are two checkpoints; returns exit code and standard error.

    The first may be written before the first step, where the start took long; the second is not.
    """
    while not (run / "checkpoint" / "previous.pt").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    return process.returncode, errors


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("local", "direct"),
        ("local", "network"),
        ("synchronous", "direct"),
        ("synchronous", "network"),
        ("synchronous", "one of each"),
        ("local", "both by one"),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_student(
    mode: str,
    kind: str,
    tmp_path: Path,
    vector_teacher: Path,
    config_file: Callable[..., Path],
    gasim: Callable[..., Any],
    request: pytest.FixtureRequest,
) -> None:
    """The run that nothing interrupts is a local one: both modes give the same student (see test_loop)."""
    if mode == "synchronous":
        request.getfixturevalue("on_cluster")
    steps = {"local": 1000, "synchronous": 500}[mode]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    own: list[Any] = [{}, {"generator": {"kind": "direct"}}] if kind in ("one of each", "both by one") else []
    actors, kind = (1 if kind == "both by one" else 2), ("network" if own else kind)
    generator = {
        "kind": kind,
        "actors": actors,
        "per_actor": 2,
        "reset_every": 7,
        "stagnation": 5,
        "latent": 4,
        "steps": 1,
    }
    tree = tiny.tree(vector_teacher, generator=generator, checkpoint_seconds=0.1, budget={"student_steps": steps})
    pool = {"capacity": 300, "replay": 0.5, "hard": 0.5}
    config = config_file({**tree, mode: True, "actor_settings": own, "pool": pool})
    address = request.getfixturevalue("cluster_address") if mode == "synchronous" else ""
    process = gasim("distill", config, f"--out={stopped}", RAY_ADDRESS=address)
    code, errors = interrupt(process, stopped)
    assert code == 130, errors
    assert any("--resume" in line for line in errors.splitlines()), errors  # Ray may have the last word
    assert "Traceback" not in errors
    assert not (stopped / "student").exists()
    reached = rows_of(stopped)[-1]["student_steps"]
    assert 0 < reached < steps
    assert cli.main(["distill", str(stopped / "config.yaml"), "--resume", "--checkpoint_seconds=99"]) == 0
    assert cli.main(["distill", str(config), f"--out={whole}", "--local", "--checkpoint_seconds=99"]) == 0
    assert student_of(stopped) == student_of(whole)
    last, expected = rows_of(stopped)[-1], rows_of(whole)[-1]
    for name in ("student_steps", "observations", "loss", "agreement", "pool_size", "reinitialisations"):
        assert last[name] == expected[name], name
    reached = [row["student_steps"] for row in rows_of(stopped)]
    assert reached == sorted(reached)


def test_an_asynchronous_run_alone_goes_on_with_other_actors(
    tmp_path: Path,
    vector_teacher: Path,
    config_file: Callable[..., Path],
    on_cluster: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, exact = tmp_path / "run", tmp_path / "exact"
    assert cli.main(["distill", str(config_file(tiny.tree(vector_teacher, local=True, out=str(exact))))]) == 0
    assert cli.main(["distill", str(exact), "--resume", "--generator.actors=1"]) == 2
    assert "generator.actors: 1 differs from 2" in capsys.readouterr().err
    command = ["distill", str(config_file(tiny.tree(vector_teacher, out=str(run))))]
    assert cli.main(command) == 0
    for actors, steps in ((1, 60), (3, 80)):
        more = (f"--generator.actors={actors}", f"--budget.student_steps={steps}")
        assert cli.main([*command, "--resume", *more]) == 0
        assert rows_of(run)[-1]["student_steps"] >= steps
        assert json.loads((run / "summary.json").read_text())["generator_actors"] == actors


def test_where_a_student_starts_is_not_worked_out_again_for_a_run_that_goes_on(
    tmp_path: Path, image_teacher: Path, config_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    student = {"architecture": tiny.SMALL_CNN, "batch_size": 16, "init": "prune"}
    config = config_file(tiny.tree(image_teacher, local=True, out=str(tmp_path / "run"), student=student))
    started = list[object]()
    monkeypatch.setattr(workers, "cut_down", lambda *given: started.append(given))
    assert cli.main(["distill", str(config)]) == 0
    assert len(started) == 1
    assert cli.main(["distill", str(config), "--resume", "--budget.student_steps=60"]) == 0
    assert len(started) == 1
    assert rows_of(tmp_path / "run")[-1]["student_steps"] == 60


def test_a_run_of_an_older_version_goes_on_without_what_a_preset_sets_today(
    tmp_path: Path, image_teacher: Path, config_file: Callable[..., Path]
) -> None:
    run = tmp_path / "run"
    tree = tiny.tree(image_teacher, local=True, out=str(run), student={"architecture": tiny.SMALL_CNN})
    config = config_file(tree)
    # As if there had been no views at first, of which the preset makes three.
    assert cli.main(["distill", str(config), "--generator.views=1"]) == 0
    settings = run / "config.yaml"
    settings.write_text("".join(line for line in settings.read_text().splitlines(True) if "views" not in line))
    assert saved_config(run).generator.views == 3
    assert cli.main(["distill", str(run), "--resume", "--budget.student_steps=60"]) == 0
    assert saved_config(run).generator.views == 1
    assert rows_of(run)[-1]["student_steps"] == 60
    # By the command that began it, too, if nobody gave what the preset had; what somebody gives has to be the run's.
    assert cli.main(["distill", str(config), "--resume", "--budget.student_steps=80"]) == 0
    assert (saved_config(run).generator.views, rows_of(run)[-1]["student_steps"]) == (1, 80)
    assert cli.main(["distill", str(config), "--resume", "--generator.views=2"]) == 2


def test_a_run_goes_on_with_the_normaliser_that_its_student_learned_with(
    tmp_path: Path, vector_teacher: Path, config_file: Callable[..., Path]
) -> None:
    run = tmp_path / "run"
    config = str(config_file(tiny.tree(vector_teacher, local=True, out=str(run), generator={"prior": ["uniform"]})))
    assert cli.main(["distill", config]) == 0
    began = load_config(run / "student").observation
    # As if the preset had been uniform then; what it is now has another mean.
    now = "--generator.prior=[geometry,undecided]"
    assert cli.main(["distill", config, now, "--resume", "--budget.student_steps=60"]) == 0
    assert rows_of(run)[-1]["student_steps"] == 60
    assert load_config(run / "student").observation == began
    assert cli.main(["distill", config, now, f"--out={tmp_path / 'other'}"]) == 0
    assert load_config(tmp_path / "other" / "student").observation != began


def test_a_job_that_is_tried_again_goes_on_or_begins(
    tmp_path: Path, vector_teacher: Path, config_file: Callable[..., Path]
) -> None:
    run = tmp_path / "run"
    command = ["distill", str(config_file(tiny.tree(vector_teacher, local=True, out=str(run)))), "--resume"]
    assert cli.main(command) == 2
    assert cli.main([*command, "--overwrite"]) == 0
    before = rows_of(run)
    assert cli.main([*command, "--overwrite", "--budget.student_steps=60"]) == 0
    assert rows_of(run)[: len(before)] == before
    assert rows_of(run)[-1]["student_steps"] == 60
    shutil.rmtree(run / "checkpoint")  # as it is where a run was killed early
    assert cli.main([*command, "--overwrite"]) == 0
    assert rows_of(run)[-1]["student_steps"] == before[-1]["student_steps"]


def test_a_run_keeps_its_teacher(
    tmp_path: Path, vector_teacher: Path, config_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    teacher = Path(shutil.copytree(vector_teacher, tmp_path / "mine"))
    save_model(tiny.model(tiny.VECTOR, seed=1), other)
    assert cli.main(["distill", str(config_file(tiny.tree(teacher, local=True, out=str(run))))]) == 0
    moved = teacher.rename(tmp_path / "moved")
    assert saved_config(run).teacher == str(run / "teacher")
    assert cli.main(["distill", str(run), "--resume", "--budget.student_steps=60"]) == 0
    assert cli.main(["distill", str(run), "--resume", f"--teacher={moved}", "--budget.student_steps=80"]) == 0
    assert rows_of(run)[-1]["student_steps"] == 80
    assert cli.main(["distill", str(run), "--resume", f"--teacher={other}", "--budget.student_steps=90"]) == 2
    assert f"teacher: {other} is not the one that the run began with, {run / 'teacher'}" in capsys.readouterr().err
    # One that has taken its place is not taken for it, and a run of no name of its own stays where it is.
    shutil.rmtree(moved)
    shutil.copytree(other, moved)
    settings = run / "config.yaml"
    settings.write_text(settings.read_text().replace(f"out: {run}\n", "out: ''\n"))
    assert (saved_config(run).teacher, saved_config(run).run_folder()) == (str(run / "teacher"), run)
    assert cli.main(["distill", str(settings), "--resume", "--budget.student_steps=100"]) == 0
    assert rows_of(run)[-1]["student_steps"] == 100
    shutil.rmtree(moved)
    assert cli.main(["distill", str(run), "--overwrite"]) == 0


def test_a_finished_run_goes_on_with_a_larger_budget(
    tmp_path: Path, vector_teacher: Path, config_file: Callable[..., Path]
) -> None:
    run = tmp_path / "run"
    config = config_file(tiny.tree(vector_teacher, local=True, out=str(run)))
    assert cli.main(["distill", str(config)]) == 0
    before = student_of(run)
    (run / "summary.json").write_text("{}")
    assert cli.main(["distill", str(config), "--resume"]) == 0
    assert student_of(run) == before
    assert (run / "summary.json").read_text() == "{}"  # what an evaluation wrote there stays
    assert cli.main(["distill", "--resume", str(config), "--budget.student_steps=60"]) == 0
    assert rows_of(run)[-1]["student_steps"] == 60
    assert student_of(run) != before
