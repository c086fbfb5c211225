"""RLlib checkpoints as teachers, against the real RLlib: each algorithm's own module, saved by RLlib itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.env_to_module import EnvToModulePipeline, MeanStdFilter
from ray.rllib.connectors.env_to_module.frame_stacking import FrameStackingEnvToModule
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from gasim_ray.core.observation import ObservationSpec
from gasim_ray.errors import UserError
from gasim_ray.teachers import ImportOptions, import_teacher, load_teacher
from gasim_ray.teachers.rllib_modules import model_from_module

TRUSTED = ImportOptions(trust=True)
VECTORS = gym.spaces.Box(
    -np.array([4.8, np.inf, 0.4, np.inf], np.float32), np.array([4.8, np.inf, 0.4, np.inf], np.float32)
)
PICTURES = gym.spaces.Box(-1.0, 1.0, (20, 16, 3), np.float32)
FILTERS = [[4, 5, 2], [6, 3, (2, 1)]]


def save_module(config: Any, observations: gym.Space, folder: Path, **model: Any) -> RLModule:
    """The algorithm's default module with random weights, saved as RLlib saves it."""
    model = {"fcnet_hiddens": [12, 9], **model}
    config = config.environment(observation_space=observations, action_space=gym.spaces.Discrete(3)).rl_module(
        model_config=DefaultModelConfig(**model)
    )
    torch.manual_seed(len(str(model)))
    spec = config.get_default_rl_module_spec()
    spec.observation_space, spec.action_space = observations, gym.spaces.Discrete(3)
    spec.model_config, spec.inference_only = config.model_config, False
    module = spec.build()
    module.save_to_path(str(folder))
    return module


def outputs(module: RLModule, observations: torch.Tensor) -> torch.Tensor:
    module.eval()
    if hasattr(module, "compute_q_values"):
        return module.compute_q_values({"obs": observations})["qf_preds"]
    return module._forward({"obs": observations})["action_dist_inputs"]


def check_equal(module: RLModule, folder: Path, observations: torch.Tensor) -> None:
    with torch.inference_mode():
        ours = load_teacher(folder)(observations)
        torch.testing.assert_close(ours, outputs(module, observations), atol=1e-5, rtol=1e-5)


ALGORITHMS: dict[str, Callable[[], Any]] = {
    "ppo": PPOConfig,
    "appo": APPOConfig,
    "impala": IMPALAConfig,
    "dqn-dueling": DQNConfig,
    "dqn-plain": lambda: DQNConfig().training(dueling=False),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("observations", [VECTORS, PICTURES], ids=["vectors", "pictures"])
def test_imported_outputs_equal_the_modules(tmp_path: Path, algorithm: str, observations: gym.spaces.Box) -> None:
    model = {"conv_filters": FILTERS} if observations is PICTURES else {}
    module = save_module(ALGORITHMS[algorithm](), observations, tmp_path / "source", **model)
    imported = import_teacher(str(tmp_path / "source"), tmp_path / "teacher", TRUSTED)
    assert imported.config.outputs == ("q_values" if algorithm.startswith("dqn") else "logits")
    check_equal(module, tmp_path / "teacher", 3 * torch.randn(50, *observations.shape))


@pytest.mark.parametrize(
    ("algorithm", "model"),
    [
        ("ppo", {"vf_share_layers": False}),
        ("ppo", {"head_fcnet_hiddens": [7], "head_fcnet_activation": "tanh"}),
        ("ppo", {"fcnet_activation": "silu"}),
        ("dqn-dueling", {"head_fcnet_hiddens": [7, 5]}),
        ("dqn-dueling", {"conv_filters": FILTERS, "head_fcnet_hiddens": [7]}),
    ],
)
def test_other_shapes_of_the_default_modules(tmp_path: Path, algorithm: str, model: dict[str, Any]) -> None:
    observations = PICTURES if "conv_filters" in model else VECTORS
    module = save_module(ALGORITHMS[algorithm](), observations, tmp_path / "source", **model)
    import_teacher(str(tmp_path / "source"), tmp_path / "teacher", TRUSTED)
    check_equal(module, tmp_path / "teacher", torch.randn(50, *observations.shape))


@pytest.mark.parametrize(
    ("model", "word"),
    [
        ({"use_lstm": True}, "LSTM"),
        ({"fcnet_use_layernorm": True}, "LayerNorm"),
        ({"head_fcnet_hiddens": [7]}, "mixes activations"),
    ],
)
def test_what_cannot_be_converted_is_refused(tmp_path: Path, model: dict[str, Any], word: str) -> None:
    save_module(PPOConfig(), VECTORS, tmp_path / "source", **model)
    with pytest.raises(UserError, match=word):
        import_teacher(str(tmp_path / "source"), tmp_path / "teacher", TRUSTED)
    assert not (tmp_path / "teacher").exists()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, joined_by_rllib: None) -> tuple[Any, Path]:
    """A PPO algorithm on CartPole with a mean/std filter that has seen some steps, and its checkpoint's root."""
    algorithm = (
        PPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=0, env_to_module_connector=lambda *_, **__: MeanStdFilter())
        .training(train_batch_size_per_learner=200, minibatch_size=100, num_epochs=1)
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[8, 8]))
        .debugging(log_level="ERROR")
        .build_algo()
    )
    algorithm.train()
    root = tmp_path_factory.mktemp("rllib") / "checkpoint"
    algorithm.save_to_path(str(root))
    algorithm.stop()
    return algorithm, root


