"""Atari's games as policies are trained on them: 84 x 84 grey, four frames stacked, one action for four frames.

The preprocessing of Mnih et al. 2015 (maximum over two frames, up to 30 idle frames and FIRE at the start of a game),
in ale-py's own vectorised environment. A game's name is Gymnasium's id, `ALE/Pong-v5`; with
`?sticky=0.25` behind it an action is repeated with that probability (Machado et al. 2018), which is off by default.
"""

from __future__ import annotations

import re
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import numpy.typing as npt
from ale_py import AtariVectorEnv
from gymnasium.vector import AutoresetMode

from gasim_ray.errors import UserError

gym.register_envs(ale_py)

#: Frames in an observation, and frames for each action.
STACK, SKIP = 4, 4
#: The probability of a repeated action that Machado et al. 2018 propose.
STICKY = 0.25


def is_atari(env_id: str) -> bool:
    """Whether the id names one of Atari's games."""
    return env_id.startswith("ALE/")


def with_sticky(env_id: str, sticky: float) -> str:
    """The same game with another probability that an action is repeated."""
    game = env_id.partition("?")[0]
    return f"{game}?sticky={sticky:g}" if sticky else game


def sticky_of(env_id: str) -> float:
    """The probability that an action is repeated; raises UserError for anything else behind the question mark."""
    _, mark, options = env_id.partition("?")
    if not mark:
        return 0.0
    found = re.fullmatch(r"sticky=(0?\.\d+|0)", options)
    if found is None:
        raise UserError(f"env: {options!r} after the ? of {env_id} is not understood; give sticky=0.25, or nothing")
    return float(found[1])


def rom_of(env_id: str) -> str:
    """ale-py's name of the game that Gymnasium's id stands for."""
    return str(gym.spec(env_id.partition("?")[0]).kwargs["game"])


class EvaluationGames(AtariVectorEnv):  # type: ignore[misc]
    """Copies of a game with full rewards and whole episodes; each is reset, and seeded, when the caller says so."""

    def __init__(self, env_id: str, count: int) -> None:
        super().__init__(
            rom_of(env_id),
            count,
            num_threads=1,
            autoreset_mode=AutoresetMode.NEXT_STEP,
            frameskip=SKIP,
            stack_num=STACK,
            repeat_action_probability=sticky_of(env_id),
            reward_clipping=False,
        )

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
        """As Gymnasium's other vector environments take it: a seed, or None, for every copy."""
        if isinstance(seed, list):
            mask = np.ones(self.num_envs, bool) if options is None else options["reset_mask"]
            seed = np.array([-1 if s is None else s % 2**31 for s, reset in zip(seed, mask, strict=True) if reset])
        observations, info = super().reset(seed=seed, options=options)
        return observations, info


def training_games(env_id: str, count: int, threads: int) -> AtariVectorEnv:
    """Copies of a game that start anew by themselves, rewards clipped to -1, 0 and 1.

    A lost life ends the return, but the game goes on (Mnih et al. 2015).
    """
    return AtariVectorEnv(
        rom_of(env_id),
        count,
        num_threads=threads,
        autoreset_mode=AutoresetMode.SAME_STEP,
        frameskip=SKIP,
        stack_num=STACK,
        repeat_action_probability=sticky_of(env_id),
        life_loss_info=True,
        reward_clipping=True,
    )
