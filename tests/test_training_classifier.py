"""Training of classifiers on the sample of MNIST that the package carries."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gasim_ray import cli
from gasim_ray.errors import UserError
from gasim_ray.tasks import TASKS, training_of
from gasim_ray.teachers import load_teacher
from gasim_ray.training.classifier import ClassifierTraining, shifted, train_classifier
from gasim_ray.training.progress import Progress


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other make these small steps many times slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small(**changed: Any) -> ClassifierTraining:
    return ClassifierTraining(**({"dataset": "mnist-sample", "epochs": 3, "batch": 50} | changed))


class StoppedAfter:
    """A report that presses Ctrl-C after an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.messages: list[str] = []

    def __call__(self, progress: Progress) -> None:
        self.messages.append(progress.message)
        if progress.message == f"epoch {self.epoch} of 3":
            raise KeyboardInterrupt


def test_it_learns_and_leaves_a_teacher(tmp_path: Path) -> None:
    reports: list[Progress] = []
    trained = train_classifier(small(), tmp_path / "teacher", reports.append)
    loaded = load_teacher(tmp_path / "teacher")
    images = torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8)
    torch.testing.assert_close(loaded(images), trained(images))
    source = loaded.config.source
    assert source["test_accuracy"] > 0.5
    assert (source["dataset"], source["epochs"], source["seed"]) == ("mnist-sample", 3, 0)
    assert [r.message for r in reports if r.message] == [f"epoch {n} of 3" for n in (1, 2, 3)]
    assert not (tmp_path / "teacher" / "checkpoint").exists()


def test_a_stopped_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = train_classifier(small(), tmp_path / "whole", lambda _: None)
    report = StoppedAfter(2)
    with pytest.raises(KeyboardInterrupt):
        train_classifier(small(), tmp_path / "stopped", report)
    assert "--resume" in report.messages[-1]
    resumed = train_classifier(small(), tmp_path / "stopped", lambda _: None, resume=True)
    for name, weights in whole.state_dict().items():
        assert torch.equal(weights, resumed.state_dict()[name]), name


def test_the_budget_ends_it_at_an_epoch(tmp_path: Path) -> None:
    model = train_classifier(small(budget_seconds=0.001), tmp_path / "teacher", lambda _: None)
    assert model.config.source["epochs"] == 1
    assert (tmp_path / "teacher" / "checkpoint").exists()


def test_a_named_task_trains_all_its_epochs_and_another_says_where_its_budget_ended_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert all(training_of(name)["budget_seconds"] == math.inf for name in TASKS)
    # Two epochs of the smaller network take a second each.
    train = ["teacher", "train", "--task", "mnist-sample", "--arguments", "{width: 0.5}", "--epochs", "2"]
    train += ["--out", str(tmp_path / "teacher")]
    assert cli.main([*train, "--budget_seconds", "0.001"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "at most 0 s left" in said[0]
    assert said[-1].startswith("unfinished: the budget ended after 1 of 2 epochs; go on with --resume")
    assert cli.main([*train, "--resume"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "left" not in said[0]
    assert said[-1] == f"teacher: {tmp_path / 'teacher'}"
    assert load_teacher(tmp_path / "teacher").config.source["epochs"] == 2


def test_other_settings_do_not_resume(tmp_path: Path) -> None:
    train_classifier(small(budget_seconds=0.001), tmp_path / "teacher", lambda _: None)
    with pytest.raises(UserError, match=r"^lr: 0\.1, but the checkpoint"):
        train_classifier(small(lr=0.1), tmp_path / "teacher", lambda _: None, resume=True)
    with pytest.raises(UserError, match="exists; --resume"):
        train_classifier(small(), tmp_path / "teacher", lambda _: None)
    train_classifier(small(lr=0.1, epochs=1), tmp_path / "teacher", lambda _: None, overwrite=True)
    for name, other in (("seed", 1), ("epochs", 2), ("lr", 0.2), ("dataset", "mnist"), ("model", "cnn")):
        with pytest.raises(UserError, match=rf"^{name}: .* the finished teacher in .* is of .*; give the same"):
            train_classifier(small(**{"lr": 0.1, "epochs": 1, name: other}), tmp_path / "teacher", print, resume=True)


def test_overwrite_replaces_a_teacher_alone_and_not_before_all_is_checked(tmp_path: Path) -> None:
    out = tmp_path / "teacher"
    train_classifier(small(epochs=1), out, lambda _: None)
    with pytest.raises(UserError, match="did you mean 'mnist'"):
        train_classifier(small(dataset="minst"), out, lambda _: None, overwrite=True)
    assert load_teacher(out)
    (out / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds thesis\.tex, which is no part of a teacher"):
        train_classifier(small(), out, lambda _: None, overwrite=True)
    with pytest.raises(UserError, match=r"^out: .* is a file"):
        train_classifier(small(), out / "thesis.tex", lambda _: None, overwrite=True)


def test_every_setting_for_larger_images_trains_too(tmp_path: Path) -> None:
    settings = small(epochs=1, flip=True, weight_decay=0.1, bf16=True, channels_last=True)
    teacher = train_classifier(settings, tmp_path / "teacher", lambda _: None)
    assert 0.2 < teacher.config.source["test_accuracy"] <= 1.0
    plain = train_classifier(small(epochs=1), tmp_path / "plain", lambda _: None)
    assert not torch.equal(teacher.network.head.weight, plain.network.head.weight)


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"epochs": 0}, "epochs: 0"),
        pytest.param(
            {"device": "cuda"},
            "device: cuda is not there",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason=""),
        ),
        ({"weight_decay": -0.5}, "weight_decay: -0.5"),
        ({"lr": -1.0}, "lr: -1.0"),
        ({"budget_seconds": 0.0}, "budget_seconds: 0.0 is not positive"),
        ({"dataset": "mnis"}, "did you mean 'mnist'"),
        ({"model": "lenet"}, "did you mean 'lenet5'"),
        ({"dataset": "mnist", "data": Path("nowhere")}, "mnist is not in nowhere"),
    ],
)
def test_impossible_settings(tmp_path: Path, changed: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        train_classifier(small(**changed), tmp_path / "teacher", lambda _: None)
    assert not (tmp_path / "teacher").exists()


def test_shifts_move_whole_images() -> None:
    images = torch.zeros(200, 2, 9, 7, dtype=torch.uint8)
    images[:, 0, 4, 3], images[:, 1, 5, 3] = 1, 2
    moved = shifted(images, 2, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    first, second = moved[:, 0].nonzero(), moved[:, 1].nonzero()
    assert torch.equal(first + torch.tensor([0, 1, 0]), second)
    offsets = {(int(y) - 4, int(x) - 3) for _, y, x in first}
    assert offsets == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}
    assert torch.equal(shifted(images, 0, torch.Generator()), images)