MODULE = "learner_group/learner/rl_module/default_policy"


@pytest.mark.parametrize("part", ["", "learner_group/learner/rl_module", MODULE])
def test_the_filter_is_taken_along(tmp_path: Path, checkpoint: tuple[Any, Path], part: str) -> None:
    _, root = checkpoint
    import_teacher(str(root / part), tmp_path / "teacher", TRUSTED)
    teacher, module = load_teacher(tmp_path / "teacher"), RLModule.from_checkpoint(str(root / MODULE))
    pipeline = EnvToModulePipeline.from_checkpoint(str(root / "env_runner/env_to_module_connector"))
    (normaliser,) = (c for c in pipeline.connectors if isinstance(c, MeanStdFilter))
    normaliser._update_stats = False
    for observation in np.random.default_rng(0).normal(scale=2, size=(20, 4)).astype(np.float32):
        episode = SingleAgentEpisode(observations=[observation], observation_space=VECTORS)
        seen = pipeline(rl_module=module, episodes=[episode], shared_data={}, explore=False)
        seen = seen.get("default_policy", seen)["obs"]
        expected = outputs(module, torch.as_tensor(seen).reshape(1, -1))
        torch.testing.assert_close(teacher(torch.from_numpy(observation[None])), expected, atol=1e-5, rtol=1e-5)


