"""A plain PyTorch network as a source: `package.module:factory` and a file of weights.

The factory is called as `factory(input_shape, actions, **arguments)`, where the input shape is that of one normalised
observation (channels first for pictures), and returns a `torch.nn.Module`.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gasim_ray.core.model import Model, ModelConfig, load_weights
from gasim_ray.core.observation import ObservationSpec
from gasim_ray.errors import UserError
from gasim_ray.teachers.options import ImportOptions


def recognises(source: str) -> bool:
    """Whether the source reads like `package.module:factory`."""
    module, colon, factory = source.partition(":")
    return bool(colon) and factory.isidentifier() and all(part.isidentifier() for part in module.split("."))


def load(source: str, options: ImportOptions) -> Model:
    """The factory's network with the weights of `options.weights`.

    Raises UserError if an option is missing, a file cannot be read, or the weights do not fit the network.
    """
    for name in ("weights", "observation", "actions"):
        if getattr(options, name) is None:
            raise UserError(f"{name}: missing; a PyTorch source needs --weights, --observation and --actions")
    if "name" in options.arguments:
        raise UserError(
            "arguments: name is what an architecture's own name is kept under; call the factory's setting otherwise"
        )
    assert options.weights is not None
    assert options.observation is not None
    assert options.actions is not None
    config = ModelConfig(
        architecture={"name": source, **options.arguments},
        observation=read_observation(options.observation),
        actions=options.actions,
        outputs=options.outputs,
        source={"kind": "torch", "factory": source, "weights": options.weights.name},
    )
    model = Model(config)
    load_weights(model.network, read_weights(options.weights), f"weights: {options.weights}")
    return model


def read_observation(path: Path) -> ObservationSpec:
    """An ObservationSpec from a JSON or YAML file; raises UserError that names the file."""
    try:
        text = path.read_text()
        fields = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError) as error:
        raise UserError(f"observation: {path} cannot be read ({error})") from error
    if not isinstance(fields, dict):
        raise UserError(f"observation: {path} holds a {type(fields).__name__}; give the fields of an observation")
    try:
        return ObservationSpec.from_json(fields)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from safetensors or `torch.save`; of a pickle only tensors are read, so no code runs.

    Raises UserError if the file is missing, truncated or holds anything else.
    """
    try:
        loaded: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except pickle.UnpicklingError as error:
        raise UserError(
            f"weights: {path} holds more than tensors, or is damaged; save the state dict alone, "
            "torch.save(network.state_dict(), ...)"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"weights: {path} cannot be read ({error}); it is missing or truncated") from error
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise UserError(f"weights: {path} is not a state dict (names and tensors); save network.state_dict()")
    return loaded
