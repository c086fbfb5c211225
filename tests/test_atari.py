"""Atari's games with the real emulator: what they show, teachers trained on them, and what does not fit."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import yaml
from conftest import Gasim
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from rich.console import Console
from torch.utils.benchmark import Timer

from gasim_ray.core.distill import new_student
from gasim_ray.core.model import Model, ModelConfig, load_model, save_model
from gasim_ray.core.outputs import policy_logits
from gasim_ray.core.prune import cut_down, prune_obstacle
from gasim_ray.core.scenes import Scenes
from gasim_ray.core.seeds import rng
from gasim_ray.core.settings import StudentSettings
from gasim_ray.errors import UserError
from gasim_ray.evaluation import video
from gasim_ray.evaluation.atari import STICKY, EvaluationGames, sticky_of, with_sticky
from gasim_ray.evaluation.compare import chance, evaluate_run, normalised
from gasim_ray.evaluation.datasets import load_dataset
from gasim_ray.evaluation.environments import check_environment, environment_spec
from gasim_ray.evaluation.episodes import evaluate_return
from gasim_ray.evaluation.intervals import mean_interval
from gasim_ray.evaluation.table import evaluation_table
from gasim_ray.evaluation.tasks import DatasetTask, EnvironmentTask, Score, Task
from gasim_ray.evaluation.video import check_video, save_video
from gasim_ray.teachers import ImportOptions, import_teacher
from gasim_ray.training import recipes, rllib
from gasim_ray.training.actor_critic import initialise
from gasim_ray.training.algorithms import build_algorithm
from gasim_ray.training.array_ppo import advantages
from gasim_ray.training.game_appo import stretches
from gasim_ray.training.game_dqn import GameReplay
from gasim_ray.training.precision import bf16_is_faster
from gasim_ray.training.progress import Progress
from gasim_ray.training.recipes import DQNRecipe, game_network
from gasim_ray.training.rllib import PolicyTraining, policy_observation, train_policy

PONG = "ALE/Pong-v5"
#: A measurement of torch.utils.benchmark, as far as it is looked at.
Took = namedtuple("Took", "median")
TINY = 0.25


@pytest.fixture(autouse=True)
def few_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training looks at two episodes instead of sixteen."""
    monkeypatch.setattr(rllib, "GAME_LOOKS", (2, 2))


def policy(seed: int = 0, width: float = TINY, value: bool = True, **observation: Any) -> Model:
    """An untrained policy for Pong, of a quarter of the channels."""
    spec, actions = environment_spec(PONG)
    spec = replace(spec, std=(255.0,), **observation)
    torch.manual_seed(seed)
    model = Model(ModelConfig(game_network("small", width), spec, actions, "logits", value=value))
    initialise(model)
    return model.frozen()


def test_an_episode_depends_on_its_seed_alone() -> None:
    def first_life(game: EvaluationGames, slot: int) -> tuple[int, int]:
        moves, steps = np.random.default_rng(0), 0
        while True:
            observations, _, ended, _, _ = game.step(np.full(game.num_envs, moves.integers(4)))
            steps += 1
            if ended[slot]:
                return steps, int(observations[slot].sum(dtype=np.int64))

    games = EvaluationGames("ALE/Breakout-v5", 2)
    games.reset(seed=[3, 4])
    alone = first_life(games, 0)
    games.reset(seed=[3, None], options={"reset_mask": np.array([True, False])})
    assert first_life(games, 0) == alone
    games.reset(seed=[5, 3], options={"reset_mask": np.array([True, True])})
    assert first_life(games, 1) == alone


