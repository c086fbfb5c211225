"""Episodes: each one counted, whatever runs beside it; states kept uniformly; Ray gives what one process gives."""

import os
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import ray
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gasim_ray.core.model import Model, ModelConfig
from gasim_ray.core.observation import ObservationSpec
from gasim_ray.errors import UserError
from gasim_ray.evaluation import episodes
from gasim_ray.evaluation.compare import chance
from gasim_ray.evaluation.environments import environment_spec
from gasim_ray.evaluation.episodes import (
    StateSample,
    evaluate_many,
    evaluate_return,
    play_episodes,
    shard_episodes,
)


class Counting(gym.Env):
    """Shows its step count in `shape`; an episode lasts 1 to 9 steps, by its seed; step n is worth n."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, shape=(1,)):
        self.shape = shape
        self.observation_space = gym.spaces.Box(0, 100, shape, np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count, self.length = 1, int(self.np_random.integers(1, 10))
        return np.full(self.shape, self.count, np.float32), {}

    def step(self, action):
        reward = float(self.count)
        self.count += 1
        return np.full(self.shape, self.count, np.float32), reward, self.count > self.length, False, {}


class Breaking(Counting):
    """Raises at its third step."""

    def step(self, action):
        if self.count == 3:
            raise ZeroDivisionError("division by zero")
        return super().step(action)


gym.register("GasimCounting-v0", entry_point=Counting)
gym.register("GasimBreaking-v0", entry_point=Breaking)
gym.register("GasimCountingImage-v0", entry_point=Counting, kwargs={"shape": (2, 3, 1)})


def balancer():
    """A linear policy of CartPole that swings ever wider: it pushes to where the pole leans."""
    spec, actions = environment_spec("CartPole-v1")
    model = Model(ModelConfig({"name": "mlp", "hidden": []}, spec, actions, "logits"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.network.layers[0].weight[1] = torch.tensor([0.0, 0.0, 1.0, 0.0])
    return model


def counter(shape=(1,), layout="vector", stack=1):
    spec = ObservationSpec(shape, "float32", layout, (0.0,), (100.0,), stack=stack)
    return Model(ModelConfig({"name": "mlp", "hidden": []}, spec, 2, "logits"))


def test_returns_equal_those_of_one_environment_played_by_hand():
    model, episodes, seed = balancer(), 7, 3
    env, expected = gym.make("CartPole-v1"), []
    for episode in range(episodes):
        observation, _ = env.reset(seed=int(np.random.SeedSequence((seed, episode)).generate_state(1)[0]))
        total, ended = 0.0, False
        while not ended:
            action = int(model(torch.from_numpy(observation)[None]).argmax())
            observation, reward, terminated, truncated, _ = env.step(action)
            total, ended = total + reward, terminated or truncated
        expected.append(total)
    played = evaluate_return(model, "CartPole-v1", episodes, seed)
    assert played.returns.tolist() == expected
    assert len(set(expected)) > 2
    assert played.lengths.tolist() == expected


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 15), st.integers(0, 99), st.integers(0, 30))
def test_nothing_depends_on_how_many_run_side_by_side(parallel, episodes, seed, keep):
    model = counter()
    alone = play_episodes(model, "GasimCounting-v0", range(episodes), seed, keep, parallel=1)
    together = play_episodes(model, "GasimCounting-v0", range(episodes), seed, keep, parallel)
    assert together.returns.tolist() == alone.returns.tolist()
    assert together.returns.tolist() == (alone.lengths * (alone.lengths + 1) / 2).tolist()
    assert together.observations.tolist() == alone.observations.tolist()
    assert len(together.observations) == min(keep, int(together.lengths.sum()))


def test_random_actions_do_not_depend_on_how_many_processes_play(on_cluster):
    policy = chance(balancer().config)
    alone = evaluate_return(policy, "CartPole-v1", 20, 0).returns
    spread = evaluate_many({"random": chance(balancer().config)}, "CartPole-v1", 20, 0, {})["random"].returns
    assert spread.tolist() == alone.tolist()
    assert len(set(alone)) > 5


def test_what_an_environment_raises_is_one_line():
    with pytest.raises(UserError, match=r"^env: GasimBreaking-v0 raised ZeroDivisionError: division by zero$"):
        evaluate_return(counter(), "GasimBreaking-v0", 5, seed=0)


def test_an_episode_that_does_not_end_is_told(monkeypatch):
    monkeypatch.setattr(episodes, "MOST_STEPS", 5)
    with pytest.raises(UserError, match=r"^env: an episode of GasimCounting-v0 has not ended after 5 steps; register"):
        evaluate_return(counter(), "GasimCounting-v0", 5, seed=0)


def test_short_episodes_are_not_favoured():
    lengths = evaluate_return(counter(), "GasimCounting-v0", 400, 0).lengths
    counts = np.bincount(lengths, minlength=10)[1:]
    assert counts.min() > 20
    assert abs(lengths.mean() - 5) < 0.5


def test_another_seed_is_another_start():
    model = balancer()
    first, second = (evaluate_return(model, "CartPole-v1", 3, seed, 5).observations for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_frames_are_stacked_newest_last_after_zeros():
    played = evaluate_return(counter((3,), stack=3), "GasimCounting-v0", 5, 0, 1000)
    rows = {tuple(row) for row in played.observations.tolist()}
    longest = int(played.lengths.max())
    assert rows == {(max(0, t - 2), max(0, t - 1), t) for t in range(1, longest + 1)}


def test_images_are_stacked_along_their_channels():
    model = counter((2, 3, 4), "HWC", stack=4)
    states = evaluate_return(model, "GasimCountingImage-v0", 5, 0, 1000).observations
    assert states.shape[1:] == (2, 3, 4)
    assert (np.diff(states, axis=3) >= 0).all()
    assert (states == states[:, :1, :1]).all()


def test_states_are_kept_uniformly():
    states = evaluate_return(counter(), "GasimCounting-v0", 400, 0, 10_000).observations[:, 0]
    sample = evaluate_return(counter(), "GasimCounting-v0", 400, 0, 300).observations[:, 0]
    assert len(sample) == 300
    assert abs(sample.mean() - states.mean()) < 4 * states.std() / 300**0.5


@settings(deadline=None)
@given(st.lists(st.floats(0, 1, exclude_max=True), unique=True), st.integers(0, 8))
def test_a_sample_holds_the_smallest_keys(keys, capacity):
    sample = StateSample(capacity)
    for key in keys:
        sample.add(key, np.array([key]))
    items, kept = sample.contents((1,), np.float64)
    assert kept.tolist() == sorted(keys)[:capacity]
    assert items[:, 0].tolist() == kept.tolist()


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 20))
def test_shards_hold_each_episode_once(episodes, shards):
    parts = shard_episodes(episodes, shards)
    assert [e for part in parts for e in part] == list(range(episodes))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert len(parts) == min(shards, episodes)


def test_nan_is_refused_by_name():
    model = counter()
    next(model.parameters()).data.fill_(float("nan"))
    with pytest.raises(UserError, match="teacher: answered NaN"):
        evaluate_many({"teacher": model}, "GasimCounting-v0", 2, 0, {}, local=True)
    with pytest.raises(UserError, match="model: answered NaN"):
        evaluate_return(model, "GasimCounting-v0", 2, 0)


def test_a_model_of_another_environment_is_refused_by_name():
    with pytest.raises(UserError, match="the student reads"):
        evaluate_many({"student": counter()}, "CartPole-v1", 2, 0, {}, local=True)


class Diverging(torch.nn.Module):
    """Answers NaN on CartPole's first states, which are near zero, and well elsewhere."""

    def __init__(self, input_shape, outputs):
        super().__init__()
        self.outputs = torch.nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        near = x.abs().amax(1, keepdim=True) < 0.1
        return torch.where(near, torch.nan, self.outputs.expand(len(x), -1))