def test_a_copied_root_needs_nothing_else(tmp_path: Path, checkpoint: tuple[Any, Path]) -> None:
    shutil.copytree(checkpoint[1], tmp_path / "elsewhere")
    teacher = import_teacher(str(tmp_path / "elsewhere"), tmp_path / "teacher", TRUSTED)
    assert teacher.config.observation.clip == 10.0
    assert teacher.config.observation.low == (pytest.approx(-4.8), None, pytest.approx(-0.41887903), None)
    program = (
        "import sys; sys.modules.update(ray=None, gymnasium=None, ale_py=None)\n"
        "from gasim_ray.teachers import load_teacher\n"
        "print(load_teacher(sys.argv[1]).config.actions)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "teacher")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "2"


class Frames(gym.Env[Any, Any]):
    """Shows random pictures."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (16, 16, 1), np.float32)
    action_space = gym.spaces.Discrete(3)

    def __init__(self, config: dict[str, Any]) -> None:
        pass

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


def test_the_frame_stack_is_taken_along(tmp_path: Path) -> None:
    algorithm = (
        PPOConfig()
        .environment(Frames)
        .env_runners(num_env_runners=0, env_to_module_connector=lambda *_, **__: FrameStackingEnvToModule(num_frames=4))
        .rl_module(model_config=DefaultModelConfig(conv_filters=FILTERS))
        .debugging(log_level="ERROR")
        .build_algo()
    )
    algorithm.save_to_path(str(tmp_path / "root"))
    module, pipeline = algorithm.get_module(), algorithm.env_runner._env_to_module
    algorithm.stop()
    spec = import_teacher(str(tmp_path / "root"), tmp_path / "teacher", TRUSTED).config.observation
    assert (spec.shape, spec.stack, spec.layout) == ((16, 16, 4), 4, "HWC")
    (stacking,) = (c for c in pipeline.connectors if type(c).__name__ == "FrameStacking")
    frames = np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 1)).astype(np.float32)
    episode = SingleAgentEpisode(observations=list(frames), actions=[0, 1, 2], rewards=[0.0] * 3, len_lookback_buffer=0)
    ((stack,),) = stacking(rl_module=module, batch={}, episodes=[episode])["obs"].values()
    np.testing.assert_array_equal(stack, np.concatenate(frames, -1))  # oldest first, as the spec says
    check_equal(module, tmp_path / "teacher", torch.from_numpy(stack[None]))


def test_frames_that_a_wrapper_stacks_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As RLlib's `wrap_atari_for_new_api_stack(framestack=4)` shows them; a module alone does not tell."""
    save_module(
        PPOConfig(), gym.spaces.Box(-1.0, 1.0, (64, 64, 4), np.float32), tmp_path / "source", conv_filters=FILTERS
    )
    spec = import_teacher(str(tmp_path / "source"), tmp_path / "one", TRUSTED).config.observation
    assert (spec.shape, spec.stack) == ((64, 64, 4), 1)
    assert "a module without its algorithm" in capsys.readouterr().err
    told = replace(TRUSTED, stack=4)
    assert import_teacher(str(tmp_path / "source"), tmp_path / "four", told).config.observation.stack == 4
    with pytest.raises(UserError, match=r"stack: 3 frames do not make 4 channels"):
        import_teacher(str(tmp_path / "source"), tmp_path / "three", replace(TRUSTED, stack=3))


def test_without_trust_nothing_is_opened(tmp_path: Path, checkpoint: tuple[Any, Path]) -> None:
    with pytest.raises(UserError, match=r"(?s)pickle.*runs.*--trust"):
        import_teacher(str(checkpoint[1]), tmp_path / "teacher", ImportOptions())
    assert not (tmp_path / "teacher").exists()


def test_continuous_actions_are_refused(tmp_path: Path) -> None:
    config = PPOConfig().environment(observation_space=VECTORS, action_space=gym.spaces.Box(-1, 1, (2,)))
    spec = config.get_default_rl_module_spec()
    spec.observation_space, spec.action_space = VECTORS, gym.spaces.Box(-1, 1, (2,))
    spec.model_config = DefaultModelConfig(fcnet_hiddens=[4])
    spec.build().save_to_path(str(tmp_path / "source"))
    with pytest.raises(UserError, match="only discrete actions"):
        import_teacher(str(tmp_path / "source"), tmp_path / "teacher", TRUSTED)


@pytest.mark.parametrize("file", ["module_state.pkl", "class_and_ctor_args.pkl"])
def test_a_damaged_checkpoint_is_an_error_of_one_line(tmp_path: Path, file: str) -> None:
    save_module(PPOConfig(), VECTORS, tmp_path / "source")
    whole = (tmp_path / "source" / file).read_bytes()
    (tmp_path / "source" / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read as an RLlib checkpoint"):
        import_teacher(str(tmp_path / "source"), tmp_path / "teacher", TRUSTED)


def test_an_encoder_of_ones_own_is_refused_with_the_way_out() -> None:
    pieces = SimpleNamespace(net=SimpleNamespace(layers=()))
    module = SimpleNamespace(action_space=gym.spaces.Discrete(2), encoder=pieces, pi=pieces)
    spec = ObservationSpec((4,), "float32", "vector", (-1.0,), (1.0,))
    with pytest.raises(
        UserError, match=r"^source: the module SimpleNamespace is not built as .*package\.module:factory"
    ):
        model_from_module(module, spec, {})


def test_a_source_of_no_kind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither an RLlib checkpoint folder nor"):
        import_teacher(str(tmp_path), tmp_path / "teacher", TRUSTED)
    with pytest.raises(UserError, match="did you mean 'rllib'"):
        import_teacher(str(tmp_path), tmp_path / "teacher", TRUSTED, kind="rlib")


def test_a_policy_that_answers_nan_is_refused(tmp_path: Path) -> None:
    module = save_module(PPOConfig(), VECTORS, tmp_path / "source")
    with torch.no_grad():
        module.pi.net.mlp[0].weight.fill_(float("nan"))
    module.save_to_path(str(tmp_path / "poisoned"))
    with pytest.raises(UserError, match="NaN"):
        import_teacher(str(tmp_path / "poisoned"), tmp_path / "teacher", TRUSTED)
