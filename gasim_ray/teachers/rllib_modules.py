"""RLlib's default modules rewritten as this project's architectures; reads PyTorch modules only, imports no RLlib."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gasim_ray.core.model import Model, ModelConfig, OutputKind, load_weights
from gasim_ray.core.observation import ObservationSpec
from gasim_ray.errors import UserError
from gasim_ray.models.cnn import feature_shape
from gasim_ray.models.mlp import ACTIVATIONS

Weights = dict[str, Tensor]


def model_from_module(module: Any, observation: ObservationSpec, source: dict[str, Any]) -> Model:
    """A model whose outputs are the module's logits, or its Q-values for DQN.

    Raises UserError for a module that is not one of RLlib's defaults, or that has a continuous action space.
    """
    actions = getattr(module.action_space, "n", None)
    if actions is None:
        raise UserError(
            f"source: the policy's action space is {module.action_space}; only discrete actions are supported"
        )
    is_q = hasattr(module, "af")
    try:
        architecture, weights = (
            _dueling(module, observation) if is_q else _plain(module.encoder, module.pi, observation)
        )
    except (AttributeError, TypeError, IndexError, KeyError) as error:
        raise UserError(
            f"source: the module {type(module).__name__} is not built as RLlib's own are ({error}); save its "
            "state_dict and import it as package.module:factory with --weights. A teacher that `gasim teacher train` "
            "has made needs no import"
        ) from error
    outputs: OutputKind = "q_values" if is_q else "logits"
    model = Model(ModelConfig(architecture, observation, int(actions), outputs, source=source))
    load_weights(model.network, {k: v.detach().clone() for k, v in weights.items()}, "source")
    return model.frozen()


@dataclass(frozen=True)
class _Dense:
    """A stack of linear layers and what follows each of them."""

    linears: list[nn.Linear]
    activations: list[str | None]

    def joined(self, after: _Dense) -> _Dense:
        return _Dense(self.linears + after.linears, self.activations + after.activations)

    @property
    def sizes(self) -> list[int]:
        return [layer.out_features for layer in self.linears]

    def activation(self, count: int, where: str) -> str:
        """The one activation after the first `count` layers."""
        names = set(self.activations[:count]) or {"relu"}
        name = next(iter(names))
        if len(names) > 1 or name is None:
            raise UserError(
                f"source: {where} mixes activations ({', '.join(str(n) for n in self.activations)}); "
                "use one for all hidden layers (fcnet_activation, head_fcnet_activation)"
            )
        return name

    def weights(self, prefix: str) -> Weights:
        """Under the names that `gasim_ray.models.mlp.dense` gives: every second place is an activation."""
        named: Weights = {}
        for index, layer in enumerate(self.linears):
            named[f"{prefix}.{2 * index}.weight"] = layer.weight
            named[f"{prefix}.{2 * index}.bias"] = _bias(layer)
        return named


def _bias(layer: nn.Linear | nn.Conv2d) -> Tensor:
    return layer.bias if layer.bias is not None else torch.zeros(layer.weight.shape[0])


def _activation_name(layer: nn.Module) -> str:
    for name, kind in ACTIVATIONS.items():
        if type(layer) is kind:
            return name
    raise UserError(
        f"source: a layer {type(layer).__name__} is not supported; known beside linear and convolution: "
        + ", ".join(ACTIVATIONS)
    )


def _read_dense(layers: nn.Module) -> _Dense:
    read = _Dense([], [])
    for layer in layers.children():
        if isinstance(layer, nn.Linear):
            read.linears.append(layer)
            read.activations.append(None)
        else:
            read.activations[-1] = _activation_name(layer)
    return read


def _read_convolutions(layers: nn.Module) -> tuple[list[list[Any]], list[nn.Conv2d], str]:
    """Filters as `gasim_ray.models.cnn` has them, the layers, and their one activation."""
    filters: list[list[Any]] = []
    convolutions: list[nn.Conv2d] = []
    activations: set[str] = set()
    padding = [0, 0, 0, 0]
    for layer in layers.children():
        if isinstance(layer, nn.ZeroPad2d):
            padding = list(layer.padding)
        elif isinstance(layer, nn.Conv2d):
            filters.append([layer.out_channels, list(layer.kernel_size), list(layer.stride), padding])
            convolutions.append(layer)
            padding = [0, 0, 0, 0]
        else:
            activations.add(_activation_name(layer))
    if len(activations) != 1:
        raise UserError(f"source: the convolutions' activations are {sorted(activations)}; one for all is supported")
    return filters, convolutions, activations.pop()


def _actor(encoder: Any) -> Any:
    """The encoder that the policy reads: PPO's have one shared with the value function, or one of their own."""
    actor = getattr(encoder, "actor_encoder", None) or getattr(encoder, "encoder", None) or encoder
    if not hasattr(actor, "net"):
        raise UserError(
            f"source: the encoder {type(actor).__name__} is not supported; RLlib's default MLP and CNN encoders are"
        )
    return actor