def test_rewards_are_whole_and_so_are_episodes() -> None:
    played = evaluate_return(policy(), PONG, 2, 0)
    assert (played.returns <= -15).all()
    assert (played.lengths > 500).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"skip": 1}, "shows observations of skip 4, the teacher reads skip 1"),
        ({"layout": "HWC"}, "shows observations of layout CHW"),
        ({"shape": (2, 84, 84), "stack": 2}, r"\[4, 84, 84\], the teacher reads \[2, 84, 84\] in 2 frames"),
        ({"dtype": "float32"}, "dtype uint8, the teacher reads dtype float32"),
    ],
)
def test_what_a_teacher_was_trained_on_must_be_what_it_is_shown(wrong: dict[str, Any], message: str) -> None:
    config = policy().config
    with pytest.raises(UserError, match=message):
        check_environment(PONG, replace(config, observation=replace(config.observation, **wrong)), "teacher")


@pytest.mark.parametrize("wrong", ["ALE/Pong-v5?sticky=2", "ALE/Pong-v5?skip=2", "ALE/Pong-v5?sticky=-0.1"])
def test_other_options_of_a_game_are_refused(wrong: str) -> None:
    with pytest.raises(UserError, match=r"give sticky=0\.25, or nothing") as caught:
        environment_spec(wrong)
    assert "\n" not in str(caught.value)


def test_sticky_is_off_unless_asked_for() -> None:
    assert with_sticky(PONG, STICKY) == "ALE/Pong-v5?sticky=0.25"
    assert [sticky_of(name) for name in (PONG, with_sticky(PONG, STICKY), with_sticky(PONG, 0.0))] == [0.0, STICKY, 0.0]

    def after_moves(env_id: str) -> int:
        games, moves = EvaluationGames(env_id, 1), np.random.default_rng(0)
        games.reset(seed=[0])
        return [int(games.step(moves.integers(6, size=1))[0].sum(dtype=np.int64)) for _ in range(100)][-1]

    assert after_moves(PONG) == after_moves(with_sticky(PONG, 0.0)) != after_moves(with_sticky(PONG, STICKY))


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
    with pytest.raises(UserError, match="is not one of RLlib's own; a teacher that `gasim teacher train` has made"):
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


def test_a_runner_plays_with_what_appo_has_learned() -> None:
    settings = PolicyTraining(PONG, "appo", width=TINY, bf16=False, env_runners=1)
    algorithm = build_algorithm(settings, policy_observation(PONG))

    def moved(runner: Any) -> bool:
        """Whether what starts at zero has been learned."""
        return bool(runner.module.model.network.head[0].bias.abs().max() > 0)

    try:
        for _ in range(4):
            algorithm.train()
        assert algorithm.env_runner_group.foreach_env_runner(moved, local_env_runner=False) == [True]
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
    settings = PolicyTraining(PONG, "dqn", width=TINY, max_steps=1_000, episodes=2, bf16=False)
    teacher = train_policy(settings, tmp_path / "pong", lambda _: None)
    assert (teacher.config.outputs, teacher.config.source["algorithm"]) == ("q_values", "dqn")
    assert 500 < sum(drawn) < 2_500


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


def test_a_network_without_width_cannot_be_trained() -> None:
    with pytest.raises(UserError, match="width: 0 is imp"):
        PolicyTraining(PONG, "ppo", width=0)


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


@pytest.mark.parametrize(("width", "share"), [(0.5, 0.02), (0.25, 0.6)])
def test_a_student_cut_out_of_a_teacher_with_a_value_head_answers_like_it(width: float, share: float) -> None:
    teacher = policy(width=0.5)
    teacher.network.head[-1].weight.data[:-1] *= 100  # type: ignore[index, union-attr, operator]
    student = new_student(teacher, StudentSettings(architecture=game_network("small", width)), 0).eval()
    assert prune_obstacle(teacher, student) is None
    observations = Scenes(teacher, "cpu").sample(256, rng("cpu", 0))
    student.requires_grad_(False)
    cut_down(teacher, student, observations)
    expected, answered = (policy_logits(model(observations), 1.0) for model in (teacher, student))
    left_over = float((answered - expected).square().mean() / (expected - expected.mean(0)).square().mean())
    assert left_over < share


