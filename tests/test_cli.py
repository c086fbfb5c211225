"""The command line: what a user does wrong is said in one line with exit code 2, and nothing is left half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import Refused
from safetensors.torch import load_file, save_file

from gasim_ray import cli
from gasim_ray.config import build_config, known_keys
from gasim_ray.core.model import Model, load_model, save_model
from gasim_ray.errors import exit_code
from gasim_ray.run_folder import save_tensors

CARTPOLE = Path(__file__).parents[1] / "benchmarks" / "teachers" / "cartpole-dqn"


@pytest.fixture
def teacher(tmp_path: Path, vector_teacher: Path) -> Path:
    """A teacher that a test may damage."""
    return Path(shutil.copytree(vector_teacher, tmp_path / "teacher"))


@pytest.fixture
def distil(teacher: Path, tmp_path: Path, config_file: Callable[..., Path]) -> Callable[..., list[object]]:
    """Arguments of a tiny distillation of that teacher into `run`."""

    def arguments(*more: object, **changed: Any) -> list[object]:
        config = config_file(tiny.tree(teacher, local=True, **changed))
        return ["distill", config, "--out", tmp_path / "run", *more]

    return arguments


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--generator.batchsize=3"], ["generator.batchsize", "did you mean generator.batch_size?"]),
        (["--generator.batch_size=few"], ["generator.batch_size", "few", "int"]),
        (["--generator.batch_size=0"], ["generator.batch_size", "0 is impossible", "at least 1"]),
        (["--generator.kind=netwrk"], ["generator.kind", "netwrk", "network"]),
        (["--generator.prior=[unifrom]"], ["generator.prior", "unifrom", "uniform"]),
        (["--generator.prior=[fields]"], ["generator.prior", "pictures"]),
        (["--method=gasin"], ["method", "gasin", "gasim"]),
        (["--device=gpu"], ["device", "gpu", "cuda"]),
        (["--generator.gpus=0.5"], ["generator.gpus", "0.5", "local", "0"]),
        (["--objective.batch_norm=1"], ["objective.batch_norm", "no batch-norm layer", "0"]),
        (["--student.architecture={'name': 'mpl'}"], ["architecture", "mpl", "mlp"]),
        (
            ["--student.architecture={'name': 'lenet5'}"],
            ["architecture", "lenet5 refuses", "[4]", "reads images", "mlp"],
        ),
        (["--student.architecture={'name': 'no.such:thing'}"], ["architecture", "no.such:thing"]),
        (
            ["--student.architecture={'name': 'strange:broken'}"],
            ["architecture", "strange:broken refuses", "RuntimeError: no way at all", "mend"],
        ),
        (
            ["--student.architecture={'name': 'resnet', 'width': 2}"],
            ["student.architecture", "resnet", "[4]", "vectors"],
        ),
        (
            ["--student.architecture={'name': 'fails_at_import:make'}"],
            ["fails_at_import:make", "RuntimeError: not", "mend"],
        ),
        (["--student.init=prune", "--student.architecture={'name': 'dueling_mlp'}"], ["student.init", "use 'auto'"]),
        (["--resume"], ["out", "run holds no checkpoint"]),
        (["--teacher=elsewhere"], ["elsewhere", "no model there"]),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_written(
    more: list[str],
    said: list[str],
    distil: Callable[..., list[object]],
    refused: Refused,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "fails_at_import.py").write_text("raise RuntimeError('not\\ntoday')\n")
    refused(distil(*more), *said)
    assert not (tmp_path / "run").exists()


def test_a_file_behind_options_is_told_to_come_first(refused: Refused, tmp_path: Path) -> None:
    for command in (["distill", "--seed", "1"], ["distill", "--local"], ["tune", "--trials=8"]):
        refused([*command, "mine.yaml"], "mine.yaml stands behind an option", "give it first")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_where_there_is_none_is_refused(distil: Callable[..., list[object]], refused: Refused) -> None:
    refused(distil("--device=cuda"), "device: cuda is not there", "use cpu")


def test_a_student_with_other_actions_than_its_teacher_is_refused(
    distil: Callable[..., list[object]], refused: Refused, tmp_path: Path
) -> None:
    student = {"architecture": {"name": "strange:TwoActions"}}
    refused(distil(student=student), "student.architecture", "[2] where there are 3 actions", "give one")
    assert not (tmp_path / "run").exists()


def test_statistics_that_a_teacher_does_not_store_are_refused(
    teacher: Path, distil: Callable[..., list[object]], refused: Refused, tmp_path: Path
) -> None:
    config = replace(load_model(teacher).config, architecture={"name": "strange:Unstored"})
    save_model(Model(config), teacher)
    for method in ("gasim", "deepinversion"):
        assert build_config({"teacher": str(teacher), "method": method}).objective.batch_norm == 0
    refused(distil("--objective.batch_norm=1"), "objective.batch_norm", "no batch-norm layer with statistics", "0")
    assert not (tmp_path / "run").exists()


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])


def age(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "format": 99}))


def poison(folder: Path) -> None:
    weights = {name: torch.full_like(t, float("nan")) for name, t in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")


def shrink(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["observation"].update(shape=[3], low=[-1.0], high=[1.0])
    (folder / "config.json").write_text(json.dumps(config))


def steer(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "actions": {"type": "continuous", "n": 2}}))


DAMAGES = [
    (shutil.rmtree, ["no model there"]),
    (truncate, ["model.safetensors", "truncated"]),
    (age, ["format", "99 is not the version", "import the source again"]),
    (poison, ["NaN"]),
    (shrink, ["weights do not fit", "[8, 4]", "[8, 3]", "give the architecture's settings"]),
    (steer, ["actions.type", "continuous", "discrete"]),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGES)
def test_a_damaged_teacher_is_refused(
    damage: Callable[[Path], None],
    said: list[str],
    teacher: Path,
    distil: Callable[..., list[object]],
    refused: Refused,
    tmp_path: Path,
) -> None:
    arguments = distil()
    damage(teacher)
    refused(arguments, str(teacher), *said)
    assert not (tmp_path / "run").exists()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_that_exists_is_kept_unless_it_is_to_be_replaced(
    distil: Callable[..., list[object]], refused: Refused, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert cli.main([str(a) for a in distil()]) == 0
    before = contents(run)
    refused(distil("--seed=1"), "out", "run exists", "--resume", "--overwrite")
    refused(distil("--resume", "--seed=1"), "seed", "1 differs from 0", "--out")
    refused(distil("--resume", "--generator.steps=9"), "generator", "differs from")
    settings = run / "config.yaml"
    written = settings.read_text()
    settings.write_text("".join(line for line in written.splitlines(True) if "entropy_wanted" not in line))
    refused(distil("--resume", "--objective.entropy_wanted=1"), "objective.entropy_wanted", "differs from 0")
    settings.write_text(written)
    refused(distil("--overwrite", "--generator.steps=-1"), "generator.steps", "-1 is impossible")
    refused(
        ["distill", run, "--method=gas", "--out", tmp_path / "other"], "method: 'gas' over a configuration of 'gasim'"
    )
    refused(["distill", run], "out", "run exists")
    assert contents(run) == before
    moved = run.rename(tmp_path / "moved")
    assert cli.main(["distill", str(moved), "--resume"]) == 0
    assert not run.exists()
    moved.rename(run)
    assert cli.main([str(a) for a in distil("--overwrite", "--seed=1")]) == 0
    assert contents(run)["student/model.safetensors"] != before["student/model.safetensors"]


def test_overwriting_spares_what_is_no_run(
    distil: Callable[..., list[object]], refused: Refused, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    refused(distil("--overwrite"), "out", "something else than a run")
    assert contents(tmp_path / "run") == {"thesis.tex": b"years of work"}
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").write_text("a file")
    refused(distil(), "out", "is a file")


@pytest.mark.parametrize("damage", [b"", b"no checkpoint", None])
def test_a_damaged_checkpoint_is_refused(
    damage: bytes | None, distil: Callable[..., list[object]], refused: Refused, tmp_path: Path
) -> None:
    assert cli.main([str(a) for a in distil()]) == 0
    checkpoint = tmp_path / "run" / "checkpoint" / "state.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:2000] if damage is None else damage)
    refused(distil("--resume"), "state.pt", "cannot be read", "--overwrite")


def test_a_configuration_file_that_is_missing_or_malformed_is_refused(refused: Refused, tmp_path: Path) -> None:
    refused(["distill", tmp_path / "none.yaml"], "none.yaml", "cannot be read")
    (tmp_path / "bad.yaml").write_text("teacher: [")
    refused(["distill", tmp_path / "bad.yaml"], "bad.yaml", "cannot be read")
    refused(["distill", "--local"], "teacher")


def test_more_actors_than_there_are_cpus_are_refused(
    distil: Callable[..., list[object]], refused: Refused, tmp_path: Path, on_cluster: None
) -> None:
    refused(distil("--local=false", "--generator.actors=9"), "generator.actors", "9 actors", "5.5 CPU", "4 is free")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of a CartPole teacher, with its student."""
    folder = tmp_path / "run"
    save_model(load_model(CARTPOLE), folder / "student")
    (folder / "config.yaml").write_text(f"teacher: {CARTPOLE}\n")
    (folder / "summary.json").write_text("{}")
    return folder


