"""A distillation from command line to folder: what it leaves, how it is repeated; test_resume has how it goes on."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from conftest import marking
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import rows_of, student_of

from gasim_ray import cli
from gasim_ray import run as run_module
from gasim_ray.actors import workers
from gasim_ray.config import DistillConfig, build_config
from gasim_ray.core.model import Model, ModelConfig, load_model
from gasim_ray.errors import UserError
from gasim_ray.methods import METHODS
from gasim_ray.run import check_computing, knowledge_level
from gasim_ray.run_folder import RunFolder

REPOSITORY = Path(__file__).parents[1]
TEACHERS = REPOSITORY / "benchmarks" / "teachers"
SUMMARY_KEYS = {
    "task", "method", "knowledge", "seed", "teacher", "student", "metric", "teacher_score", "student_score",
    "controls", "agreement", "wall_seconds", "synthetic_observations", "generator_actors", "device", "versions",
}  # fmt: skip


def files_of(run: Path) -> set[str]:
    """Every file of a run; TensorBoard's have a time in their name."""
    paths = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    return {"events" if p.startswith("events.out.tfevents.") else p for p in paths}


def test_a_run_leaves_what_it_should(tmp_path: Path, config_file: Callable[..., Path]) -> None:
    config = config_file(tiny.tree(TEACHERS / "acrobot-dqn", method="gasim", seed=7, generator={"prior": ["geometry"]}))
    run = tmp_path / "run"
    assert cli.main(["distill", str(config), "--local", "--out", str(run)]) == 0
    assert files_of(run) == {
        "config.yaml", "summary.json", "metrics.csv", "events", "checkpoint/state.pt", "student/model.safetensors",
        "student/config.json", "samples.png", "teacher/model.safetensors", "teacher/config.json",
    }  # fmt: skip
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary) == SUMMARY_KEYS
    expected = {
        "task": "acrobot-dqn", "method": "gasim", "knowledge": "bounds", "seed": 7, "student": str(run / "student"),
        "teacher": str(TEACHERS / "acrobot-dqn"), "generator_actors": 2, "device": "cpu", "controls": {},
        "synthetic_observations": 640,
    }  # fmt: skip
    assert {key: summary[key] for key in expected} == expected
    assert 0 < summary["agreement"] <= 1
    assert summary["wall_seconds"] > 0
    assert set(summary["versions"]) == {"python", "gasim-ray", "torch", "ray", "numpy"}
    assert "# torch " in (run / "config.yaml").read_text()
    last = rows_of(run)[-1]
    assert (last["student_steps"], last["spent"], last["observations"]) == (40, 1, 640)
    events = EventAccumulator(str(run)).Reload()
    assert events.Scalars("student_steps")[-1].value == 40
    student = load_model(run / "student")
    assert (student.config.actions, student.config.outputs) == (3, "logits")
    assert student.parameter_count < 200


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("kind", ["vector", "image", "coloured"])
def test_every_method_distils_every_kind_of_teacher(
    method: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "FITTING_SAMPLES", 32)
    teacher: Path = request.getfixturevalue(f"{kind}_teacher")
    architecture = {"vector": tiny.SMALL_NETWORK, "image": tiny.SMALL_CNN, "coloured": tiny.SMALL_RESNET}[kind]
    student = {"architecture": architecture, "batch_size": 16}
    generator = {"batch_size": 16, "width": 8}
    given = {"teacher": str(teacher), "method": method, "student": student, "generator": generator}
    config = build_config({**given, "budget": {"observations": 64}, "local": True, "out": str(tmp_path / "run")})
    steps = {
        part: replace(getattr(config, part), steps=min(getattr(config, part).steps, 3))
        for part in ("generator", "student")
    }
    run = cli.run_distillation(replace(config, **steps))
    loss = rows_of(run)[-1]["loss"]
    assert 0 <= loss < 100
    assert load_model(run / "student").config.actions == load_model(teacher).config.actions
    assert json.loads((run / "summary.json").read_text())["knowledge"] in ("bounds", "generic")