def test_a_network_whose_layers_pass_others_by_is_not_cut() -> None:
    teacher = Model(replace(policy().config, architecture=game_network("impala", TINY)))
    student = new_student(teacher, StudentSettings(architecture=game_network("impala", TINY)), 0)
    assert "no chain" in str(prune_obstacle(teacher, student))


def test_a_student_of_scenes_is_distilled_without_a_simulator_and_measured_in_it(
    tmp_path: Path,
    gasim: Gasim,
    config_file: Callable[..., Path],
    blocker: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = blocker("gymnasium", "ale_py")
    save_model(policy(), tmp_path / "teacher")
    tree = tiny.tree(tmp_path / "teacher", local=True, out=str(tmp_path / "run"), budget={"student_steps": 4})
    tree["generator"].update(prior=["scenes"], steps=0)
    tree["student"] = {"architecture": game_network("small", TINY / 2), "init": "prune", "batch_size": 32, "steps": 2}
    process = gasim("distill", config_file(tree), PYTHONPATH=str(folder))
    _, complaint = process.communicate()
    assert process.returncode == 0, complaint
    assert (tmp_path / "run" / "samples.png").exists()
    task = EnvironmentTask(PONG, 2, local=True)
    measured = evaluate_run(tmp_path / "run", task, distil=None)
    assert (tmp_path / "run" / "worst.png").exists()
    rows = {row.name: row for row in measured.rows}
    assert rows["student"].parameters < rows["teacher"].parameters
    assert rows["teacher"].score.interval.mean <= -15
    assert rows["teacher"].score.sticky is not None
    assert rows["random_actions"].agreement == pytest.approx(1 / 6)
    assert rows["student"].kl >= 0
    printed = StringIO()
    Console(file=printed, width=80).print(evaluation_table([measured]))
    assert "random act." in printed.getvalue()
    assert "sticky" in printed.getvalue()
    assert "…" not in printed.getvalue()
    check_video(tmp_path / "a.gif", [tmp_path / "run"], [task])
    monkeypatch.setattr(video, "MOST_STEPS", 20)
    save_video(tmp_path / "films" / "a.gif", [tmp_path / "run"], task)
    with Image.open(tmp_path / "films" / "a.gif") as film:
        assert film.size == (2 * 3 * 84, 3 * 84 + video.HEADER)
        assert 1 < film.n_frames <= 20


@pytest.mark.parametrize(
    ("file", "task", "message"),
    [
        ("a.mp4", EnvironmentTask(PONG), "of no known format"),
        ("a.gif", DatasetTask(load_dataset("mnist-sample")), "is a data set"),
        ("a.gif", EnvironmentTask("CartPole-v1"), "reads vectors"),
    ],
)
def test_what_cannot_be_shown(tmp_path: Path, file: str, task: Task, message: str) -> None:
    save_model(tiny.model(tiny.VECTOR), tmp_path / "teacher")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"teacher": str(tmp_path / "teacher")}))
    with pytest.raises(UserError, match=message):
        check_video(Path(file), [tmp_path / "run"], [task])


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


def test_scores_are_normalised_between_random_actions_and_the_teacher() -> None:
    teacher, student, random = (Score(mean_interval(np.array([mean, mean]))) for mean in (18.0, 9.0, -21.0))
    assert normalised(student, teacher, random) == pytest.approx(30 / 39)
    assert (normalised(teacher, teacher, random), normalised(random, teacher, random)) == (1.0, 0.0)
    assert normalised(student, random, teacher) is None


def test_chance_chooses_every_action_alike() -> None:
    frames = torch.zeros((1_000, 4, 84, 84), dtype=torch.uint8)
    first, again = chance(policy().config), chance(policy().config)
    draws = [[model(frames).argmax(1) for _ in range(3)] for model in (first, again)]
    assert (torch.bincount(torch.cat(draws[0]), minlength=6) > 400).all()
    assert all(torch.equal(a, b) for a, b in zip(*draws, strict=True))
    assert not torch.equal(draws[0][0], draws[0][1])