def test_an_evaluation_that_cannot_be_is_refused(refused: Refused, run: Path, tmp_path: Path, on_cluster: None) -> None:
    refused(["evaluate", tmp_path / "none"], "no run there")
    refused(["evaluate", run, "--env", "CartPol-v1"], "env", "CartPol-v1", "CartPole-v1")
    refused(["evaluate", run, "--env", "Acrobot-v1"], "env", "Acrobot-v1 shows observations of [6]", "reads [4]")
    refused(["evaluate", run, "--env", "Pendulum-v1"], "env", "Pendulum-v1", "only discrete actions")
    refused(["evaluate", run, "--dataset", "mnist", "--data", tmp_path / "empty"], "empty")
    refused(["evaluate", run, "--dataset", "mnits"], "dataset", "mnits", "mnist")
    refused(["evaluate", run, "--dataset", "mnist-sample"], "dataset", "[1, 28, 28]", "reads [4]")
    refused(["evaluate", run, "--env", "CartPole-v1", "--dataset", "mnist"], "dataset", "is an environment; give one")
    refused(["evaluate", run, "--seed", "-1"], "seed", "-1 is negative", "0 or more")
    (tmp_path / "taken").touch()
    refused(["evaluate", run, "--json", tmp_path / "taken" / "figures.json"], "json", "taken cannot be made")
    for episodes in (0, 1):
        refused(["evaluate", run, "--episodes", episodes], "episodes", f"{episodes} is too few", "2 or more")
    shutil.copytree(run, tmp_path / "unfinished")
    (tmp_path / "unfinished" / "summary.json").unlink()
    refused(["compare", run, tmp_path / "unfinished"], "unfinished: has no summary.json, the run has not ended")
    assert not (run / "controls").exists()  # nothing was measured
    truncate(run / "student")
    refused(["compare", run, run], "student", "model.safetensors", "truncated")
    refused(["evaluate", run, "--groups", "0,1/2"], "groups", "CartPole-v1 is an environment", "--dataset")
    assert (run / "summary.json").read_text() == "{}"
    assert set(contents(run)) == {"config.yaml", "summary.json", "student/config.json", "student/model.safetensors"}