def _plain(encoder: Any, head: Any, observation: ObservationSpec) -> tuple[dict[str, Any], Weights]:
    net, tail = _actor(encoder).net, _read_dense(head.net.mlp)
    if hasattr(net, "mlp"):
        whole = _read_dense(net.mlp).joined(tail)
        hidden = whole.sizes[:-1]
        activation = whole.activation(len(hidden), "the policy")
        return {"name": "mlp", "hidden": hidden, "activation": activation}, whole.weights("layers")
    architecture, weights = _convolutional(net, tail)
    return architecture, weights | _after_flatten(tail, "head", architecture, observation)


def _dueling(module: Any, observation: ObservationSpec) -> tuple[dict[str, Any], Weights]:
    if module.num_atoms > 1:
        raise UserError(f"source: num_atoms is {module.num_atoms}; distributional Q-values are not supported")
    if not module.uses_dueling:
        return _plain(module.encoder, module.af, observation)
    net = _actor(module.encoder).net
    advantage, value = _read_dense(module.af.net.mlp), _read_dense(module.vf.net.mlp)
    if not hasattr(net, "mlp"):
        architecture, weights = _convolutional(net, advantage)
        for name, stream in (("head", advantage), ("value", value)):
            weights |= _after_flatten(stream, name, architecture, observation)
        return architecture | {"dueling": True}, weights
    encoder = _read_dense(net.mlp)
    architecture = {
        "name": "dueling_mlp",
        "hidden": encoder.sizes,
        "stream_hidden": advantage.sizes[:-1],
        "activation": encoder.activation(len(encoder.sizes), "the encoder"),
        "stream_activation": advantage.activation(len(advantage.sizes) - 1, "the head"),
    }
    return architecture, encoder.weights("encoder") | advantage.weights("advantage") | value.weights("value")


def _convolutional(net: Any, head: _Dense) -> tuple[dict[str, Any], Weights]:
    filters, convolutions, activation = _read_convolutions(net[0].cnn)
    architecture = {
        "name": "cnn",
        "filters": filters,
        "hidden": head.sizes[:-1],
        "activation": activation,
        "hidden_activation": head.activation(len(head.sizes) - 1, "the head"),
    }
    weights: Weights = {}
    for index, layer in enumerate(convolutions):
        weights[f"convolutions.{index}.weight"], weights[f"convolutions.{index}.bias"] = layer.weight, _bias(layer)
    return architecture, weights


def _after_flatten(head: _Dense, name: str, architecture: dict[str, Any], observation: ObservationSpec) -> Weights:
    """Dense layers after the convolutions: RLlib flattens (height, width, channels), we (channels, height, width)."""
    weights = head.weights(name)
    channels, height, width = feature_shape(observation.network_shape, architecture["filters"])
    first = weights[f"{name}.0.weight"]
    reordered = first.reshape(-1, height, width, channels).permute(0, 3, 1, 2).reshape(first.shape)
    return weights | {f"{name}.0.weight": reordered}
