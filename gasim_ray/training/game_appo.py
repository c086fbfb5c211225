"""RLlib's APPO for Atari's games: games are played side by side as arrays, and each game's round is one episode object.

Training step, module interface, V-trace loss, learner thread and checkpoints are RLlib's (Luo et al. 2020).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import TARGET_NETWORK_ACTION_DIST_INPUTS
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer

from gasim_ray.training.actor_critic import ActorCritic, WithTarget
from gasim_ray.training.array_ppo import GameRunner, Rows


class TargetActorCritic(ActorCritic, WithTarget):
    """ActorCritic with an older copy of itself."""

    def forward_target(self, batch: dict[str, Any]) -> dict[str, Any]:
        """See TargetNetworkAPI."""
        return {TARGET_NETWORK_ACTION_DIST_INPUTS: self.target.with_value(batch[Columns.OBS])[0]}


class EpisodeRunner(GameRunner):
    """Gives every round as episodes, one for each stretch of a game between two ends."""

    def sample(self, **_: Any) -> list[Any]:
        """See GameRunner."""
        played, _values, ended = self.play()
        assert self.observations is not None
        seen = np.concatenate([played.pop(Columns.OBS), self.observations[None]])
        episodes = []
        for game in range(self.num_envs):
            of_game = {name: steps[:, game] for name, steps in played.items()}
            episodes += stretches(seen[:, game], of_game, ended[:, game])
        return episodes


def stretches(seen: npt.NDArray[Any], played: Rows, ended: npt.NDArray[np.bool_]) -> list[SingleAgentEpisode]:
    """One game's steps as RLlib's episodes, of which all but the last ended.

    seen: (steps + 1, ...), what was seen before each step and after the last; played: (steps, ...) each; ended: bool
    (steps,). What is seen after an end is already the next stretch's first, and RLlib does not look at it.
    """
    ends = [*(np.flatnonzero(ended) + 1).tolist(), len(ended)]
    starts = [0, *ends[:-1]]
    return [
        SingleAgentEpisode(
            observations=InfiniteLookbackBuffer(seen[start : end + 1]),
            actions=InfiniteLookbackBuffer(played[Columns.ACTIONS][start:end]),
            rewards=InfiniteLookbackBuffer(played[Columns.REWARDS][start:end]),
            terminated=bool(ended[end - 1]),
            extra_model_outputs={
                name: InfiniteLookbackBuffer(played[name][start:end])
                for name in (Columns.ACTION_DIST_INPUTS, Columns.ACTION_LOGP)
            },
            len_lookback_buffer=0,
        )
        for start, end in zip(starts, ends, strict=True)
        if end > start
    ]
