"""Plays episodes greedily and gives their returns and the states they went through.

Each episode has a seed of its own, made from the run's seed and the episode's number, and every episode that is started
is played to its end and counted; where a game shows the same few pictures for a minute or gives nothing for five, since
its greedy player waits for what never comes, that is its end. So returns do not depend on how many environments run
side by side or on how the episodes are spread over actors, short episodes are not favoured, and two models meet the
same initial states.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import torch
from ray.exceptions import RayError, RayTaskError
from ray.util import ActorPool

from gasim_ray.actors.resources import RELEASE_SECONDS, free_nodes
from gasim_ray.core.model import Model, check_finite
from gasim_ray.core.prior import random_observations
from gasim_ray.errors import UserError, one_line
from gasim_ray.evaluation.atari import is_atari
from gasim_ray.evaluation.environments import channel_axis, check_environment, frame_shape, make_environments

#: Steps after which an episode is taken for endless.
MOST_STEPS = 1_000_000
#: A game has ended if the latest so many steps, a minute, showed less than so many different pictures. A greedy policy
#: would go on for the half hour that a game may take: in Breakout one that never serves moves nothing but its paddle.
STILL_STEPS, STILL_PICTURES = 900, 90
#: Or if so many steps, five minutes, gave nothing: in Seaquest a submarine that stays at the surface is safe for ever.
FRUITLESS_STEPS = 4_500

#: (N, *spec.shape) in the spec's dtype.
Observations = npt.NDArray[Any]

#: Environments that one process steps side by side, so that the network sees batches.
PARALLEL_ENVIRONMENTS = 16


@dataclass(frozen=True, eq=False)
class Returns:
    """What a model's episodes gave."""

    #: (E,) float64, undiscounted, in the order of the episodes' numbers.
    returns: npt.NDArray[np.float64]
    #: (E,) int64: steps of each episode.
    lengths: npt.NDArray[np.int64]
    #: (K, *spec.shape): states visited, each as likely to be kept as any other, in random order.
    observations: Observations
    #: (K,) float64, rising: the random keys by which they were kept.
    keys: npt.NDArray[np.float64]


