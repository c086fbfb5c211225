"""Our own RLModule for stacked frames (frames, height, width); RLlib's default takes the frames for the height.

One network answers with the policy's logits and, last, with the state's value.
"""

from __future__ import annotations

from typing import Any

from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.utils import make_target_network
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, TargetNetworkAPI
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from gasim_ray.core.model import Model, ModelConfig
from gasim_ray.core.observation import ObservationSpec
from gasim_ray.models.cnn import start_centred

#: Gain of the last layer's rows for the policy: all actions equally likely at first (Huang et al. 2022, "37 details").
POLICY_GAIN = 0.01


class WithTarget(TargetNetworkAPI, InferenceOnlyAPI):  # type: ignore[misc]
    """A module whose `model` has an older copy, `target`, to which its algorithm compares it."""

    model: Model

    def make_target_networks(self) -> None:
        """See TargetNetworkAPI."""
        self.target = make_target_network(self.model)

    def get_target_network_pairs(self) -> list[tuple[Any, Any]]:
        """See TargetNetworkAPI."""
        return [(self.model, self.target)]

    def get_non_inference_attributes(self) -> list[str]:
        """See InferenceOnlyAPI."""
        return ["target"]


class ActorCritic(TorchRLModule, ValueFunctionAPI):  # type: ignore[misc]
    """Any registered architecture; `model_config` has `architecture`, `observation` (as JSON) and `bf16`."""

    def setup(self) -> None:
        """See RLModule."""
        given, self.actions = self.model_config, int(self.action_space.n)
        observation = ObservationSpec.from_json(given["observation"])
        self.model = Model(ModelConfig(given["architecture"], observation, self.actions, "logits", value=True))
        initialise(self.model)
        self.model.computing(given["bf16"], given["bf16"])

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        logits, values = self.model.with_value(batch[Columns.OBS])
        return {Columns.ACTION_DIST_INPUTS: logits, Columns.EMBEDDINGS: values}

    def compute_values(self, batch: dict[str, Any], embeddings: Any | None = None) -> Tensor:
        """See ValueFunctionAPI; the value is computed along with the policy."""
        values: Tensor = self._forward(batch)[Columns.EMBEDDINGS] if embeddings is None else embeddings
        return values


def initialise(model: Model) -> None:
    """Orthogonal weights of gain sqrt 2, no biases; the first convolution's filters see contrasts, not levels.

    The last layer's rows of a policy are small, that of a value has gain 1, and so have all for Q-values.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, 2**0.5)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    if isinstance(layers[0], nn.Conv2d):
        start_centred(layers[0])
    last, actions = layers[-1].weight, model.config.actions
    nn.init.orthogonal_(last[:actions], POLICY_GAIN if model.config.outputs == "logits" else 1.0)
    if model.config.value:
        nn.init.orthogonal_(last[actions:], 1.0)
