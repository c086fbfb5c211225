"""Training of policies with the real RLlib, small."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from gasim_ray.core.model import Model
from gasim_ray.errors import UserError
from gasim_ray.teachers import load_teacher
from gasim_ray.training.progress import Progress
from gasim_ray.training.recipes import recipe_for
from gasim_ray.training.replay_dqn import ArrayReplayBuffer, n_step_transitions
from gasim_ray.training.rllib import PolicyTraining, train_policy

pytestmark = pytest.mark.usefixtures("joined_by_rllib")


def small(algo: str, **changed: Any) -> PolicyTraining:
    """A training that ends after a few iterations."""
    given: dict[str, Any] = {"env": "CartPole-v1", "algo": algo, "hidden": (8, 8), "episodes": 3, "max_steps": 2_500}
    return PolicyTraining(**(given | {"stop_return": 1e9, "evaluate_seconds": 1e9} | changed))


@pytest.mark.parametrize("algo", ["ppo", "dqn", "appo"])
def test_a_training_leaves_a_teacher(tmp_path: Path, algo: str) -> None:
    reports: list[Progress] = []
    trained = train_policy(small(algo), tmp_path / "teacher", reports.append)
    loaded = load_teacher(tmp_path / "teacher")
    observations = torch.randn(10, 4)
    torch.testing.assert_close(loaded(observations), trained(observations))
    source = loaded.config.source
    assert loaded.config.outputs == ("q_values" if algo == "dqn" else "logits")
    assert (source["algorithm"], source["environment"], source["episodes"]) == (algo, "CartPole-v1", 3)
    assert source["environment_steps"] >= 2_500
    assert (source["training"]["hidden"], source["training"]["max_steps"]) == ([8, 8], 2_500)
    assert source["training"]["recipe"]["gamma"] == recipe_for(algo, "CartPole-v1").gamma
    assert math.isfinite(source["mean_return"])
    assert source["wall_seconds"] > 0
    # Of two actions, and what DQN has learned is no policy.
    assert source["entropy"] is None if algo == "dqn" else 0 < source["entropy"] <= math.log(2)
    assert [r.steps for r in reports] == sorted(r.steps for r in reports)
    # The goal was not reached, so the training can go on; other settings may not.
    with pytest.raises(UserError, match="exists; --resume"):
        train_policy(small(algo), tmp_path / "teacher", reports.append)
    with pytest.raises(UserError, match=r"^seed: 1, but the checkpoint"):
        train_policy(small(algo, seed=1), tmp_path / "teacher", reports.append, resume=True)
    longer = small(algo, max_steps=source["environment_steps"] + 1)
    again = train_policy(longer, tmp_path / "teacher", reports.append, resume=True)
    assert again.config.source["environment_steps"] > source["environment_steps"]


def test_a_reached_goal_ends_the_training(tmp_path: Path) -> None:
    settings = small("ppo", stop_return=1.0, evaluate_seconds=0.0, max_steps=1_000_000)
    reports: list[Progress] = []
    train_policy(settings, tmp_path / "teacher", reports.append)
    assert not (tmp_path / "teacher" / "checkpoint").exists()
    assert reports[-1].steps < 10_000
    finished = len(reports)
    assert isinstance(train_policy(settings, tmp_path / "teacher", reports.append, resume=True), Model)
    assert len(reports) == finished
    with pytest.raises(UserError, match=r"^seed: 1, but the finished teacher in .* is of 0; give the same"):
        train_policy(replace(settings, seed=1), tmp_path / "teacher", reports.append, resume=True)
    (tmp_path / "teacher" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds thesis\.tex, which is no part of a teacher"):
        train_policy(settings, tmp_path / "teacher", reports.append, overwrite=True)


def test_an_interrupt_of_the_last_episodes_costs_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = small("ppo", stop_return=1.0, evaluate_seconds=0.0, max_steps=1_000_000)
    messages: list[str] = []

    def interrupted(training: object) -> Model:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("gasim_ray.training.rllib._Training.finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_policy(settings, tmp_path / "teacher", lambda p: messages.append(p.message))
    assert "go on with --resume" in messages[-1]
    steps = checkpointed_steps(tmp_path / "teacher")
    assert steps > 0
    trained = train_policy(settings, tmp_path / "teacher", lambda _: None, resume=True)
    assert trained.config.source["environment_steps"] == steps


def test_a_teacher_stays_until_the_training_in_its_place_is_built(
    tmp_path: Path, vector_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(vector_teacher, tmp_path / "teacher")
    monkeypatch.setattr("gasim_ray.training.algorithms.build_algorithm", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_policy(small("ppo"), tmp_path / "teacher", lambda _: None, overwrite=True)
    assert isinstance(load_teacher(tmp_path / "teacher"), Model)


class OddPictures(gym.Env[Any, Any]):
    """Shows pictures of a size for which RLlib has no network."""

    observation_space = gym.spaces.Box(0, 255, (50, 64, 3), np.uint8)
    action_space = gym.spaces.Discrete(2)


gym.register("OddPictures-v0", OddPictures)


PROGRAM = """
import signal
import sys
from pathlib import Path
from gasim_ray.training import algorithms
from gasim_ray.training.rllib import PolicyTraining, train_policy

