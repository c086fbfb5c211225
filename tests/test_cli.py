"""The command line: what a user does wrong is said in one line with exit code 2, and nothing is left half-written."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from gasim_ray import cli
from gasim_ray.config import build_config
from gasim_ray.core.model import Model, load_model, save_model
from gasim_ray.evaluation.readers import CIFAR_PICKLES, CIFAR_RECORDS, IDX_FILES

CARTPOLE = Path(__file__).parents[1] / "benchmarks" / "teachers" / "cartpole-dqn"

#: Runs a command line that is wrong and checks that the one line on standard error says this, in this order.
Refused = Callable[..., None]


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Refused:
    """See Refused."""

    def check(arguments: list[object], *said: str) -> None:
        capfd.readouterr()
        assert cli.main([str(a) for a in arguments]) == 2
        lines = capfd.readouterr().err.splitlines()
        line = lines[-1]
        assert line.startswith("gasim: ")
        assert not any("Traceback" in text or text.startswith("gasim: ") for text in lines[:-1])
        place = 0
        for part in said:
            assert part in line[place:], line
            place = line.index(part, place)

    return check


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
            ["--student.architecture={'name': 'test_cli:broken'}"],
            ["architecture", "test_cli:broken refuses", "no way at all"],
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


def broken(input_shape: tuple[int, ...], outputs: int) -> torch.nn.Module:
    """A factory of the user's with a mistake in it."""
    raise RuntimeError("no way\n  at all")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_where_there_is_none_is_refused(distil: Callable[..., list[object]], refused: Refused) -> None:
    refused(distil("--device=cuda"), "device: cuda is not there", "use cpu")


class TwoActions(torch.nn.Linear):
    """A student that answers for two actions, whatever it is asked for."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__(input_shape[0], 2)


def test_a_student_with_other_actions_than_its_teacher_is_refused(
    distil: Callable[..., list[object]], refused: Refused, tmp_path: Path
) -> None:
    student = {"architecture": {"name": f"{__name__}:TwoActions"}}
    refused(distil(student=student), "student.architecture", "[2] where there are 3 actions", "give one")
    assert not (tmp_path / "run").exists()


class Unstored(torch.nn.Sequential):
    """A teacher that normalises by each batch's own statistics."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        norm = torch.nn.BatchNorm1d(input_shape[0], track_running_stats=False)
        super().__init__(norm, torch.nn.Linear(input_shape[0], outputs))


def test_statistics_that_a_teacher_does_not_store_are_refused(
    teacher: Path, distil: Callable[..., list[object]], refused: Refused, tmp_path: Path
) -> None:
    config = replace(load_model(teacher).config, architecture={"name": f"{__name__}:Unstored"})
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
    assert contents(run) == before
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
    for episodes in (0, 1):
        refused(["evaluate", run, "--episodes", episodes], "episodes", f"{episodes} is too few", "2 or more")
    truncate(run / "student")
    refused(["compare", run, run], "student", "model.safetensors", "truncated")
    refused(["evaluate", run, "--groups", "0,1/2"], "groups", "CartPole-v1 is an environment", "--dataset")
    assert (run / "summary.json").read_text() == "{}"
    assert set(contents(run)) == {"config.yaml", "summary.json", "student/config.json", "student/model.safetensors"}


