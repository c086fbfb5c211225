"""Networks and configurations small enough to distil in a test."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from gasim_ray.core.model import Model, ModelConfig, OutputKind
from gasim_ray.core.observation import ObservationSpec

VECTOR = ObservationSpec((4,), "float32", "vector", (-1.0, None, -2.0, 0.0), (1.0, None, 2.0, 5.0), (0.1,), (0.5,))
GREY = ObservationSpec((1, 28, 28), "uint8", "CHW", (0.0,), (255.0,), (33.0,), (78.0,))
COLOUR = ObservationSpec((3, 32, 32), "float32", "CHW", (0.0,), (1.0,), (0.5, 0.4, 0.3), (0.2, 0.2, 0.3))
ATARI = ObservationSpec((84, 84, 4), "uint8", "HWC", (0.0,), (255.0,), (0.0,), (255.0,), stack=4)
SPECS = {"vector": VECTOR, "28x28x1": GREY, "32x32x3": COLOUR, "84x84x4": ATARI}

#: Of each kind of spec, an architecture that takes no time.
SMALL_NETWORK: dict[str, Any] = {"name": "mlp", "hidden": [8]}
SMALL_CNN: dict[str, Any] = {"name": "cnn", "filters": [[4, 8, 4]], "hidden": [8]}
SMALL_RESNET: dict[str, Any] = {"name": "wide_resnet", "depth": 10, "width": 1}


def small_architecture(spec: ObservationSpec) -> dict[str, Any]:
    """A student or teacher for these observations."""
    return SMALL_CNN if spec.is_image else SMALL_NETWORK


def model(spec: ObservationSpec, actions: int = 3, outputs: OutputKind = "logits", seed: int = 0) -> Model:
    """A frozen network with weights of its own, wide awake: its answers differ from observation to observation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = Model(ModelConfig(small_architecture(spec), spec, actions, outputs))
        for parameter in made.parameters():
            parameter.data.mul_(3.0)
    return made.frozen()


def through_file(state: Any) -> Any:
    """A state as it comes back from a checkpoint."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def tree(teacher: Any, **changed: Any) -> dict[str, Any]:
    """A configuration of a distillation that is over in a moment; nested sections are merged."""
    tree: dict[str, Any] = {
        "teacher": str(teacher),
        "student": {"architecture": SMALL_NETWORK, "batch_size": 32, "steps": 2},
        "generator": {"batch_size": 32, "actors": 2, "prior": ["uniform"], "cpus": 0.5},
        "pool": {"capacity": 2_000},
        "budget": {"student_steps": 40},
    }
    for key, value in changed.items():
        tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
    return tree


def assert_within(observations: torch.Tensor, spec: ObservationSpec) -> None:
    """The observations are finite and inside the space's bounds, but for rounding."""
    low, high = spec.bounds()
    slack = 1e-5 * (high - low)
    assert bool(torch.isfinite(observations).all())
    assert bool(((observations >= low - slack) & (observations <= high + slack)).all())


def rows_of(run: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.csv."""
    header, *rows = (run / "metrics.csv").read_text().splitlines()
    return [dict(zip(header.split(","), map(float, row.split(",")), strict=True)) for row in rows]


def student_of(run: Path) -> bytes:
    """A run's student, as it lies on disk."""
    return (run / "student" / "model.safetensors").read_bytes()
