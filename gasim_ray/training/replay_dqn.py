"""RLlib's DQN with a replay buffer of arrays.

RLlib's own episode buffer cuts every replayed transition out of its episode as an object of its own and puts it through
the learner's connectors: about 0.4 ms for each of them, ten times what the gradient step itself costs on small networks
(measured on Ray 2.60, CPU). Here transitions are rows of arrays. Module, loss, learner, exploration, environment runner
and checkpoints are RLlib's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from ray.rllib.algorithms.dqn import DQN
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.execution.rollout_ops import synchronous_parallel_sample
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    LEARNER_RESULTS,
    NUM_AGENT_STEPS_SAMPLED_LIFETIME,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    TD_ERROR_KEY,
)

Arrays = dict[str, npt.NDArray[Any]]


def n_step_transitions(episode: Any, n: int, gamma: float) -> Arrays:
    """The T transitions of an episode fragment, each over up to `n` steps, in the columns of RLlib's DQN loss.

    Rewards are discounted sums. Near the fragment's end fewer steps are left; `n_step` says how many each has.
    """
    length = len(episode)
    observations, rewards = np.asarray(episode.get_observations()), np.asarray(episode.get_rewards())
    last = np.minimum(np.arange(length) + n, length)
    padded = np.concatenate([rewards, np.zeros(n)])
    sums = sum(gamma**k * padded[k : k + length] for k in range(n))
    return {
        Columns.OBS: observations[:-1],
        Columns.NEXT_OBS: observations[last],
        Columns.ACTIONS: np.asarray(episode.get_actions()),
        Columns.REWARDS: np.asarray(sums, np.float32),
        Columns.TERMINATEDS: (last == length) & bool(episode.is_terminated),
        "n_step": (last - np.arange(length)).astype(np.float32),
    }


class ArrayReplayBuffer:
    """The latest `capacity` transitions as rows of arrays, drawn uniformly."""

    def __init__(self, capacity: int, n_step: int, gamma: float, seed: int) -> None:
        self.capacity, self.n_step, self.gamma = capacity, n_step, gamma
        self.rows: Arrays = {}
        self.added = 0
        self.random = np.random.default_rng(seed)

    def add(self, episodes: list[Any]) -> None:
        """Append every transition of RLlib's episode fragments."""
        for episode in episodes:
            if len(episode) > 0:
                self._append(n_step_transitions(episode, self.n_step, self.gamma))

    def _append(self, fragment: Arrays) -> None:
        if not self.rows:
            self.rows = {k: np.zeros((self.capacity, *v.shape[1:]), v.dtype) for k, v in fragment.items()}
        count = len(fragment[Columns.ACTIONS])
        places = (self.added + np.arange(count)) % self.capacity
        for name, values in fragment.items():
            self.rows[name][places] = values
        self.added += count

    def sample(self, size: int) -> Arrays:
        """`size` transitions with the columns that RLlib's DQN loss reads."""
        chosen = self.random.integers(min(self.added, self.capacity), size=size)
        batch = {name: values[chosen] for name, values in self.rows.items()}
        return batch | {"weights": np.ones(size, np.float32)}

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the filled rows, the count and the random state."""
        filled = {name: values[: self.added] for name, values in self.rows.items()}
        return {"rows": filled, "added": self.added, "random": self.random.bit_generator.state}

    def set_state(self, state: dict[str, Any]) -> None:
        """Inverse of `get_state`."""
        self.rows = {
            name: np.concatenate([v, np.zeros((self.capacity - len(v), *v.shape[1:]), v.dtype)])
            for name, v in state["rows"].items()
        }
        self.added = state["added"]
        self.random.bit_generator.state = state["random"]


class ReplayDQN(DQN):  # type: ignore[misc]
    """DQN whose training step is: sample a fragment, store it, replay `training_intensity` transitions for each."""

    #: What keeps the transitions.
    replay: type[Any] = ArrayReplayBuffer

    def _create_local_replay_buffer_if_necessary(self, config: Any) -> Any:
        return self.replay(
            config["replay_buffer_config"]["capacity"], config["n_step"], config["gamma"], config["seed"] or 0
        )

    def collect(self) -> int:
        """Sample a fragment and store it; returns its number of transitions."""
        episodes, results = synchronous_parallel_sample(
            worker_set=self.env_runner_group, concat=True, _uses_new_env_runners=True, _return_metrics=True
        )
        self.metrics.aggregate(results, key=ENV_RUNNER_RESULTS)
        self.local_replay_buffer.add(episodes)
        return sum(len(episode) for episode in episodes)

    def training_step(self) -> None:
        """One fragment of environment steps, then the gradient steps that it is worth."""
        fresh = self.collect()
        if self.local_replay_buffer.added < self.config.num_steps_sampled_before_learning_starts:
            return
        steps = self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), default=0)
        size = self.config.total_train_batch_size
        updates = max(1, round(fresh * self.config.training_intensity / size))
        rows = SampleBatch(self.local_replay_buffer.sample(updates * size))
        # One call for all of a round's gradient steps: the learner's own bookkeeping costs as much as a step.
        results = self.learner_group.update(
            batch=MultiAgentBatch({DEFAULT_MODULE_ID: rows}, env_steps=updates * size),
            minibatch_size=size,
            timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: steps, NUM_AGENT_STEPS_SAMPLED_LIFETIME: steps},
        )
        for result in results:
            # One entry for each transition, wanted only by prioritised replay.
            result[DEFAULT_MODULE_ID].pop(TD_ERROR_KEY, None)
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        self.env_runner_group.sync_weights(
            from_worker_or_learner_group=self.learner_group, policies=[DEFAULT_MODULE_ID], inference_only=True
        )