algorithms.ITERATION_STEPS = 256
# Where the tests run in the background, a child inherits that SIGINT is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
settings = PolicyTraining(
    env="CartPole-v1", algo="dqn", hidden=(8,), episodes=3, max_steps=int(sys.argv[2]), stop_return=1e9,
    evaluate_seconds=1e9, checkpoint_seconds=0.0,
)
train_policy(settings, Path(sys.argv[1]), lambda p: print(p.steps, p.message, flush=True), resume=True)
"""


def training_process(out: Path, steps: int) -> subprocess.Popen[str]:
    # A process group of its own, so that Ray's processes can be ended with it.
    command = [sys.executable, "-c", PROGRAM, str(out), str(steps)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def checkpointed_steps(out: Path) -> int:
    try:
        return int(json.loads((out / "checkpoint" / "state.json").read_text())["state"]["steps"])
    except OSError:
        return 0


def wait_for_steps(out: Path, steps: int, process: subprocess.Popen[str]) -> None:
    while checkpointed_steps(out) < steps:
        assert process.poll() is None
        time.sleep(0.1)


def test_a_killed_training_resumes(tmp_path: Path) -> None:
    out = tmp_path / "teacher"
    process = training_process(out, 1_000_000)
    wait_for_steps(out, 1_250, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    reached = checkpointed_steps(out)
    process = training_process(out, 1_000_000)
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    assert next(lines).split() == [str(reached), "resumed"]
    assert int(next(lines).split()[0]) > reached
    process.send_signal(signal.SIGINT)
    said = list(lines)
    process.wait()
    assert "--resume" in said[-1]
    assert checkpointed_steps(out) > reached


def fragment(terminated: bool) -> SingleAgentEpisode:
    return SingleAgentEpisode(
        observations=[np.full(2, float(t), np.float32) for t in range(5)],
        actions=[0, 1, 2, 3],
        rewards=[1.0, 2.0, 4.0, 8.0],
        terminated=terminated,
        len_lookback_buffer=0,
    )


@pytest.mark.parametrize("terminated", [True, False])
def test_transitions_of_several_steps(terminated: bool) -> None:
    rows = n_step_transitions(fragment(terminated), n=3, gamma=0.5)
    np.testing.assert_allclose(rows["rewards"], [1 + 1 + 1, 2 + 2 + 2, 4 + 4, 8])
    np.testing.assert_array_equal(rows["n_step"], [3, 3, 2, 1])
    np.testing.assert_array_equal(rows["new_obs"][:, 0], [3, 4, 4, 4])
    np.testing.assert_array_equal(rows["terminateds"], np.array([False, True, True, True]) & terminated)


def test_the_replay_buffer_keeps_the_latest_and_is_restored() -> None:
    buffer = ArrayReplayBuffer(capacity=6, n_step=1, gamma=1.0, seed=0)
    buffer.add([fragment(False), fragment(True)])
    assert set(buffer.sample(100)["obs"][:, 0]) == {0.0, 1.0, 2.0, 3.0}
    np.testing.assert_array_equal(buffer.rows["actions"], [2, 3, 2, 3, 0, 1])
    copy = ArrayReplayBuffer(capacity=6, n_step=1, gamma=1.0, seed=1)
    copy.set_state(buffer.get_state())
    np.testing.assert_array_equal(copy.sample(20)["obs"], buffer.sample(20)["obs"])
    partial = ArrayReplayBuffer(capacity=6, n_step=1, gamma=1.0, seed=0)
    partial.add([fragment(True)])
    copy.set_state(partial.get_state())
    copy.add([fragment(False)])
    np.testing.assert_array_equal(copy.rows["actions"], [2, 3, 2, 3, 0, 1])


@pytest.mark.parametrize(
    ("env", "word"),
    [
        ("CartPol-v1", "did you mean 'CartPole-v1'"),
        ("Pendulum-v1", "only discrete actions"),
        ("MountainCarContinuous-v0", "only discrete actions"),
        ("Taxi-v3", "only vectors and images"),
        ("OddPictures-v0", r"^env: OddPictures-v0 shows pictures of \[50, 64, 3\], for which RLlib has no network"),
    ],
)
def test_environments_that_are_refused(tmp_path: Path, env: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        train_policy(small("ppo", env=env), tmp_path / "teacher", lambda _: None)
    assert not (tmp_path / "teacher").exists()
    assert env == "CartPol-v1" or env in gym.registry
