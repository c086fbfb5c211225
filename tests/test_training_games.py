"""Teachers trained on Atari's games with the real RLlib and the real emulator, small."""

from __future__ import annotations

import json
from collections import namedtuple
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from games import PONG, TINY, policy
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch.utils.benchmark import Timer

from gasim_ray.core.model import Model, ModelConfig, load_model
from gasim_ray.errors import UserError
from gasim_ray.evaluation.environments import environment_spec
from gasim_ray.teachers import ImportOptions, import_teacher
from gasim_ray.training import algorithms, recipes, rllib
from gasim_ray.training.algorithms import build_algorithm
from gasim_ray.training.array_ppo import advantages
from gasim_ray.training.game_appo import stretches
from gasim_ray.training.game_dqn import GameReplay, GreedyRunner
from gasim_ray.training.precision import bf16_is_faster
from gasim_ray.training.progress import Progress
from gasim_ray.training.recipes import DQNRecipe, game_network
from gasim_ray.training.rllib import PolicyTraining, policy_observation, train_policy

pytestmark = pytest.mark.usefixtures("joined_by_rllib")

#: A measurement of torch.utils.benchmark, as far as it is looked at.
Took = namedtuple("Took", "median")


@pytest.fixture(autouse=True)
def few_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training looks at two episodes instead of sixteen, and at their first forty steps, as if they stood still."""
    monkeypatch.setattr(rllib, "GAME_LOOKS", (2, 2))
    monkeypatch.setattr("gasim_ray.evaluation.episodes.STILL_STEPS", 40)
    monkeypatch.setattr("gasim_ray.evaluation.episodes.STILL_PICTURES", 41)


def test_a_training_on_games_leaves_a_teacher_and_goes_on(tmp_path: Path) -> None:
    reports: list[Progress] = []
    settings = PolicyTraining(PONG, "ppo", width=TINY, max_steps=2_048, episodes=2)
    train_policy(settings, tmp_path / "pong", reports.append)
    teacher = load_model(tmp_path / "pong")
    source = teacher.config.source
    assert (source["environment"], source["environment_steps"], source["episodes"]) == (PONG, 2_048, 2)
    assert (teacher.config.observation.skip, teacher.config.observation.std) == (4, (255.0,))
    logits, values = teacher.with_value(torch.zeros((3, 4, 84, 84), dtype=torch.uint8))
    assert (logits.shape, values.shape) == ((3, 6), (3,))
    module = tmp_path / "pong" / "checkpoint" / "algorithm"
    with pytest.raises(UserError, match=r"is not built as RLlib's own are .* A teacher that `gasim teacher train` has"):
        import_teacher(str(module), tmp_path / "imported", ImportOptions(trust=True))
    with pytest.raises(UserError, match=r"^width: 0\.5, but the checkpoint"):
        train_policy(replace(settings, width=0.5), tmp_path / "pong", reports.append, resume=True)
    again = train_policy(replace(settings, max_steps=4_096), tmp_path / "pong", reports.append, resume=True)
    assert again.config.source["environment_steps"] == 4_096
    assert [r.steps for r in reports][-1] == 4_096


def test_appo_on_games_learns_from_rollouts_of_a_runner_of_its_own(tmp_path: Path) -> None:
    settings = PolicyTraining(PONG, "appo", width=TINY, max_steps=1_600, episodes=2, bf16=False, env_runners=1)
    teacher = train_policy(settings, tmp_path / "pong", lambda _: None)
    source = teacher.config.source
    assert (source["algorithm"], source["environment_steps"] >= 1_600) == ("appo", True)
    # What starts at zero is no longer zero once it has learned.
    assert all(tensor.abs().max() > 0 for name, tensor in teacher.network.state_dict().items() if "bias" in name)


def test_a_runner_plays_with_what_appo_has_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(algorithms, "ITERATION_STEPS", 200)
    settings = PolicyTraining(PONG, "appo", width=TINY, bf16=False, env_runners=1)
    algorithm = build_algorithm(settings, policy_observation(PONG))

    def moved(runner: Any) -> bool:
        """Whether what starts at zero has been learned."""
        return bool(runner.module.model.network.head[0].bias.abs().max() > 0)

    try:
        there = algorithm.env_runner_group
        assert any(algorithm.train() and there.foreach_env_runner(moved, local_env_runner=False)[0] for _ in range(40))
    finally:
        algorithm.stop()


@given(ended=st.lists(st.booleans(), min_size=1, max_size=12))
def test_stretches_hold_every_step_once_and_end_where_the_game_did(ended: list[bool]) -> None:
    steps = len(ended)
    played = {
        "actions": np.arange(steps),
        "rewards": np.arange(steps) / 2,
        "action_dist_inputs": np.ones((steps, 3)),
        "action_logp": -np.arange(steps),
    }
    episodes = stretches(np.arange(steps + 1), played, np.array(ended))
    assert np.concatenate([episode.actions.data for episode in episodes]).tolist() == list(range(steps))
    assert [episode.is_terminated for episode in episodes] == [True] * sum(ended) + [False] * (not ended[-1])
    for episode in episodes:
        (first, *_), count = episode.actions.data, len(episode)
        assert episode.observations.data.tolist() == list(range(first, first + count + 1))
        assert episode.rewards.data.tolist() == [step / 2 for step in range(first, first + count)]


def test_a_first_convolution_does_not_see_a_picture_s_level() -> None:
    first = policy().network.convolutions[0]  # type: ignore[index]
    grey, white = (first(torch.full((1, 4, 84, 84), level)) for level in (0.3, 1.0))
    torch.testing.assert_close(grey, torch.zeros_like(grey), atol=1e-5, rtol=0)
    torch.testing.assert_close(white, torch.zeros_like(white), atol=1e-5, rtol=0)


def test_dqn_on_games_learns_from_its_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = DQNRecipe(batch=16, intensity=1.0, envs=4, fragment=16, buffer=1_000, warm_up=256, epsilon_steps=1_000)
    monkeypatch.setitem(recipes.RECIPES, ("dqn", PONG), recipe)
    drawn, draw = list[int](), GameReplay.sample
    monkeypatch.setattr(GameReplay, "sample", lambda replay, size: (drawn.append(size), draw(replay, size))[1])
    before, play, looked_up, interp = list[int](), GreedyRunner.sample, list[float](), np.interp
    more = 10_000  # as if other runners had taken these
    monkeypatch.setattr(
        GreedyRunner, "sample", lambda runner, taken: (before.append(taken), play(runner, taken + more))[1]
    )
    monkeypatch.setattr(np, "interp", lambda x, *known: (looked_up.append(x), interp(x, *known))[1])
    settings = PolicyTraining(PONG, "dqn", width=TINY, max_steps=1_000, episodes=2, bf16=False)
    teacher = train_policy(settings, tmp_path / "pong", lambda _: None)
    assert (teacher.config.outputs, teacher.config.source["algorithm"]) == ("q_values", "dqn")
    assert 500 < sum(drawn) < 2_500
    assert before == list(range(0, 64 * len(before), 64))
    assert looked_up == [taken + more for taken in before]


@given(
    games=st.integers(1, 3),
    fragments=st.lists(st.integers(1, 6), min_size=1, max_size=8),
    n_step=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_a_replayed_transition_is_what_was_played(games: int, fragments: list[int], n_step: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    steps = sum(fragments)
    assume(steps > n_step)
    played = {
        "obs": np.arange(steps * games).reshape(steps, games),
        "actions": random.integers(6, size=(steps, games)),
        "rewards": random.integers(-1, 2, size=(steps, games)).astype(np.float32),
        "terminateds": random.random((steps, games)) < 0.2,
    }
    replay = GameReplay(capacity=8 * games, n_step=n_step, gamma=0.5, seed=seed)
    for first, count in zip(np.cumsum([0, *fragments]), fragments, strict=False):
        replay.add({name: rows[first : first + count] for name, rows in played.items()})
    rows = replay.sample(50)
    for index, place in enumerate(rows["obs"]):
        step, game = divmod(int(place), games)
        ends = played["terminateds"][step : step + n_step, game]
        counted = ends.argmax() + 1 if ends.any() else n_step
        gained = sum(0.5**k * played["rewards"][step + k, game] for k in range(counted))
        assert rows["rewards"][index] == pytest.approx(gained)
        assert rows["terminateds"][index] == ends.any()
        assert rows["actions"][index] == played["actions"][step, game]
        assert rows["new_obs"][index] == played["obs"][step + n_step, game]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 0),
        ("width", 17),
        ("episodes", 0),
        ("max_steps", 0),
        ("budget_seconds", -1.0),
        ("env_runners", -1),
        ("envs", 0),
        ("evaluate_seconds", -1.0),
        ("checkpoint_seconds", -1.0),
    ],
)
def test_a_training_that_cannot_be(field: str, value: float) -> None:
    with pytest.raises(UserError, match=f"^{field}: {value} is impossible; give at"):
        PolicyTraining(PONG, "ppo", **{field: value})  # type: ignore[arg-type]


def test_networks_of_the_other_kind_of_environment_are_refused() -> None:
    with pytest.raises(UserError, match=r"^hidden: \(512,\) is for other environments; a game has --network"):
        PolicyTraining(PONG, "ppo", hidden=(512,))
    with pytest.raises(UserError, match=r"^network: impala is for Atari's games; leave it out"):
        PolicyTraining("CartPole-v1", "ppo", network="impala")


@pytest.mark.parametrize("damage", ["state.json", "algorithm"])
def test_a_damaged_checkpoint_of_a_game_is_told_in_a_line(tmp_path: Path, damage: str) -> None:
    settings = PolicyTraining(PONG, "ppo", width=TINY, max_steps=2_048, episodes=2, bf16=False)
    checkpoint = tmp_path / "pong" / "checkpoint"
    (checkpoint / "algorithm").mkdir(parents=True)
    state = {"seconds": 1.0, "steps": 1_024, "best": None, "score": None, "reached": False}
    saved = json.dumps({"settings": asdict(settings), "state": state})
    (checkpoint / "state.json").write_text("{" if damage == "state.json" else saved)
    with pytest.raises(UserError, match=r"is damaged \(.*\); --overwrite starts afresh") as caught:
        train_policy(settings, tmp_path / "pong", lambda _: None, resume=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "width", "parameters"),
    [("small", 1.0, 425_047), ("nature", 1.0, 1_687_719), ("impala", 1.0, 1_091_031)],
)
def test_networks_of_games_have_the_known_sizes(name: Any, width: float, parameters: int) -> None:
    spec, actions = environment_spec(PONG)
    model = Model(ModelConfig(game_network(name, width), spec, actions, "logits", value=True))
    assert model.parameter_count == parameters
    assert model(torch.zeros((2, 4, 84, 84))).shape == (2, 6)


@given(
    st.integers(1, 6).flatmap(
        lambda steps: st.tuples(
            arrays.arrays(np.float32, (steps, 2), elements=st.floats(-1, 1, width=32)),
            arrays.arrays(np.float32, (steps + 1, 2), elements=st.floats(-5, 5, width=32)),
            arrays.arrays(np.bool_, (steps, 2)),
        )
    ),
    st.floats(0, 1),
)
def test_advantages_are_discounted_sums_of_errors_within_an_episode(case: Any, lambda_: float) -> None:
    rewards, values, ended = case
    found = advantages(rewards, values, ended, gamma=0.9, lambda_=lambda_)
    for column in range(2):
        for t in range(len(rewards)):
            total, weight = 0.0, 1.0
            for later in range(t, len(rewards)):
                following = 0.9 * values[later + 1, column] * (not ended[later, column])
                total += weight * (rewards[later, column] + following - values[later, column])
                weight *= 0.9 * lambda_ * (not ended[later, column])
            assert found[t, column] == pytest.approx(total, abs=1e-3)


def test_the_faster_arithmetic_is_found_and_the_model_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = policy().requires_grad_()
    for faster in (True, False):
        times = {True: 1.0, False: 2.0} if faster else {True: 2.0, False: 1.0}
        monkeypatch.setattr(Timer, "blocked_autorange", lambda _, times=times, **__: Took(times[model.bf16]))
        assert bf16_is_faster(model, 8) == faster
    monkeypatch.undo()
    assert isinstance(bf16_is_faster(model, 8), bool)
    assert (model.bf16, model.channels_last) == (False, False)
    assert all(parameter.grad is None for parameter in model.parameters())
