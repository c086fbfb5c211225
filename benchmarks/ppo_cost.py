"""What RLlib costs beside a plain PyTorch loop: the same network, games, rounds and PPO update, steps a second."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gasim_ray.config import DistillConfig
from gasim_ray.core.model import Model, ModelConfig
from gasim_ray.core.settings import DEFAULT_SECONDS
from gasim_ray.evaluation.atari import training_games
from gasim_ray.evaluation.environments import environment_spec
from gasim_ray.training.actor_critic import initialise
from gasim_ray.training.algorithms import build_algorithm
from gasim_ray.training.array_ppo import advantages
from gasim_ray.training.recipes import ATARI_PPO, game_network
from gasim_ray.training.rllib import PolicyTraining, policy_observation

GAME = "ALE/Pong-v5"


def steps_per_second(play_round: Callable[[], object], config: DistillConfig) -> float:
    """Environment steps a second of some rounds, after one to warm up."""
    rounds = max(1, round((config.budget.seconds or DEFAULT_SECONDS) / 4))
    play_round()
    started = time.perf_counter()
    for _ in range(rounds):
        play_round()
    return rounds * ATARI_PPO.envs * ATARI_PPO.fragment / (time.perf_counter() - started)


def by_rllib(config: DistillConfig) -> float:
    """Environment steps a second of `gasim teacher train`, evaluations left out."""
    algorithm = build_algorithm(PolicyTraining(GAME, "ppo", bf16=False), policy_observation(GAME))
    try:
        return steps_per_second(algorithm.train, config)
    finally:
        algorithm.stop()


def by_plain_loop(config: DistillConfig) -> float:
    """The same by a loop of our own, without RLlib."""
    return steps_per_second(PlainLoop().round, config)


class PlainLoop:
    """PPO on one game as a few lines of PyTorch, with the recipe of `gasim teacher train`."""

    def __init__(self) -> None:
        _, actions = environment_spec(GAME)
        architecture = game_network("small", 1.0)
        self.model = Model(ModelConfig(architecture, policy_observation(GAME), actions, "logits", value=True))
        initialise(self.model)
        self.optimiser = torch.optim.Adam(self.model.parameters(), ATARI_PPO.lr)
        self.games = training_games(GAME, ATARI_PPO.envs, os.cpu_count() or 1)
        self.now, _ = self.games.reset(seed=0)

    def round(self) -> None:
        """Play `fragment` steps of every game, then learn from them."""
        recipe, count = ATARI_PPO, ATARI_PPO.envs
        seen = np.empty((recipe.fragment, *self.now.shape), np.uint8)
        values = np.empty((recipe.fragment + 1, count), np.float32)
        rewards, ended = np.empty((recipe.fragment, count), np.float32), np.empty((recipe.fragment, count), bool)
        actions, log_probabilities = [], []
        for t in range(recipe.fragment):
            seen[t] = self.now
            with torch.no_grad():
                logits, value = self.model.with_value(torch.from_numpy(self.now))
                log_policy = torch.log_softmax(logits, 1)
                action = torch.multinomial(log_policy.exp(), 1)
            values[t] = value.numpy()
            actions.append(action)
            log_probabilities.append(log_policy.gather(1, action))
            self.now, rewards[t], terminated, truncated, _ = self.games.step(action[:, 0].numpy())
            ended[t] = terminated | truncated
        with torch.no_grad():
            values[-1] = self.model.with_value(torch.from_numpy(self.now))[1].numpy()
        gained = torch.from_numpy(advantages(rewards, values, ended, recipe.gamma, recipe.lambda_)).flatten()
        targets = gained + torch.from_numpy(values[:-1]).flatten()
        gained = (gained - gained.mean()) / gained.std()
        rows = torch.from_numpy(seen).flatten(0, 1)
        for _ in range(recipe.epochs):
            for chosen in torch.split(torch.randperm(len(rows)), recipe.minibatch):
                before = torch.cat(log_probabilities)[chosen]
                self._step(rows[chosen], torch.cat(actions)[chosen], before, gained[chosen], targets[chosen])

    def _step(self, seen: Tensor, actions: Tensor, before: Tensor, gained: Tensor, targets: Tensor) -> None:
        logits, values = self.model.with_value(seen)
        log_policy = torch.log_softmax(logits, 1)
        ratio = (log_policy.gather(1, actions) - before).exp()[:, 0]
        clipped = ratio.clamp(1 - ATARI_PPO.clip, 1 + ATARI_PPO.clip)
        entropy = -(log_policy.exp() * log_policy).sum(1).mean()
        loss = -torch.minimum(gained * ratio, gained * clipped).mean()
        loss = loss + 0.5 * (values - targets).square().mean() - ATARI_PPO.entropy * entropy
        self.optimiser.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        self.optimiser.step()
