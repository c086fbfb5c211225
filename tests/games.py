"""A policy for Pong, for those tests that play it or learn from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from gasim_ray.core.model import Model, ModelConfig
from gasim_ray.evaluation.environments import environment_spec
from gasim_ray.training.actor_critic import initialise
from gasim_ray.training.recipes import game_network

PONG = "ALE/Pong-v5"
TINY = 0.25


def policy(seed: int = 0, width: float = TINY, value: bool = True, **observation: Any) -> Model:
    """An untrained policy for Pong, of a quarter of the channels."""
    spec, actions = environment_spec(PONG)
    spec = replace(spec, std=(255.0,), **observation)
    torch.manual_seed(seed)
    model = Model(ModelConfig(game_network("small", width), spec, actions, "logits", value=value))
    initialise(model)
    return model.frozen()
