"""RLlib's PPO with rollouts as arrays.

RLlib's own environment runner keeps an object for every step of every episode and puts each through connectors: for
pictures that costs more than playing and learning together. Here a vector environment steps at once and a round is
a few arrays, as in a plain PyTorch loop. Module, loss, learner, optimiser, schedules and checkpoints are RLlib's.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ray.rllib.algorithms.ppo import PPO
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.framework import get_device
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    EPISODE_RETURN_MEAN,
    LEARNER_RESULTS,
    NUM_AGENT_STEPS_SAMPLED_LIFETIME,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
)
from scipy.special import log_softmax

from gasim_ray.evaluation.atari import training_games

Floats = npt.NDArray[np.float32]
Rows = dict[str, npt.NDArray[Any]]


def advantages(rewards: Floats, values: Floats, ended: npt.NDArray[np.bool_], gamma: float, lambda_: float) -> Floats:
    """Generalised advantage estimates (T, N) of Schulman et al. 2016, equation 16.

    rewards, ended: (T, N), of the step from state t; values: (T + 1, N), of the states, the last one included.
    """
    going_on = 1.0 - ended.astype(np.float32)
    errors = rewards + gamma * values[1:] * going_on - values[:-1]
    found, carried = np.zeros_like(rewards), np.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        carried = errors[t] + gamma * lambda_ * going_on[t] * carried
        found[t] = carried
    return found


class GameRunner(SingleAgentEnvRunner):  # type: ignore[misc]
    """Plays its games side by side and gives every round as rows of arrays."""

    def make_env(self) -> None:
        """See EnvRunner."""
        alone = self.config.num_env_runners == 0
        self.num_envs = self.config.num_envs_per_env_runner
        self.env = training_games(self.config.env, self.num_envs, (os.cpu_count() or 1) if alone else 1)
        if alone:  # beside the learner: where that computes; RLlib would leave it to the CPU
            self._device = get_device(self.config, self.config.num_gpus_per_learner)
        self.observations: npt.NDArray[np.uint8] | None = None
        self.random = np.random.default_rng()
        self.score = np.zeros(self.num_envs)

    def sample(self, **_: Any) -> list[Any]:
        """One round as one set of rows, advantages included."""
        played, values, ended = self.play()
        gained = advantages(played.pop(Columns.REWARDS), values, ended, self.config.gamma, self.config.lambda_)
        rows = {
            **played,
            Postprocessing.ADVANTAGES: gained,
            Postprocessing.VALUE_TARGETS: gained + values[:-1],
        }
        return [{name: array.reshape(-1, *array.shape[2:]) for name, array in rows.items()}]

    def play(self) -> tuple[Rows, Floats, npt.NDArray[np.bool_]]:
        """A round of `rollout_fragment_length` steps of every game under the policy: rows (steps, games, ...) of what
        was seen, answered, done and gained; values (steps + 1, games) of the states; and whether it ended there.
        """
        now = self.begin()
        steps = self.config.get_rollout_fragment_length(self.worker_index)
        seen = np.empty((steps, *now.shape), np.uint8)
        logits = np.empty((steps, self.num_envs, self.module.actions), np.float32)
        values = np.empty((steps + 1, self.num_envs), np.float32)
        actions = np.empty((steps, self.num_envs), np.int64)
        rewards = np.empty((steps, self.num_envs), np.float32)
        ended = np.empty((steps, self.num_envs), bool)
        for t in range(steps):
            seen[t] = now
            logits[t], values[t] = self._answers(now)
            # The largest of logits with Gumbel noise is a draw from their policy.
            noise = -np.log(-np.log(self.random.uniform(1e-9, 1.0, logits[t].shape)))
            actions[t] = (logits[t] + noise).argmax(1)
            now, rewards[t], terminated, truncated, _ = self.env.step(actions[t])
            # Cut off after half an hour of play is so rare that it counts as an end.
            ended[t] = terminated | truncated
            self.count(rewards[t], ended[t])
        self.end(now, actions.size)
        values[steps] = self._answers(now)[1]
        chosen = np.take_along_axis(log_softmax(logits, axis=-1), actions[..., None], 2)[..., 0]
        played = {
            Columns.OBS: seen,
            Columns.ACTIONS: actions,
            Columns.ACTION_DIST_INPUTS: logits,
            Columns.ACTION_LOGP: chosen,
            Columns.REWARDS: rewards,
        }
        return played, values, ended

    def begin(self) -> npt.NDArray[np.uint8]:
        """What the games show, which are started if they are not under way."""
        if self.observations is None:
            # Of this runner and this sitting alone.
            source = np.random.SeedSequence(
                (self.config.seed or 0, self.worker_index, self.num_env_steps_sampled_lifetime)
            )
            self.random = np.random.default_rng(source)
            self.observations, _ = self.env.reset(seed=self.random.integers(2**31, size=self.num_envs))
        return self.observations

    def end(self, observations: npt.NDArray[np.uint8], steps: int) -> None:
        """Keep what the games show after so many steps of all of them together."""
        self.observations = observations
        self.num_env_steps_sampled_lifetime += steps
        self.metrics.log_value(NUM_ENV_STEPS_SAMPLED_LIFETIME, steps, reduce="lifetime_sum")

    def _answers(self, observations: npt.NDArray[np.uint8]) -> tuple[Floats, Floats]:
        given = {Columns.OBS: torch.from_numpy(observations).to(self._device)}
        answered = self.module.forward_exploration(given)
        return answered[Columns.ACTION_DIST_INPUTS].cpu().numpy(), answered[Columns.EMBEDDINGS].cpu().numpy()

    def count(self, rewards: Floats, ended: npt.NDArray[np.bool_]) -> None:
        """Note the returns of episodes that have ended."""
        self.score += rewards
        for score in self.score[ended]:
            self.metrics.log_value(EPISODE_RETURN_MEAN, score, window=100)
        self.score[ended] = 0


class ArrayPPO(PPO):  # type: ignore[misc]
    """PPO whose training step is: a round of every runner, then epochs over all rows."""

    def training_step(self) -> None:
        """See Algorithm."""
        rounds = self.env_runner_group.foreach_env_runner(
            lambda runner: (runner.sample(), runner.get_metrics()), local_env_runner=self.config.num_env_runners == 0
        )
        self.metrics.aggregate([metrics for _, metrics in rounds], key=ENV_RUNNER_RESULTS)
        rows = {name: np.concatenate([sampled[0][name] for sampled, _ in rounds]) for name in rounds[0][0][0]}
        gained = rows[Postprocessing.ADVANTAGES]
        rows[Postprocessing.ADVANTAGES] = (gained - gained.mean()) / max(1e-4, float(gained.std()))
        steps = self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), default=0)
        results = self.learner_group.update(
            batch=MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(rows)}, env_steps=len(gained)),
            timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: steps, NUM_AGENT_STEPS_SAMPLED_LIFETIME: steps},
            num_epochs=self.config.num_epochs,
            minibatch_size=self.config.minibatch_size,
            shuffle_batch_per_epoch=True,
        )
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        self.env_runner_group.sync_weights(
            from_worker_or_learner_group=self.learner_group, policies=[DEFAULT_MODULE_ID], inference_only=True
        )