@pytest.fixture(scope="module")
def two_cpus():
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])  # for Diverging, in the actors
    environment = {"env_vars": {"PYTHONPATH": path}}
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    with pytest.MonkeyPatch.context() as patch:
        # So few episodes would not be worth other processes.
        patch.setattr("gasim_ray.evaluation.episodes.PARALLEL_ENVIRONMENTS", 1)
        yield
    ray.shutdown()


def test_ray_gives_what_one_process_gives(two_cpus):
    models = {"good": balancer(), "bad": balancer()}
    models["bad"].network.layers[0].weight.data *= -1
    spread = evaluate_many(models, "CartPole-v1", 9, 0, {"good": 20})
    alone = evaluate_many(models, "CartPole-v1", 9, 0, {"good": 20}, local=True)
    for name in models:
        assert spread[name].returns.tolist() == alone[name].returns.tolist()
        assert spread[name].observations.tolist() == alone[name].observations.tolist()
    assert len(spread["good"].observations) == 20
    assert len(spread["bad"].observations) == 0
    assert spread["good"].returns.mean() > spread["bad"].returns.mean()
    assert ray.cluster_resources()["CPU"] == 2


def test_ray_passes_a_mistake_on_as_one_line(two_cpus):
    spec, actions = environment_spec("CartPole-v1")
    model = Model(ModelConfig({"name": f"{__name__}:Diverging"}, spec, actions, "logits"))
    with pytest.raises(UserError) as caught:
        evaluate_many({"student": model}, "CartPole-v1", 4, 0, {})
    assert "answered NaN" in str(caught.value)
    assert "\n" not in str(caught.value)
