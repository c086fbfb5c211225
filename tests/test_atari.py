"""Atari's games with the real emulator: what they show, who plays them how well, and what does not fit."""

from __future__ import annotations

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
from games import PONG, TINY, policy
from PIL import Image
from rich.console import Console

from gasim_ray.core.distill import new_student
from gasim_ray.core.model import Model, ModelConfig, save_model
from gasim_ray.core.outputs import policy_logits, q_value_scale
from gasim_ray.core.prior import Prior, Uniform
from gasim_ray.core.prune import cut_down, prune_obstacle
from gasim_ray.core.scenes import Scenes
from gasim_ray.core.seeds import rng
from gasim_ray.core.settings import StudentSettings
from gasim_ray.errors import UserError
from gasim_ray.evaluation import episodes, video
from gasim_ray.evaluation.atari import STICKY, EvaluationGames, sticky_of, with_sticky
from gasim_ray.evaluation.compare import chance, evaluate_run, normalised
from gasim_ray.evaluation.datasets import load_dataset
from gasim_ray.evaluation.environments import check_environment, environment_spec
from gasim_ray.evaluation.episodes import STILL_STEPS, evaluate_return
from gasim_ray.evaluation.intervals import mean_interval
from gasim_ray.evaluation.table import evaluation_table
from gasim_ray.evaluation.tasks import DatasetTask, EnvironmentTask, Task
from gasim_ray.evaluation.video import check_video, save_video
from gasim_ray.teachers import SCALE_OBSERVATIONS, with_output_scale
from gasim_ray.training.recipes import game_network


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
        ({"stack": 1}, "shows observations of stack 4, the teacher reads stack 1"),
        ({"shape": (16, 84, 84)}, r"\[4, 84, 84\], the teacher reads \[16, 84, 84\] in 4 frames"),
        ({"high": (1.0,)}, r"shows observations of high \(255.0,\), the teacher reads high \(1.0,\)"),
    ],
)
def test_what_a_teacher_was_trained_on_must_be_what_it_is_shown(wrong: dict[str, Any], message: str) -> None:
    config = policy().config
    with pytest.raises(UserError, match=message):
        check_environment(PONG, replace(config, observation=replace(config.observation, **wrong)), "teacher")


def test_a_teacher_plays_no_game_but_its_own() -> None:
    config = replace(policy().config, source={"environment": PONG})
    check_environment("ALE/Pong-v5?sticky=0.25", config, "teacher")
    with pytest.raises(UserError, match="was trained on ALE/Pong-v5, not on ALE/Galaxian-v5; give that"):
        check_environment("ALE/Galaxian-v5", config, "teacher")


@pytest.mark.parametrize(("trained", "asked"), [(PONG, f"{PONG}?sticky=0.25"), (f"{PONG}?sticky=0.25", PONG)])
def test_a_game_is_asked_for_with_the_sticky_actions_that_its_teacher_had(trained: str, asked: str) -> None:
    config = replace(policy().config, source={"environment": trained})
    EnvironmentTask(trained, 2).check(config, "teacher")
    with pytest.raises(UserError, match="leave --env out") as caught:
        EnvironmentTask(asked, 2).check(config, "teacher")
    assert "\n" not in str(caught.value)


def test_a_game_that_stands_still_has_ended() -> None:
    # Its weights are nothing, so it takes the first action, which serves no ball.
    spec, actions = environment_spec("ALE/Breakout-v5")
    idle = Model(ModelConfig(game_network("small", TINY), replace(spec, std=(255.0,)), actions, "logits")).frozen()
    for parameter in idle.parameters():
        parameter.zero_()
    played = evaluate_return(idle, "ALE/Breakout-v5", 1, 0)
    assert STILL_STEPS <= played.lengths[0] < 3 * STILL_STEPS


def test_a_game_that_gives_nothing_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    # At the surface, where fish swim below.
    spec, actions = environment_spec("ALE/Seaquest-v5")
    idle = Model(ModelConfig(game_network("small", TINY), replace(spec, std=(255.0,)), actions, "logits")).frozen()
    for parameter in idle.parameters():
        parameter.zero_()
    monkeypatch.setattr(episodes, "FRUITLESS_STEPS", 120)
    played = evaluate_return(idle, "ALE/Seaquest-v5", 1, 0)
    assert (played.lengths[0], played.returns[0]) == (120, 0)


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


def test_no_episode_can_be_played() -> None:
    with pytest.raises(UserError, match=r"^episodes: 0 is too few; give 1 or more"):
        evaluate_return(policy(), PONG, 0, 0)


def test_the_scale_of_a_game_s_q_values_is_measured_on_scenes() -> None:
    def scale(prior: Prior, model: Model) -> float:
        drawn = model.config.observation.quantise(prior.sample(SCALE_OBSERVATIONS, rng("cpu", 0)))
        return q_value_scale(model(drawn))

    spec, actions = environment_spec(PONG)
    torch.manual_seed(0)
    network = game_network("small", TINY)
    model = Model(ModelConfig(network, replace(spec, std=(255.0,)), actions, "q_values")).frozen()
    found = with_output_scale(model).config.output_scale
    assert found == pytest.approx(scale(Scenes(model, "cpu"), model))
    assert found != pytest.approx(scale(Uniform(model, "cpu"), model), rel=0.03)


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
    assert (rows["teacher"].normalised, rows["random_actions"].sticky_normalised) in {(1.0, 0.0), (None, None)}
    assert rows["random_actions"].agreement == pytest.approx(1 / 6)
    assert rows["student"].kl >= 0
    printed = StringIO()
    Console(file=printed, width=80).print(evaluation_table([measured]))
    assert "random act." in printed.getvalue()
    assert "sticky" in printed.getvalue()
    assert "…" not in printed.getvalue()
    check_video(tmp_path / "a.gif", [tmp_path / "run"], [task])
    monkeypatch.setattr(video, "MOST_STEPS", 20)
    save_video(tmp_path / "films" / "a.gif", {"run": tmp_path / "run"}, task)
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


def test_scores_are_normalised_between_random_actions_and_the_teacher() -> None:
    teacher, student, random = (mean_interval(np.array([mean, mean])) for mean in (18.0, 9.0, -21.0))
    assert normalised(student, teacher, random) == pytest.approx(30 / 39)
    assert (normalised(teacher, teacher, random), normalised(random, teacher, random)) == (1.0, 0.0)
    assert normalised(student, random, teacher) is None
    assert normalised(None, teacher, random) is None


def test_chance_chooses_every_action_alike() -> None:
    frames = torch.zeros((1_000, 4, 84, 84), dtype=torch.uint8)
    first, again = chance(policy().config), chance(policy().config)
    draws = [[model(frames).argmax(1) for _ in range(3)] for model in (first, again)]
    assert (torch.bincount(torch.cat(draws[0]), minlength=6) > 400).all()
    assert all(torch.equal(a, b) for a, b in zip(*draws, strict=True))
    assert not torch.equal(draws[0][0], draws[0][1])
