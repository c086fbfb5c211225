"""Trains a classifier on a labelled data set with plain PyTorch and keeps the last epoch's weights as a teacher.

Adam with a cosine to zero and small random shifts. Every epoch's order and shifts come from (seed, epoch) alone, so a
training that was stopped and resumed ends with the weights of one that was not.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gasim_ray.core.device import check_device_is_there
from gasim_ray.core.distill import shifted
from gasim_ray.core.model import Model, ModelConfig, check_network, load_model, save_model
from gasim_ray.errors import UserError
from gasim_ray.evaluation.datasets import Dataset, load_dataset
from gasim_ray.run_folder import read_state, save_tensors
from gasim_ray.teachers.folder import check_teacher_folder, replaced_folder, surviving_folder
from gasim_ray.training.progress import Progress, Report

#: Test images of one forward pass.
TEST_BATCH = 1000
#: Settings that a teacher's config keeps beside those that it names itself.
OPTIMISATION = ("batch", "lr", "weight_decay", "shift", "flip", "bf16")
#: Optimiser steps between two reports.
REPORT_STEPS = 100


@dataclass(frozen=True)
class ClassifierTraining:
    """What to train, on what, and for how long."""

    dataset: str
    """Name of the data set."""

    groups: str = ""
    """Classes to merge, such as 0,1/2,3/4; empty for none."""

    model: str = "lenet5"
    """A registered architecture, or `package.module:factory`."""

    arguments: dict[str, Any] = field(default_factory=dict)
    """The architecture's settings."""

    data: Path | None = None
    """Folder of the data set; None looks in the usual places."""

    epochs: int = 15
    """Passes over the training images."""

    batch: int = 128
    """Images of one optimiser step."""

    lr: float = 2e-3
    """Adam's step size at the start of its cosine."""

    weight_decay: float = 0.0
    """Share of the step size by which weights shrink at every step, apart from Adam (AdamW)."""

    flip: bool = False
    """Every other image is mirrored left to right."""

    device: str = "cpu"
    """Where it computes: cpu, cuda or cuda:N."""

    bf16: bool = False
    """Compute products in bfloat16; weights and losses stay float32."""

    channels_last: bool = False
    """Keep images channels last in memory, which suits convolutions on GPUs."""

    shift: int = 2
    """Images are moved by up to this many pixels along each axis; edges repeat."""

    seed: int = 0
    """Seed of weights, order and shifts."""

    budget_seconds: float = 1800.0
    """Seconds after which the training stops at the end of an epoch, those before a resume included; .inf for never."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)} is not positive")
        if self.lr <= 0 or self.shift < 0 or self.weight_decay < 0:
            given = f"lr: {self.lr}, shift: {self.shift}, weight_decay: {self.weight_decay}"
            raise UserError(f"{given}; lr must be positive and the others not negative")
        if not self.budget_seconds > 0:
            raise UserError(f"budget_seconds: {self.budget_seconds} is not positive; give .inf for no limit")
        check_device_is_there(self.device)


def train_classifier(
    settings: ClassifierTraining, out: Path, report: Report, *, resume: bool = False, overwrite: bool = False
) -> Model:
    """Train, test the last epoch's weights, and save them as a teacher folder at `out`.

    There is a checkpoint after each epoch; after Ctrl-C or a kill `resume` goes on from the last one. Raises UserError
    if the data set is not found, `out` exists without `resume` or `overwrite`, or the checkpoint is of other settings.
    """
    check_teacher_folder(out, resume, overwrite)
    checkpoint = surviving_folder(out / "checkpoint")
    if resume and (out / "config.json").exists() and not checkpoint.exists():
        return finished(settings, out)
    training = _Training(settings, load_dataset(settings.dataset, settings.data, settings.groups), out, report)
    if resume:
        training.restore()
    else:
        shutil.rmtree(out, ignore_errors=True)
    try:
        while training.epoch < settings.epochs and training.seconds < settings.budget_seconds:
            training.run_epoch()
            training.checkpoint()
    except KeyboardInterrupt:
        training.say(f"stopped; go on after epoch {training.epoch} with --resume --out {out}")
        raise
    return training.finish()


def finished(settings: ClassifierTraining, out: Path) -> Model:
    """The teacher of a training that came to its end; raises UserError if it was of other settings."""
    teacher = load_model(out).frozen()
    source = teacher.config.source
    architecture = {"name": settings.model, **settings.arguments}
    asked = {"dataset": settings.dataset, "groups": settings.groups, "epochs": settings.epochs, "seed": settings.seed}
    had = {"groups": "", **{name: source[name] for name in asked if name in source}}
    asked |= {"model": architecture, **{name: getattr(settings, name) for name in OPTIMISATION}}
    had |= {"model": dict(teacher.config.architecture), **source.get("training", {})}
    check_same(asked, had, f"the finished teacher in {out}")
    return teacher


def check_same(asked: Mapping[str, Any], had: Mapping[str, Any], where: str) -> None:
    """Raise UserError for the first setting that is not what it was, as far as that is known."""
    for name, given in asked.items():
        if had.get(name, given) != given:
            raise UserError(f"{name}: {given!r}, but {where} is of {had[name]!r}; give the same or --overwrite")


class _Training:
    def __init__(self, settings: ClassifierTraining, data: Dataset, out: Path, report: Report) -> None:
        self.settings, self.data, self.out, self.report = settings, data, out, report
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            architecture = {"name": settings.model, **settings.arguments}
            self.model = Model(ModelConfig(architecture, data.spec, len(data.class_names), "logits"))
        check_network(self.model, "model")
        self.device = torch.device(settings.device)
        self.model.to(self.device)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
        self.images = torch.from_numpy(data.train_images).to(self.device)
        self.labels = torch.from_numpy(data.train_labels).to(self.device)
        self.batches = math.ceil(len(self.labels) / settings.batch)
        self.epoch, self.seconds = 0, 0.0
        self.accuracy: float | None = None

    def run_epoch(self) -> None:
        """One pass over the training images, then the test."""
        started, before = time.monotonic(), self.seconds
        random = torch.Generator().manual_seed(1_000_003 * self.settings.seed + self.epoch)
        order = torch.randperm(len(self.labels), generator=random)
        self.model.computing(self.settings.bf16, self.settings.channels_last).train()
        for index, chosen in enumerate(torch.split(order, self.settings.batch)):
            self._step(chosen, self.epoch * self.batches + index, random)
            self.seconds = before + time.monotonic() - started
            if index % REPORT_STEPS == REPORT_STEPS - 1:
                self.say(step=index + 1)
        self.epoch += 1
        self.accuracy = self.test()
        self.seconds = before + time.monotonic() - started
        self.say(f"epoch {self.epoch} of {self.settings.epochs}")

    def _step(self, chosen: Tensor, step: int, random: torch.Generator) -> None:
        done = step / (self.settings.epochs * self.batches)
        self.optimiser.param_groups[0]["lr"] = self.settings.lr * 0.5 * (1 + math.cos(math.pi * done))
        # Drawn on the CPU, so that every device trains on the same images.
        chosen = chosen.to(self.device)
        images = shifted(self.images[chosen], self.settings.shift, random)
        if self.settings.flip:
            mirrored = torch.rand(len(chosen), generator=random).to(self.device) < 0.5
            images = torch.where(mirrored.reshape(-1, 1, 1, 1), images.flip(3), images)
        loss = nn.functional.cross_entropy(self.model(images), self.labels[chosen])
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()

    def test(self) -> float:
        """Share of the test images that are classified correctly."""
        self.model.computing(bf16=False, channels_last=False).eval()
        images, labels = torch.from_numpy(self.data.test_images), torch.from_numpy(self.data.test_labels)
        with torch.inference_mode():
            parts = torch.split(images, TEST_BATCH)
            predicted = torch.cat([self.model(part.to(self.device)).argmax(1).cpu() for part in parts])
        return float((predicted == labels).float().mean())

    def checkpoint(self) -> None:
        """Write what `resume` needs; the previous checkpoint stays whole until the new one is."""
        state = {
            "settings": self._lasting_settings(),
            "epoch": self.epoch,
            "seconds": self.seconds,
            "accuracy": self.accuracy,
            "network": self.model.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        self.out.mkdir(parents=True, exist_ok=True)
        with replaced_folder(self.out / "checkpoint") as folder:
            save_tensors(folder / "state.pt", state)

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one; raises UserError if it is of other settings."""
        path = self.out / "checkpoint" / "state.pt"
        if not path.exists():
            return
        # On the CPU: an optimiser's count of steps would stay where it is put, and each step ask the GPU for it.
        state = read_state(path)
        check_same(self._lasting_settings(), state["settings"], f"the checkpoint in {self.out}")
        self.epoch, self.seconds, self.accuracy = state["epoch"], state["seconds"], state["accuracy"]
        self.model.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.say(f"resumed after epoch {self.epoch}")

    def _lasting_settings(self) -> dict[str, Any]:
        """The settings that a resumed training must share with the one it goes on with."""
        return {k: v for k, v in asdict(self.settings).items() if k not in ("data", "budget_seconds", "device")}

    def finish(self) -> Model:
        """Save the teacher; a training that ran to its last epoch needs no checkpoint any more."""
        source = {
            "kind": "classifier",
            "dataset": self.settings.dataset,
            **({"groups": self.settings.groups} if self.settings.groups else {}),
            "test_accuracy": self.accuracy,
            "epochs": self.epoch,
            "seed": self.settings.seed,
            "training": {k: v for k, v in self._lasting_settings().items() if k in OPTIMISATION},
            "wall_seconds": round(self.seconds, 1),
            "versions": {"torch": torch.__version__},
        }
        self.model.config = replace(self.model.config, source=source)
        save_model(self.model, self.out)
        if self.epoch >= self.settings.epochs:
            shutil.rmtree(self.out / "checkpoint", ignore_errors=True)
        return self.model.cpu().frozen()

    def say(self, message: str = "", step: int = 0) -> None:
        """Report the state."""
        self.report(
            Progress(
                seconds=self.seconds,
                budget_seconds=self.settings.budget_seconds,
                steps=self.epoch * self.batches + step,
                metric="test accuracy",
                score=self.accuracy,
                best=self.accuracy,
                message=message,
            )
        )