class StateSample:
    """A uniform sample without replacement of what passes by: the items with the smallest random keys."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._keys: list[float] = []
        self._items: list[Observations] = []
        self._limit = 1.0 if capacity else 0.0

    def add(self, key: float, item: Observations) -> None:
        """Offer an item with its key, uniform in [0, 1)."""
        if key >= self._limit:
            return
        self._keys.append(key)
        self._items.append(item.copy())
        if len(self._keys) >= 2 * self.capacity:
            self._shrink()

    def _shrink(self) -> None:
        kept = np.argsort(self._keys)[: self.capacity]
        self._keys = [self._keys[i] for i in kept]
        self._items = [self._items[i] for i in kept]
        if len(self._keys) == self.capacity > 0:
            self._limit = self._keys[-1]

    def contents(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> tuple[Observations, npt.NDArray[np.float64]]:
        """Items (K, *shape) and keys (K,), K at most the capacity, by rising key."""
        self._shrink()
        items = np.stack(self._items) if self._items else np.empty((0, *shape), dtype)
        return items, np.array(self._keys, np.float64)


def play_episodes(
    model: Model,
    env_id: str,
    episodes: Sequence[int],
    seed: int,
    keep: int,
    parallel: int = PARALLEL_ENVIRONMENTS,
) -> Returns:
    """Play the episodes with these numbers in this process and keep at most `keep` of the states they visit.

    Raises UserError if the model does not fit the environment or answers NaN.
    """
    check_environment(env_id, model.config, "model")
    play = _Play(env_id, min(parallel, len(episodes)), model, episodes, seed, keep)
    try:
        return play.to_the_end()
    finally:
        play.environments.close()


class _Play:
    """The state of one call of `play_episodes`: which slot plays which episode, and what it has given so far."""

    def __init__(self, env_id: str, slots: int, model: Model, episodes: Sequence[int], seed: int, keep: int) -> None:
        self.env_id = env_id
        self.environments = make_environments(env_id, slots)
        self.model = model.eval()
        self.device = next(model.parameters()).device
        self.spec = model.config.observation
        self.seed = seed
        self.episodes = list(episodes)
        self.waiting = list(range(len(self.episodes)))[::-1]
        #: Place in `episodes` of what each slot plays; -1 where nothing is left to play.
        self.playing = np.full(slots, -1)
        self.keys: list[np.random.Generator] = [np.random.default_rng(0)] * slots
        self.stacks = np.zeros((slots, *self.spec.shape), self.spec.numpy_dtype())
        #: Hashes of the latest pictures of each slot; of Atari's games alone, since others may mean to stand still.
        self.shown: list[deque[int]] = [deque(maxlen=STILL_STEPS) for _ in range(slots)]
        #: Steps of each slot since it was last rewarded.
        self.fruitless = np.zeros(slots, np.int64)
        self.sample = StateSample(keep)
        self.returns = np.zeros(len(self.episodes))
        self.lengths = np.zeros(len(self.episodes), np.int64)

    def to_the_end(self) -> Returns:
        for _ in self.steps():
            active = self.playing >= 0
            for slot in np.flatnonzero(active):
                self.sample.add(self.keys[slot].random(), self.stacks[slot])
        observations, keys = self.sample.contents(self.spec.shape, self.spec.numpy_dtype())
        return Returns(self.returns, self.lengths, observations, keys)

    def steps(self) -> Iterator[None]:
        """Play on until every episode has ended; yields before each step."""
        self._start(np.ones(len(self.playing), bool), first=True)
        while (self.playing >= 0).any():
            yield
            active = self.playing >= 0
            actions = self._actions()
            with self._told():
                frames, rewards, terminated, truncated, _ = self.environments.step(actions)
            self.returns[self.playing[active]] += rewards[active]
            self.lengths[self.playing[active]] += 1
            if self.lengths.max() > MOST_STEPS:
                raise UserError(
                    f"env: an episode of {self.env_id} has not ended after {MOST_STEPS:,} steps; register it with "
                    "max_episode_steps"
                )
            self.fruitless = np.where(rewards == 0, self.fruitless + 1, 0)
            self._see(frames, ~(terminated | truncated))
            ended = terminated | truncated | self._waits()
            if ended.any():
                self._start(ended, first=False)

    def _start(self, free: npt.NDArray[np.bool_], first: bool) -> None:
        """Give each free slot the next episode. One with none left is reset too, since all are stepped together."""
        seeds: list[int | None] = [None] * len(free)
        for slot in np.flatnonzero(free):
            self.playing[slot] = self.waiting.pop() if self.waiting else -1
            if self.playing[slot] >= 0:
                source = np.random.SeedSequence((self.seed, self.episodes[self.playing[slot]]))
                seeds[slot] = int(source.generate_state(1)[0])
                self.keys[slot] = np.random.default_rng(source.spawn(1)[0])
        with self._told():
            frames, _ = self.environments.reset(seed=seeds, options=None if first else {"reset_mask": free})
        for slot in np.flatnonzero(free):
            self.shown[slot].clear()
        self.fruitless[free] = 0
        self.stacks[free] = 0  # RLlib and Stable-Baselines3 both fill the frames before the first with zeros
        self._see(frames, free)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Raise UserError for whatever an environment of the user's raises."""
        try:
            yield
        except Exception as error:
            raise UserError(f"env: {self.env_id} raised {type(error).__name__}: {error}") from error

    def _see(self, frames: Observations, slots: npt.NDArray[np.bool_]) -> None:
        """Push a new frame onto the stacks of these slots; newest last."""
        spec = self.spec
        if spec.stack == 1 or frames.shape[1:] == spec.shape:
            self.stacks[slots] = frames[slots]
            return
        axis = 1 + channel_axis(spec)
        new = frames[slots].reshape(-1, *frame_shape(spec)).astype(self.stacks.dtype)
        older = np.split(self.stacks[slots], [new.shape[axis]], axis)[1]
        self.stacks[slots] = np.concatenate([older, new], axis)

    def _waits(self) -> npt.NDArray[np.bool_]:
        """Which slots, of a game, have shown the same few pictures all along or got nothing for too long."""
        if not is_atari(self.env_id):
            return np.zeros(len(self.shown), bool)
        for shown, stack in zip(self.shown, self.stacks, strict=True):
            shown.append(hash(stack[-1].tobytes()))
        still = np.array([len(s) == STILL_STEPS and len(set(s)) < STILL_PICTURES for s in self.shown])
        return still | (self.fruitless >= FRUITLESS_STEPS)

    def _actions(self) -> npt.NDArray[np.int64]:
        with torch.inference_mode():
            outputs = self.model(torch.from_numpy(self.stacks).to(self.device))
        actions = check_finite(outputs, "model").argmax(1).cpu().numpy()
        return np.asarray(actions + self.environments.single_action_space.start, np.int64)


def watch_episode(model: Model, env_id: str, seed: int) -> Iterator[tuple[Observations, float]]:
    """Play episode 0 of the seed greedily; yields before each step what the model sees (*spec.shape) and its return.

    Raises UserError if the model does not fit the environment or answers NaN.
    """
    check_environment(env_id, model.config, "model")
    play = _Play(env_id, 1, model, [0], seed, 0)
    try:
        for _ in play.steps():
            yield play.stacks[0].copy(), float(play.returns[0])
    finally:
        play.environments.close()