@pytest.mark.parametrize(
    ("given", "level"),
    [
        ({"method": "dafl"}, "bounds"),
        ({"method": "noise", "generator": {"blur": 1.0}}, "generic"),
        ({"method": "dafl", "generator": {"views": 2}}, "generic"),
        ({"method": "dafl", "objective": {"total_variation": 0.1}}, "generic"),
        ({"method": "dafl", "objective": {"contrastive": 0.8}}, "generic"),
        ({"method": "deepinversion"}, "generic"),
        ({"method": "cmi"}, "generic"),
        ({"method": "dafl", "generator": {"prior": ["rally"], "views": 2}}, "domain"),
    ],
)
def test_what_pictures_are_assumed_to_have_is_knowledge(given: dict[str, Any], level: str, image_teacher: Path) -> None:
    assert knowledge_level(build_config({"teacher": str(image_teacher), **given})) == level


def test_a_run_is_repeated_from_its_own_configuration(
    tmp_path: Path, vector_teacher: Path, config_file: Callable[..., Path]
) -> None:
    first, second, other = (tmp_path / name for name in ("first", "second", "other"))
    config = config_file(tiny.tree(vector_teacher, local=True, method="gas", seed=3))
    assert cli.main(["distill", str(config), f"--out={first}"]) == 0
    assert cli.main(["distill", str(first / "config.yaml"), f"--out={second}"]) == 0
    assert student_of(second) == student_of(first)
    assert cli.main(["distill", str(first / "config.yaml"), f"--out={other}", "--seed=4"]) == 0
    assert student_of(other) != student_of(first)


def test_a_folder_that_is_taken_is_refused_before_actors_start(
    tmp_path: Path, vector_teacher: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
    monkeypatch.setattr(run_module, "start_workers", None)  # whoever calls it fails
    for out in (str(tmp_path / "taken"), f"file://{tmp_path}/taken"):
        assert cli.main(["distill", "--teacher", str(vector_teacher), "--local", "--out", out]) == 2
        assert "taken exists; go on with --resume" in capsys.readouterr().err


def test_a_layout_that_a_network_of_ones_own_cannot_take_is_refused() -> None:
    config = ModelConfig({"name": "strange:Viewed"}, tiny.GREY, 3, "logits")
    given = DistillConfig("", bf16=True, channels_last=True)
    check_computing(DistillConfig(""), Model(config))
    with pytest.raises(UserError, match=r"^channels_last: strange:Viewed cannot \(RuntimeError: view size .*leave"):
        check_computing(given, Model(config))


@pytest.mark.parametrize("network", [[], ["--method=gas", "--generator.width=8"]])
def test_copies_of_the_student_are_kept_and_those_of_an_abandoned_course_go(
    tmp_path: Path, image_teacher: Path, config_file: Callable[..., Path], network: list[str]
) -> None:
    run = tmp_path / "run"
    student = {"architecture": tiny.SMALL_CNN, "batch_size": 16, "steps": 2}
    halved = {"bf16": True, "channels_last": True, "snapshot_seconds": 0.2, "budget": {"seconds": 2.5}}
    tree = {"teacher": str(image_teacher), "student": student, "generator": {"batch_size": 16}}
    config = config_file({**tree, **halved, "local": True, "out": str(run)})
    assert cli.main(["distill", str(config), *network]) == 0
    snapshots = RunFolder(run).read_snapshots()
    assert len(snapshots) >= 2
    assert list(snapshots) == sorted(snapshots)
    first, last = next(iter(snapshots.values())), load_model(run / "student")
    assert first.config.observation == last.config.observation
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), last.parameters(), strict=True))
    (run / "snapshots" / "009999.0").mkdir()
    assert cli.main(["distill", str(config), *network, "--resume"]) == 0
    assert list(RunFolder(run).read_snapshots()) == list(snapshots)


