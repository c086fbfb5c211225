"""RLlib's DQN for Atari's games: every step is kept once, as rows of arrays, and games are played side by side.

Module, loss, target network, learner and checkpoints are RLlib's; the replay is not part of a checkpoint, since it is
gigabytes, and fills anew after a resume. Mnih et al. 2015; double (van Hasselt et al. 2016), several steps a target.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.dqn.dqn_learner import QF_NEXT_PREDS, QF_PREDS, QF_TARGET_NEXT_PREDS
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import QNetAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME

from gasim_ray.core.model import Model, ModelConfig
from gasim_ray.core.observation import ObservationSpec
from gasim_ray.training.actor_critic import WithTarget, initialise
from gasim_ray.training.array_ppo import GameRunner, Rows
from gasim_ray.training.replay_dqn import ReplayDQN


class GameQ(TorchRLModule, QNetAPI, WithTarget):  # type: ignore[misc]
    """Any registered architecture as a Q-network; `model_config` as that of ActorCritic."""

    def setup(self) -> None:
        """See RLModule."""
        given = self.model_config
        observation = ObservationSpec.from_json(given["observation"])
        self.model = Model(ModelConfig(given["architecture"], observation, int(self.action_space.n), "q_values"))
        initialise(self.model)
        self.model.computing(given["bf16"], given["bf16"])

    def compute_q_values(self, batch: dict[str, Any]) -> dict[str, Any]:
        """See QNetAPI."""
        return {QF_PREDS: self.model(batch[Columns.OBS])}

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        return self.compute_q_values(batch)

    def _forward_train(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        now, after = self.model(torch.cat([batch[Columns.OBS], batch[Columns.NEXT_OBS]])).chunk(2)
        aim = self.forward_target({Columns.OBS: batch[Columns.NEXT_OBS]})[QF_PREDS]
        return {QF_PREDS: now, QF_NEXT_PREDS: after, QF_TARGET_NEXT_PREDS: aim}

    def forward_target(self, batch: dict[str, Any]) -> dict[str, Any]:
        """See TargetNetworkAPI."""
        return {QF_PREDS: self.target(batch[Columns.OBS])}


class GreedyRunner(GameRunner):
    """Plays the action of the highest Q-value, and a random one with a probability that falls as it is configured."""

    def sample(self, taken: int = 0, **_: Any) -> list[Rows]:
        """One round as rows (steps, games, ...): what was seen, done and gained, and whether it ended there.

        taken: steps that all runners took before, by which the probability of a random action falls.
        """
        now = self.begin()
        steps = self.config.get_rollout_fragment_length(self.worker_index)
        times, shares = zip(*self.config.epsilon, strict=True)
        epsilon = np.interp(taken, times, shares)
        rows: Rows = {
            Columns.OBS: np.empty((steps, *now.shape), np.uint8),
            Columns.ACTIONS: np.empty((steps, self.num_envs), np.int64),
            Columns.REWARDS: np.empty((steps, self.num_envs), np.float32),
            Columns.TERMINATEDS: np.empty((steps, self.num_envs), bool),
        }
        for t in range(steps):
            values = self.module.forward_inference({Columns.OBS: torch.from_numpy(now).to(self._device)})[QF_PREDS]
            anything = self.random.integers(values.shape[1], size=self.num_envs)
            greedy = values.argmax(1).cpu().numpy()
            rows[Columns.OBS][t] = now
            rows[Columns.ACTIONS][t] = np.where(self.random.random(self.num_envs) < epsilon, anything, greedy)
            now, rows[Columns.REWARDS][t], terminated, truncated, _ = self.env.step(rows[Columns.ACTIONS][t])
            rows[Columns.TERMINATEDS][t] = terminated | truncated
            self.count(rows[Columns.REWARDS][t], rows[Columns.TERMINATEDS][t])
        self.end(now, steps * self.num_envs)
        return [rows]


class GameReplay:
    """The latest steps of every game, in the order in which they were played; transitions are drawn uniformly."""

    def __init__(self, capacity: int, n_step: int, gamma: float, seed: int) -> None:
        self.capacity, self.n_step, self.gamma = capacity, n_step, gamma
        self.random = np.random.default_rng(seed)
        self.rows: Rows = {}
        #: Transitions ever added.
        self.added = 0

    def add(self, rows: Rows) -> None:
        """Append successive steps (steps, games, ...); as many games each time."""
        steps, games = rows[Columns.ACTIONS].shape
        if not self.rows:
            length = max(steps + self.n_step + 1, self.capacity // games)
            self.rows = {name: np.empty((length, *array.shape[1:]), array.dtype) for name, array in rows.items()}
        places = (self.added // games + np.arange(steps)) % len(self.rows[Columns.ACTIONS])
        for name, array in rows.items():
            self.rows[name][places] = array
        self.added += steps * games

    def sample(self, size: int) -> Rows:
        """`size` transitions over `n_step` steps with the columns that RLlib's DQN loss reads."""
        length, games = self.rows[Columns.ACTIONS].shape
        played = self.added // games
        oldest = max(0, played - length)
        step = self.random.integers(oldest, played - self.n_step, size)
        game = self.random.integers(games, size=size)
        rewards, ended = np.zeros(size, np.float32), np.zeros(size, bool)
        for k in range(self.n_step):
            place = (step + k) % length
            rewards += self.gamma**k * self.rows[Columns.REWARDS][place, game] * ~ended
            ended |= self.rows[Columns.TERMINATEDS][place, game]
        seen = self.rows[Columns.OBS]
        return {
            Columns.OBS: seen[step % length, game],
            Columns.NEXT_OBS: seen[(step + self.n_step) % length, game],
            Columns.ACTIONS: self.rows[Columns.ACTIONS][step % length, game],
            Columns.REWARDS: rewards,
            Columns.TERMINATEDS: ended,
            "n_step": np.full(size, self.n_step, np.float32),
            "weights": np.ones(size, np.float32),
        }


class GameDQN(ReplayDQN):
    """ReplayDQN on games."""

    replay: type[Any] = GameReplay

    def collect(self) -> int:
        """See ReplayDQN."""
        taken = self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), default=0)
        rounds = self.env_runner_group.foreach_env_runner(
            lambda runner: (runner.sample(taken), runner.get_metrics()),
            local_env_runner=self.config.num_env_runners == 0,
        )
        self.metrics.aggregate([metrics for _, metrics in rounds], key=ENV_RUNNER_RESULTS)
        rows = {name: np.concatenate([sampled[0][name] for sampled, _ in rounds], axis=1) for name in rounds[0][0][0]}
        self.local_replay_buffer.add(rows)
        return int(rows[Columns.ACTIONS].size)