class _EpisodeProcess:
    """Plays in a process of its own, on one thread."""

    def __init__(self, env_id: str) -> None:
        torch.set_num_threads(1)
        self.env_id = env_id

    def play(self, model: Model, episodes: Sequence[int], seed: int, keep: int) -> Returns | UserError:
        """As play_episodes, but a UserError is returned: Ray would wrap a raised one in the actor's traceback."""
        try:
            return play_episodes(model, self.env_id, episodes, seed, keep)
        except UserError as error:
            return error


EpisodeActor = ray.remote(num_cpus=1)(_EpisodeProcess)


def evaluate_return(model: Model, env_id: str, episodes: int, seed: int, keep: int = 0) -> Returns:
    """Returns of `episodes` greedy episodes, played in this process, and at most `keep` states they visited.

    Raises UserError if there are none, the environment is not known, the model does not fit it or answers NaN.
    """
    if episodes < 1:
        raise UserError(f"episodes: {episodes} is too few; give 1 or more")
    return play_episodes(model, env_id, range(episodes), seed, keep)


def evaluate_many(
    models: Mapping[str, Model], env_id: str, episodes: int, seed: int, keep: Mapping[str, int], local: bool = False
) -> dict[str, Returns]:
    """`evaluate_return` of several models at once, spread over the CPUs that Ray has free.

    `keep` says of how many states, at most, each model's are kept; none for a model that is not in it.
    Runs in this process if `local`, if Ray has not been initialised or has no CPU free, and if the episodes are so few
    (and of no game) that starting other processes takes longer; the figures are the same.
    Raises as `evaluate_return`.
    """
    for name, model in models.items():
        check_environment(env_id, model.config, name)
        with torch.inference_mode():
            device = next(model.parameters()).device
            check_finite(model(random_observations(model, 64).to(device)), name)
    local = local or (episodes < PARALLEL_ENVIRONMENTS and not is_atari(env_id))
    free = 0 if local or not ray.is_initialized() else free_cpus()
    workers = min(free, episodes * len(models))
    if workers < 2:
        return {
            name: evaluate_return(model, env_id, episodes, seed, keep.get(name, 0)) for name, model in models.items()
        }
    references = {name: ray.put(deepcopy(model).cpu()) for name, model in models.items()}
    most = -(-workers // len(models))
    # Random actions would be the same ones in each process.
    shares = {name: 1 if model.config.architecture["name"] == "chance" else most for name, model in models.items()}
    orders = [(name, shard) for name in models for shard in shard_episodes(episodes, shares[name])]
    actors = [EpisodeActor.remote(env_id) for _ in range(min(workers, len(orders)))]
    try:
        pool = ActorPool(actors)
        results = list(
            pool.map(lambda actor, o: actor.play.remote(references[o[0]], o[1], seed, keep.get(o[0], 0)), orders)
        )
    except RayTaskError as error:
        raise error.as_instanceof_cause() from error  # what it raised, not that it was lost
    except RayError as error:
        raise UserError(f"episodes: a process that plays was lost ({one_line(error)}); try again") from error
    finally:
        for actor in actors:
            ray.kill(actor)
        # What plays next is to find as many CPUs.
        deadline = time.monotonic() + RELEASE_SECONDS
        while free_cpus() < free and time.monotonic() < deadline:
            time.sleep(0.05)
    for result in results:
        if isinstance(result, UserError):
            raise result
    parts = {name: [r for (owner, _), r in zip(orders, results, strict=True) if owner == name] for name in models}
    return {name: merge(parts[name], keep.get(name, 0)) for name in models}


def free_cpus() -> int:
    """Processes of one CPU that Ray's nodes now have room for."""
    return sum(int(node["Resources"].get("CPU", 0)) for node in free_nodes())


def shard_episodes(episodes: int, shards: int) -> list[range]:
    """Split episode numbers 0 ... episodes - 1 into at most `shards` runs of nearly equal length, none empty."""
    edges = np.linspace(0, episodes, min(shards, episodes) + 1).round().astype(int).tolist()
    return [range(start, stop) for start, stop in pairwise(edges)]


def merge(parts: Sequence[Returns], keep: int) -> Returns:
    """Join successive shards; the states kept are those that one runner of all episodes would have kept."""
    keys = np.concatenate([part.keys for part in parts])
    kept = np.argsort(keys)[:keep]
    return Returns(
        np.concatenate([part.returns for part in parts]),
        np.concatenate([part.lengths for part in parts]),
        np.concatenate([part.observations for part in parts])[kept],
        keys[kept],
    )
