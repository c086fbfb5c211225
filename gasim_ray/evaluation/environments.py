"""Gymnasium environments by id: what they show, which actions they take, and whether a model fits them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from difflib import get_close_matches

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode

from gasim_ray.core.model import ModelConfig
from gasim_ray.core.observation import Layout, ObservationSpec
from gasim_ray.errors import UserError, one_line
from gasim_ray.evaluation.atari import SKIP, STACK, EvaluationGames, is_atari
from gasim_ray.models import import_module

#: Some environments state a bound that is the largest float instead of infinity: none at all, in effect.
_EFFECTIVELY_INFINITE = 1e30


def check_known(env_id: str) -> None:
    """Raise UserError, with the nearest id, unless Gymnasium knows the environment.

    `package.module:Id` imports the module first, which registers it, as `gymnasium.make` does.
    """
    name = env_id.partition("?")[0]
    if ":" in name:
        import_module(name, "env")
        name = name.partition(":")[2]
    try:
        gym.spec(name)
    except (gym.error.Error, ImportError) as error:
        near = nearest_id(name, gym.registry)
        hint = f"did you mean {near!r}?" if near else "`gymnasium.pprint_registry()` lists the known ones"
        raise UserError(f"env: Gymnasium does not know {env_id!r}; {hint}") from error


def nearest_id(env_id: str, known: Iterable[str]) -> str | None:
    """The known id whose name is most like that of `env_id`, in its newest version; None if none is like it."""
    newest: dict[str, tuple[int, str]] = {}
    for candidate in known:
        name, version = _name_and_version(candidate)
        newest[name] = max(newest.get(name, (-1, "")), (version, candidate))
    matches = get_close_matches(_name_and_version(env_id)[0], newest, n=1)
    return newest[matches[0]][1] if matches else None


def _name_and_version(env_id: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.*)-v(\d+)", env_id)
    return (match[1].lower(), int(match[2])) if match else (env_id.lower(), 0)


def make_environments(env_id: str, count: int) -> gym.vector.VectorEnv:
    """`count` copies of an environment, stepped in this process; Atari's games as evaluation.atari shows them.

    The caller begins, and seeds, the next episode of one that has ended by `reset(options={"reset_mask": ...})`, before
    the next step.

    Raises UserError if the id is not known, what it needs is not installed, or its actions are not discrete.
    """
    check_known(env_id)
    if is_atari(env_id):
        return EvaluationGames(env_id, count)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a newer version: the one that was asked for is the one to measure
            environments = gym.make_vec(
                env_id,
                num_envs=count,
                vectorization_mode="sync",
                vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED},
                disable_env_checker=True,
            )
    except Exception as error:  # whatever an environment of the user's raises
        why = one_line(f"{type(error).__name__}: {error}")
        raise UserError(f"env: {env_id} cannot be made ({why})") from error
    if not isinstance(environments.single_action_space, Discrete):
        space = environments.single_action_space
        environments.close()
        raise UserError(f"env: the actions of {env_id} are {space}; only discrete actions are supported")
    return environments


def environment_spec(env_id: str) -> tuple[ObservationSpec, int]:
    """What an environment shows, without normalisation, and its number of actions; only Atari's games stack frames.

    Raises UserError if the id is not known, its actions are not discrete or its observations are no vector or image.
    """
    environments = make_environments(env_id, 1)
    space, actions = environments.single_observation_space, int(environments.single_action_space.n)
    environments.close()
    if not isinstance(space, Box) or len(space.shape) not in (1, 3):
        raise UserError(f"env: the observations of {env_id} are {space}; only vectors and images are supported")
    layout: Layout = "vector"
    if len(space.shape) == 3:
        layout = "HWC" if space.shape[-1] <= space.shape[0] else "CHW"
    stack, skip = (STACK, SKIP) if is_atari(env_id) else (1, 0)
    return (
        ObservationSpec(
            shape=tuple(int(n) for n in space.shape),
            dtype="uint8" if space.dtype == np.uint8 else "float32",
            layout=layout,
            low=_bounds(space.low, layout),
            high=_bounds(space.high, layout),
            stack=stack,
            skip=skip,
        ),
        actions,
    )


def _bounds(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]], layout: Layout) -> tuple[float | None, ...]:
    kept = values if layout == "vector" else np.unique(values)
    if layout != "vector" and kept.size > 1:
        raise UserError("env: an image whose pixels have different bounds is not supported")
    return tuple(None if abs(float(v)) > _EFFECTIVELY_INFINITE else float(v) for v in kept)


def check_environment(env_id: str, model: ModelConfig, who: str) -> None:
    """Raise UserError, naming both sides, unless the model reads what the environment shows and has its actions.

    A model with a frame stack fits an environment that shows single frames, and one that stacks them itself. A model
    that was trained on one of Atari's games fits no other, whose actions may mean something else.
    """
    spec, actions = environment_spec(env_id)
    read = model.observation
    fitting = {read.shape, frame_shape(read)} if spec.stack == 1 else {read.shape}
    if spec.shape not in fitting:
        raise UserError(
            f"env: {env_id} shows observations of {list(spec.shape)}, the {who} reads {list(read.shape)}"
            + (f" in {read.stack} frames" if read.stack > 1 else "")
            + "; give the --env it was trained on"
            + (", or package.module:Id if a wrapper made its pictures" if is_atari(env_id) else "")
        )
    of_pictures = ("low", "high") if read.is_image else ()
    of_games = ("stack", "skip") if is_atari(env_id) else ()  # what others skip, they do not tell
    for what in ("dtype", "layout", *of_games, *of_pictures):
        shown, wanted = getattr(spec, what), getattr(read, what)
        if shown != wanted:
            raise UserError(
                f"env: {env_id} shows observations of {what} {shown}, the {who} reads {what} {wanted}; "
                "give the --env it was trained on"
            )
    if actions != model.actions:
        raise UserError(
            f"env: {env_id} has {actions} actions, the {who} has {model.actions}; give the --env it was trained on"
        )
    trained_on = str(model.source.get("environment", ""))
    if is_atari(env_id) and is_atari(trained_on) and _game(env_id) != _game(trained_on):
        raise UserError(f"env: the {who} was trained on {trained_on}, not on {env_id}; give that, or another {who}")


def _game(env_id: str) -> str:
    return _name_and_version(env_id.partition("?")[0])[0]


def frame_shape(spec: ObservationSpec) -> tuple[int, ...]:
    """Shape of one of the frames that an observation stacks along its channels."""
    axis = channel_axis(spec)
    shape = list(spec.shape)
    shape[axis] //= spec.stack
    return tuple(shape)


def channel_axis(spec: ObservationSpec) -> int:
    """Axis of one observation along which frames are stacked, oldest first."""
    return len(spec.shape) - 1 if spec.layout == "HWC" else 0