@pytest.mark.parametrize("command", [["distill"], ["teacher", "train"]])
@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ("0,1/1,2", ["class 1 is named 2 times", "once"]),
        ("0,1/2", ["class 3, 4, 5, 6, 7, 8, 9 is in no group", "name each"]),
        ("0-4/5-9", ["'0-4/5-9' cannot be read", "write class numbers as 0,1/2,3/4"]),
        ("0,1,2,3,4,5,6,7,8,9", ["one group", "two or more"]),
    ],
)
def test_groups_that_are_no_partition_are_refused(
    command: list[str],
    groups: str,
    said: list[str],
    refused: Refused,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    refused([*command, "--task", "mnist", "--groups", groups], "groups", *said)
    assert not list(tmp_path.iterdir())


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


@pytest.fixture
def module_import(tmp_path: Path) -> Callable[..., list[object]]:
    """Arguments that import a factory of networks for four numbers and three actions, with this state dict."""

    def arguments(factory: str, weights: dict[str, torch.Tensor], *more: object) -> list[object]:
        torch.save(weights, tmp_path / "weights.pt")
        (tmp_path / "observation.yaml").write_text("{shape: [4], dtype: float32, layout: vector, low: [-1], high: [1]}")
        files = ["--weights", tmp_path / "weights.pt", "--observation", tmp_path / "observation.yaml"]
        return ["teacher", "import", factory, *files, "--actions", 3, "--out", tmp_path / "out", *more]

    return arguments


def test_an_imported_network_that_cannot_work_is_refused(
    refused: Refused, module_import: Callable[..., list[object]], tmp_path: Path
) -> None:
    two = TwoActions((4,), 3).state_dict()
    refused(module_import(f"{__name__}:broken", {}), f"{__name__}:broken refuses", "no way at all")
    refused(module_import(f"{__name__}:TwoActions", two), "answers [2] where there are 3 actions")
    refused(module_import(f"{__name__}:Unread", {}), "Unread", "does not fit input [4]", "no vectors here", "vectors")
    assert not (tmp_path / "out").exists()


def test_a_classifier_that_does_not_read_its_images_is_refused(refused: Refused, tmp_path: Path) -> None:
    train = ["teacher", "train", "--dataset", "mnist-sample", "--out", tmp_path / "out"]
    refused([*train, "--model", f"{__name__}:Unread"], "model", "Unread", "[1, 28, 28]", "no vectors here", "images")
    assert not (tmp_path / "out").exists()


def test_a_device_that_does_not_exist_is_refused_for_classifiers(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ["teacher", "train", "--task", "mnist-sample", "--out", tmp_path / "out", "--device"]
    refused([*train, "gpu"], "device: 'gpu' is not one of cpu, cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    refused([*train, "cuda:7"], "device: cuda:7 is not there", "0 to 1")
    assert not (tmp_path / "out").exists()


def other_classes(folder: Path) -> list[object]:
    save_model(tiny.model(tiny.GREY, actions=4), folder / "teacher")
    (folder / "config.yaml").write_text(f"teacher: {folder / 'teacher'}\n")
    return ["evaluate", folder, "--dataset", "mnist-sample"]


def damaged_data(folder: Path, name: str, files: Sequence[str]) -> list[object]:
    for file in files:
        (folder / file).write_bytes(b"what a proxy said instead")
    return ["teacher", "train", "--dataset", name, "--data", folder, "--out", folder / "out"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (other_classes, ["dataset", "10 classes, the teacher has 4"]),
        (partial(damaged_data, name="mnist", files=IDX_FILES), [IDX_FILES[0], "not an idx file", "fetch it again"]),
        (partial(damaged_data, name="cifar10", files=CIFAR_PICKLES), ["data_batch_1: not a batch", "fetch it again"]),
        (partial(damaged_data, name="cifar10", files=CIFAR_RECORDS), ["data_batch_1.bin", "fetch it again"]),
    ],
)
def test_data_that_do_not_fit_or_are_damaged_are_refused(
    arguments: Callable[[Path], list[object]], said: list[str], refused: Refused, tmp_path: Path
) -> None:
    refused(arguments(tmp_path), *said)
    assert not (tmp_path / "out").exists()


def test_weights_with_other_names_are_refused(
    refused: Refused, module_import: Callable[..., list[object]], tmp_path: Path
) -> None:
    weights = {f"layers.{name}": tensor for name, tensor in torch.nn.Linear(4, 3).state_dict().items()}
    said = ["missing layers.0.weight", "unexpected layers.weight", "give the architecture's settings"]
    refused([*module_import("gasim_ray.models.mlp:MLP", weights), "--arguments", "{hidden: []}"], *said)
    assert not (tmp_path / "out").exists()


OWN = """
from torch import nn

def make(input_shape, outputs, hidden):
    return nn.Sequential(nn.Linear(input_shape[0], hidden), nn.ReLU(), nn.Linear(hidden, outputs))
"""


def test_a_factory_in_the_working_folder_is_found_and_given_its_settings(
    refused: Refused, module_import: Callable[..., list[object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(OWN)
    network = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    arguments = module_import("mine:make", network.state_dict())
    refused([*arguments, "--arguments", "{hidden: 6}"], "0.weight is [5, 4] where the architecture has [6, 4]")
    for wrong, said in (("5", "is no mapping"), ("{hidden", "cannot be read"), ("{name: 5}", "name")):
        refused([*arguments, "--arguments", wrong], "arguments", said)
    assert cli.main([*map(str, arguments), "--arguments", '{"hidden": 5}']) == 0
    imported = load_model(tmp_path / "out")
    assert imported.config.architecture == {"name": "mine:make", "hidden": 5}
    assert torch.equal(imported.network[0].weight, network[0].weight)
    sys.modules.pop("mine")


class Unread(torch.nn.Module):
    """A network whose construction goes well and whose use does not."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        raise ValueError("no vectors\n here")


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
    for part in ("--generator.batch_size", "Observations in a batch", "--budget.seconds", "--resume", "--overwrite"):
        assert part in text


def test_ctrl_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(arguments: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "demo", interrupted)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == "gasim: interrupted\n"
