"""Environments by id: their spaces, and models that do not fit them."""

import re
from dataclasses import replace

import gymnasium as gym
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gasim_ray.core.model import ModelConfig
from gasim_ray.core.observation import ObservationSpec
from gasim_ray.errors import UserError
from gasim_ray.evaluation.environments import (
    check_environment,
    environment_spec,
    frame_shape,
    make_environments,
    nearest_id,
)


def config(env_id="CartPole-v1"):
    spec, actions = environment_spec(env_id)
    return ModelConfig({"name": "mlp"}, spec, actions, "logits")


def test_vector_spaces_as_gymnasium_states_them():
    spec, actions = environment_spec("CartPole-v1")
    assert (spec.shape, spec.dtype, spec.layout, actions) == ((4,), "float32", "vector", 2)
    assert spec.low == (pytest.approx(-4.8), None, pytest.approx(-0.41887903), None)
    assert spec.high == (pytest.approx(4.8), None, pytest.approx(0.41887903), None)
    assert environment_spec("LunarLander-v3")[1] == 4


def test_a_game_is_seen_as_policies_are_trained_on_it():
    spec, actions = environment_spec("ALE/Pong-v5")
    assert (spec.shape, spec.dtype, spec.layout, actions) == ((4, 84, 84), "uint8", "CHW", 6)
    assert (spec.low, spec.high, spec.stack, spec.skip) == ((0.0,), (255.0,), 4, 4)


@pytest.mark.parametrize(
    ("asked", "offered"),
    [
        ("CartPole-v9", "CartPole-v1"),
        ("CartPole", "CartPole-v1"),
        ("cartpole-v0x", "CartPole-v1"),
        ("LunarLander-v2", "LunarLander-v3"),
        ("ALE/Pongg-v5", "ALE/Pong-v5"),
        ("ALE/Pongg-v5?sticky=0.25", "ALE/Pong-v5"),
    ],
)
def test_unknown_id_gets_the_nearest_newest(asked, offered):
    with pytest.raises(UserError, match=re.escape(f"'{asked}'; did you mean '{offered}'")) as caught:
        environment_spec(asked)
    assert "\n" not in str(caught.value)


def test_an_environment_of_ones_own_is_registered_by_its_module(tmp_path, monkeypatch):
    (tmp_path / "registers_mine.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('Mine-v0', 'gymnasium.envs.classic_control.cartpole:CartPoleEnv', max_episode_steps=5)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert environment_spec("registers_mine:Mine-v0")[1] == 2
    with pytest.raises(UserError, match=r"^env: 'no_such_module:Mine-v0' cannot be imported"):
        environment_spec("no_such_module:Mine-v0")
    with pytest.raises(UserError, match=r"does not know 'registers_mine:Mein-v0'; did you mean 'Mine-v0'"):
        environment_spec("registers_mine:Mein-v0")


def test_unknown_id_unlike_any_other():
    with pytest.raises(UserError, match="does not know 'qqqqqq-v0'"):
        environment_spec("qqqqqq-v0")


@settings(deadline=None)
@given(st.lists(st.integers(0, 99), min_size=1, unique=True))
def test_nearest_prefers_the_newest_version(versions):
    assert nearest_id("Cart-v100", [f"Cart-v{v}" for v in versions]) == f"Cart-v{max(versions)}"


def test_every_registered_name_is_its_own_nearest():
    newest = {}
    for env_id in sorted(gym.registry, key=lambda env_id: int(env_id.rpartition("-v")[2])):
        newest[env_id.rpartition("-v")[0].lower()] = env_id
    for env_id in newest.values():
        assert nearest_id(env_id, gym.registry) == env_id


def test_continuous_actions_are_refused_plainly():
    with pytest.raises(UserError, match=r"actions of Pendulum-v1 are Box.*only discrete actions are supported"):
        environment_spec("Pendulum-v1")


def test_observations_that_are_no_array_are_refused():
    with pytest.raises(UserError, match=r"observations of FrozenLake-v1 are Discrete"):
        environment_spec("FrozenLake-v1")


def test_environment_whose_library_is_missing():
    gym.register("GasimNoLibrary-v0", entry_point="no_such_library:Env")
    with pytest.raises(UserError, match="GasimNoLibrary-v0 cannot be made"):
        make_environments("GasimNoLibrary-v0", 1)


def test_a_model_of_the_environment_fits():
    check_environment("CartPole-v1", config(), "student")


def test_what_an_environment_of_ones_own_skips_is_not_asked():
    spec = replace(config().observation, skip=4)
    check_environment("CartPole-v1", replace(config(), observation=spec), "teacher")


def test_observation_disagrees():
    with pytest.raises(UserError, match=r"Acrobot-v1 shows observations of \[6\], the student reads \[4\]"):
        check_environment("Acrobot-v1", config(), "student")


def test_action_count_disagrees():
    with pytest.raises(UserError, match="CartPole-v1 has 2 actions, the teacher has 3"):
        check_environment("CartPole-v1", replace(config(), actions=3), "teacher")


def test_frame_stack_fits_single_frames():
    spec = ObservationSpec((8,), "float32", "vector", (None,), (None,), stack=2)
    check_environment("CartPole-v1", replace(config(), observation=spec), "teacher")
    with pytest.raises(UserError, match="in 4 frames"):
        check_environment("CartPole-v1", replace(config(), observation=replace(spec, stack=4)), "teacher")


@settings(deadline=None)
@given(
    st.sampled_from(["vector", "HWC", "CHW"]),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_a_stack_of_frames_has_the_shape_of_the_observation(layout, stack, channels, height, width):
    shapes = {
        "vector": ((channels * stack,), (channels,)),
        "HWC": ((height, width, channels * stack), (height, width, channels)),
        "CHW": ((channels * stack, height, width), (channels, height, width)),
    }
    observation, frame = shapes[layout]
    assert frame_shape(ObservationSpec(observation, "float32", layout, (0.0,), (1.0,), stack=stack)) == frame
