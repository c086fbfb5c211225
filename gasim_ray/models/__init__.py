"""Architectures of students and teachers: one file a family, one line of registration."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import nn

from gasim_ray.errors import UserError, nearest
from gasim_ray.models.chance import Chance
from gasim_ray.models.cnn import CNN
from gasim_ray.models.impala import Impala
from gasim_ray.models.lenet import LeNet5
from gasim_ray.models.mlp import MLP, DuelingMLP
from gasim_ray.models.resnet import ResNet, WideResNet

#: Name -> factory(input_shape, outputs, **settings).
ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "dueling_mlp": DuelingMLP,
    "lenet5": LeNet5,
    "cnn": CNN,
    "impala": Impala,
    "chance": Chance,
    "resnet": ResNet,
    "wide_resnet": WideResNet,
}


def import_module(reference: str, field: str) -> ModuleType:
    """Import the module of a user's `package.module:name`; raises UserError about `field` if that fails."""
    try:
        return importlib.import_module(reference.partition(":")[0])
    except Exception as error:  # importing runs the user's module, which may fail in any way
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{field}: {reference!r} cannot be imported ({reason}); mend the module or the name") from error


def resolve(reference: str, field: str) -> Callable[..., Any]:
    """Import `package.module:name`; raises UserError that says what could not be found."""
    module = import_module(reference, field)
    try:
        factory: Callable[..., Any] = getattr(module, reference.partition(":")[2])
    except AttributeError as error:
        raise UserError(f"{field}: {reference!r} cannot be imported ({error}); mend the module or the name") from error
    return factory


def build_network(architecture: dict[str, Any], input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Make a network that maps (N, *input_shape) to (N, outputs).

    Raises UserError for an unknown name or settings that the factory refuses.
    """
    settings = dict(architecture)
    name = str(settings.pop("name", ""))
    if ":" in name:
        factory = resolve(name, "architecture")
    elif name in ARCHITECTURES:
        factory = ARCHITECTURES[name]
    else:
        hint = nearest(name, ARCHITECTURES)
        raise UserError(f"architecture: {name!r} is not known; {hint} Or give package.module:factory")
    try:
        network = factory(input_shape, outputs, **settings)
    except Exception as error:
        own = isinstance(error, UserError)
        reason = error if own else f"{type(error).__name__}: {error}; give it other settings, or mend it"
        raise UserError(f"architecture: {name} refuses {settings} for input {list(input_shape)}: {reason}") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"architecture: {name} made a {type(network).__name__}; have it return a torch.nn.Module")
    return network