def test_a_full_disk_costs_a_checkpoint_but_not_the_run(
    tmp_path: Path, vector_teacher: Path, config_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """No file may outgrow the first checkpoint; that of the fuller pool would be twice as large."""
    run = tmp_path / "run"
    tree = tiny.tree(vector_teacher, local=True, out=str(run), generator={"batch_size": 512})
    command = ["distill", str(config_file({**tree, "pool": {"capacity": 50_000}}))]
    assert cli.main(command) == 0
    checkpoint = run / "checkpoint" / "state.pt"
    before, first = resource.getrlimit(resource.RLIMIT_FSIZE), checkpoint.read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(first) + 1000, before[1]))
    try:
        assert cli.main([*command, "--resume", "--budget.student_steps=80"]) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    errors = " ".join(capsys.readouterr().err.split())
    assert f"warning: {checkpoint}: not written" in errors
    assert rows_of(run)[-1]["student_steps"] == 80
    assert not list(run.rglob("*.partial"))
    assert checkpoint.read_bytes() == first
    assert cli.main([*command, "--resume", "--budget.student_steps=80"]) == 0


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    """/dev/full answers every write as a full disk does."""
    folder = RunFolder(tmp_path)
    folder.save_checkpoint({"x": torch.ones(3)})
    folder.checkpoint.with_name("state.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"state\.pt: not written"):
        folder.save_checkpoint({"x": torch.zeros(100_000)})
    assert [p.name for p in folder.checkpoint.parent.iterdir()] == ["state.pt"]
    assert torch.load(folder.checkpoint, weights_only=True)["x"].tolist() == [1, 1, 1]


def test_a_local_distillation_and_its_student_need_neither_simulator_nor_ray(
    tmp_path: Path, config_file: Callable[..., Path], gasim: Callable[..., Any], blocker: Callable[..., Path]
) -> None:
    modules = ("gymnasium", "ale_py", "ray")
    folder = blocker(*modules)
    tree = tiny.tree(TEACHERS / "cartpole-dqn", method="gasim", local=True, out=str(tmp_path / "run"))
    tree["generator"]["prior"] = ["geometry"]
    tree["student"]["architecture"] = marking(folder, *modules)
    process = gasim("distill", config_file(tree), PYTHONPATH=str(folder))
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert {p.name for p in (folder / "marks").iterdir()} == {str(process.pid)}
    three_lines = (
        "from gasim_ray.core.model import load_model\n"
        "import torch\n"
        f"print(load_model({str(tmp_path / 'run' / 'student')!r})(torch.zeros(5, 4)).shape)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(REPOSITORY)])}
    command = [process.args[0], "-c", three_lines]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert printed == "torch.Size([5, 2])\n"


def test_a_distillation_on_ray_needs_no_simulator(
    tmp_path: Path,
    config_file: Callable[..., Path],
    gasim: Callable[..., Any],
    blocker: Callable[..., Path],
    cluster_address: str,
) -> None:
    modules = ("gymnasium", "ale_py")
    folder = blocker(*modules)
    tree = tiny.tree(TEACHERS / "cartpole-dqn", out=str(tmp_path / "run"))
    tree["student"]["architecture"] = marking(folder, *modules)
    path = os.pathsep.join([str(folder), str(REPOSITORY)])
    job = json.dumps({"runtime_env": {"env_vars": {"PYTHONPATH": path}}})
    environment = {"PYTHONPATH": str(folder), "RAY_ADDRESS": cluster_address, "RAY_JOB_CONFIG_JSON_ENV_VAR": job}
    process = gasim("distill", config_file(tree), **environment)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert (tmp_path / "run" / "summary.json").exists()
    # The driver, the learner actor and two generator actors.
    assert len(list((folder / "marks").iterdir())) == 4


def test_the_student_computes_what_its_weights_say(
    tmp_path: Path, vector_teacher: Path, config_file: Callable[..., Path]
) -> None:
    """The folder alone is enough: one linear layer after another, no part of this program."""
    run = tmp_path / "run"
    assert cli.main(["distill", str(config_file(tiny.tree(vector_teacher, local=True))), f"--out={run}"]) == 0
    weights, config = (
        load_file(run / "student" / "model.safetensors"),
        json.loads((run / "student" / "config.json").read_text()),
    )
    x = torch.rand(5, 4)
    observation = config["observation"]
    hidden = (x - torch.tensor(observation["mean"])) / torch.tensor(observation["std"])
    hidden = torch.relu(hidden @ weights["layers.0.weight"].T + weights["layers.0.bias"])
    expected = hidden @ weights["layers.2.weight"].T + weights["layers.2.bias"]
    torch.testing.assert_close(load_model(run / "student")(x), expected)


def test_the_configuration_on_disk_is_the_whole_tree(
    tmp_path: Path, vector_teacher: Path, config_file: Callable[..., Path]
) -> None:
    run = tmp_path / "run"
    assert cli.main(["distill", str(config_file(tiny.tree(vector_teacher, local=True))), f"--out={run}"]) == 0
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert build_config(written).to_yaml() == yaml.safe_dump(written, sort_keys=False)
    assert (written["local"], written["generator"]["batch_size"], written["out"]) == (True, 32, str(run))