def test_a_teacher_that_cannot_be_had_is_refused(refused: Refused, tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = tmp_path / "checkpoint"
    source.mkdir()
    (source / "rllib_checkpoint.json").write_text("{}")
    refused(["teacher", "import", source, "--out", out], "trust", "is a pickle", "runs whatever code", "--trust")
    refused(["teacher", "import", tmp_path / "none", "--out", out], "source", "none", "check the path")
    refused(["teacher", "train", "--env", "Pendulum-v1", "--algo", "ppo", "--out", out], "env", "only discrete actions")
    refused(
        ["teacher", "train", "--env", "CartPol-v1", "--algo", "dqn", "--out", out], "env", "CartPol-v1", "CartPole-v1"
    )
    refused(["teacher", "train", "--env", "ALE/Pomg-v5", "--algo", "ppo", "--out", out], "ALE/Pomg-v5", "ALE/Pong-v5")
    refused(["teacher", "train", "--dataset", "mnist", "--data", tmp_path / "empty", "--out", out], "empty")
    refused(["teacher", "train", "--env", "CartPole-v1", "--algo", "ppoo", "--out", out], "algo", "ppoo")
    refused(["teacher"], "teacher", "gasim teacher train")
    assert not out.exists()


def test_an_unknown_command_shows_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["destill"]) == 2
    unknown = capsys.readouterr().err
    assert cli.main([]) == 2
    nothing = capsys.readouterr().err
    assert cli.main(["--help"]) == 0
    asked = capsys.readouterr().out
    assert unknown == nothing == asked
    assert all(f"  {command} " in asked for command in cli.COMMANDS)


def test_help_documents_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["distill", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in ("Observations in a batch", "--resume", "--overwrite", *(f"--{key}" for key in known_keys())):
        assert part in text


def test_ctrl_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(arguments: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "demo", interrupted)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == "gasim: interrupted\n"


def test_a_full_disk_is_one_line_and_a_mistake_of_ours_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("gasim", lambda: Path("/dev/full").write_text("much")) == 2
    assert capsys.readouterr().err.startswith("gasim: a file: No space left on device; free some space")
    # PyTorch says it in words of its own.
    (tmp_path / "state.partial").symlink_to("/dev/full")
    assert exit_code("gasim", lambda: save_tensors(tmp_path / "state.pt", {"x": torch.zeros(9)})) == 2
    assert capsys.readouterr().err.startswith(f"gasim: {tmp_path}/state.pt: not written (")
    with pytest.raises(FileNotFoundError):
        exit_code("gasim", lambda: Path("/nowhere/at/all").read_text())
