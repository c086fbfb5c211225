"""The command line on networks, weights and data of the user's own: what cannot work is said in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import strange
import tiny
import torch
from conftest import Refused

from gasim_ray import cli
from gasim_ray.core.model import load_model, save_model
from gasim_ray.evaluation.readers import CIFAR_PICKLES, CIFAR_RECORDS, IDX_FILES
from gasim_ray.training.command import span


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
    two = strange.TwoActions((4,), 3).state_dict()
    refused(module_import("strange:broken", {}), "strange:broken refuses", "no way at all")
    refused(module_import("strange:TwoActions", two), "answers [2] where there are 3 actions")
    refused(module_import("strange:Unread", {}), "Unread", "does not fit input [4]", "no vectors here", "vectors")
    assert not (tmp_path / "out").exists()


def test_an_import_takes_no_fewer_than_two_actions_and_no_option_of_another_source(
    refused: Refused, module_import: Callable[..., list[object]], tmp_path: Path
) -> None:
    refused(module_import("strange:Unread", {}, "--actions", 1), "actions: 1 leaves nothing to choose", "2 or more")
    refused(module_import("strange:Unread", {}, "--stack", 4), "stack: 4 is not for a source of kind torch", "leave it")
    checkpoint = ["teacher", "import", tmp_path, "--kind", "rllib", "--trust", "--out", tmp_path / "out"]
    refused([*checkpoint, "--outputs", "q_values"], "outputs: q_values is not for a source of kind rllib")
    assert not (tmp_path / "out").exists()


def test_a_classifier_that_does_not_read_its_images_is_refused(refused: Refused, tmp_path: Path) -> None:
    train = ["teacher", "train", "--dataset", "mnist-sample", "--out", tmp_path / "out"]
    refused([*train, "--model", "strange:Unread"], "model", "Unread", "[1, 28, 28]", "no vectors here", "images")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", [["--task", "mnist-sample"], ["--env", "CartPole-v1", "--algo", "ppo"]])
def test_a_misspelt_or_wrong_setting_of_a_training_is_refused_by_its_name(
    what: list[object], refused: Refused, tmp_path: Path
) -> None:
    train = ["teacher", "train", *what, "--out", tmp_path / "out"]
    refused([*train, "--sed", 3], "sed: no such key; did you mean seed?")
    refused([*train, "--seed", "three"], "seed: 'three' is not of type int")
    refused([*train, "--qqqqqq", 3], "qqqqqq: no such key; see gasim teacher train --help")
    refused(["teacher", "train", "--datset", "mnist"], "datset: no such key; did you mean dataset?")
    refused(["teacher", "train", "--env", "CartPole-v1", "--epochs", 3], "epochs: goes with --task or --dataset")
    refused(["teacher", "train", "--task", "mnist-sample", "--algo", "ppo"], "algo: goes with --env")
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


def test_a_teacher_is_measured_alone(tmp_path: Path, on_cluster: None, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tiny.model(tiny.GREY, actions=10), tmp_path / "mine")
    assert cli.main(["teacher", "evaluate", str(tmp_path / "mine"), "--dataset", "mnist-sample"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    row = next(row for row in rows if row[:1] == ["teacher"])
    accuracy, agreement, kl = map(float, (row[1], *row[4:6]))
    assert 0 < accuracy < 60
    assert (agreement, kl) == (100.0, 0.0)
    assert cli.main(["teacher", "evaluate", str(tmp_path / "mine")]) == 2
    assert "does not say what it was trained on; give --env or --dataset" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("numbers", "said"),
    [((None,), "none"), ((2.0,), "2"), ((0.0, 1.0, 0.5), "0 to 1"), ((None, -1.0, 3.0), "-1 to 3 (none for 1)")],
)
def test_many_numbers_are_told_by_their_range(numbers: tuple[float | None, ...], said: str) -> None:
    assert span(numbers) == said


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
    refused(
        ["teacher", "train", "--task", "mnist-sample", "--out", "s3://bucket/a"], "out", "is an address", "a folder"
    )
    assert imported.config.architecture == {"name": "mine:make", "hidden": 5}
    assert torch.equal(imported.network[0].weight, network[0].weight)
    sys.modules.pop("mine")


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
