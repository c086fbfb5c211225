"""RLlib's algorithm objects for a PolicyTraining; the one file of the training that configures RLlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from gasim_ray.actors.ray_workers import connect
from gasim_ray.core.model import Model, ModelConfig
from gasim_ray.core.observation import ObservationSpec
from gasim_ray.evaluation.atari import is_atari
from gasim_ray.evaluation.environments import environment_spec
from gasim_ray.training.actor_critic import ActorCritic
from gasim_ray.training.array_ppo import ArrayPPO, GameRunner
from gasim_ray.training.game_appo import EpisodeRunner, TargetActorCritic
from gasim_ray.training.game_dqn import GameDQN, GameQ, GreedyRunner
from gasim_ray.training.precision import bf16_is_faster
from gasim_ray.training.recipes import APPORecipe, DQNRecipe, PolicyRecipe, PPORecipe, game_network, recipe_for
from gasim_ray.training.replay_dqn import ReplayDQN

if TYPE_CHECKING:
    from gasim_ray.training.rllib import PolicyTraining

#: Environment steps of one call of train(): often enough for progress and Ctrl-C, seldom enough to cost nothing.
ITERATION_STEPS = 2_000


def build_algorithm(settings: PolicyTraining, observation: ObservationSpec) -> Any:
    """An RLlib algorithm ready to train on what the environment shows; joins or starts Ray.

    Sampling and learning share one process unless `env_runners` says otherwise: on small networks, moving data
    between actors costs more than it saves.
    """
    connect()
    recipe, game = recipe_for(settings.algo, settings.env, settings.envs), is_atari(settings.env)
    if isinstance(recipe, DQNRecipe):
        config = _game_dqn(recipe, settings, observation) if game else _vector_dqn(recipe, settings)
    elif isinstance(recipe, PPORecipe):
        config = _game_ppo(recipe, settings, observation) if game else _vector_ppo(recipe, settings)
    else:
        config = _game_appo(recipe, settings, observation) if game else _vector_appo(recipe, settings)
    config = (
        config.environment(settings.env)
        .env_runners(
            num_env_runners=settings.env_runners,
            num_envs_per_env_runner=recipe.envs,
            rollout_fragment_length=recipe.fragment,
        )
        .learners(num_learners=0, num_gpus_per_learner=gpus(game))
        .reporting(min_sample_timesteps_per_iteration=ITERATION_STEPS, min_time_s_per_iteration=None)
        .debugging(seed=settings.seed, log_level="ERROR")
    )
    return config.build_algo()


def gpus(game: bool) -> int:
    """How many the learner takes: one for pictures if there is one; vectors' networks are too small to gain."""
    return int(game and torch.cuda.is_available())


def _dqn(config: DQNConfig, recipe: DQNRecipe) -> Any:
    return config.training(
        lr=recipe.lr,
        gamma=recipe.gamma,
        train_batch_size_per_learner=recipe.batch,
        training_intensity=recipe.intensity,
        num_steps_sampled_before_learning_starts=recipe.warm_up,
        target_network_update_freq=recipe.target_every,
        epsilon=[(0, 1.0), (recipe.epsilon_steps, recipe.epsilon)],
        replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": recipe.buffer},
        n_step=recipe.n_step,
        double_q=True,
        grad_clip=10.0,  # Stable-Baselines3's default, from memory
    )


def _vector_dqn(recipe: DQNRecipe, settings: PolicyTraining) -> Any:
    network = DefaultModelConfig(fcnet_hiddens=list(settings.hidden), fcnet_activation="relu")
    config = DQNConfig(algo_class=ReplayDQN).training(dueling=True, store_buffer_in_checkpoints=True)
    return _dqn(config, recipe).rl_module(model_config=network)


def _game_dqn(recipe: DQNRecipe, settings: PolicyTraining, observation: ObservationSpec) -> Any:
    network = _game_network(settings, observation, recipe.batch)
    return (
        _dqn(DQNConfig(algo_class=GameDQN), recipe)
        .env_runners(env_runner_cls=GreedyRunner)
        .rl_module(rl_module_spec=RLModuleSpec(module_class=GameQ, model_config=network))
    )


def _ppo(config: PPOConfig, recipe: PPORecipe, settings: PolicyTraining) -> Any:
    return config.training(
        lr=_step_size(recipe, settings),
        gamma=recipe.gamma,
        lambda_=recipe.lambda_,
        train_batch_size_per_learner=recipe.envs * recipe.fragment * max(1, settings.env_runners),
        minibatch_size=recipe.minibatch,
        num_epochs=recipe.epochs,
        entropy_coeff=recipe.entropy,
        clip_param=recipe.clip,
        # RLlib's default clips the value loss at 10, far below these environments' squared returns.
        vf_clip_param=float("inf"),
        vf_loss_coeff=0.5,  # as grad_clip: Huang et al. 2022, "37 details"
        use_kl_loss=False,
        grad_clip=0.5,
        grad_clip_by="global_norm",
    )


def _step_size(recipe: PolicyRecipe, settings: PolicyTraining) -> Any:
    return [[0, recipe.lr], [settings.max_steps, 0.0]] if recipe.anneal else recipe.lr


def _two_networks(settings: PolicyTraining) -> DefaultModelConfig:
    """One for the policy and one for the value."""
    return DefaultModelConfig(fcnet_hiddens=list(settings.hidden), fcnet_activation="tanh", vf_share_layers=False)


def _vector_ppo(recipe: PPORecipe, settings: PolicyTraining) -> Any:
    return _ppo(PPOConfig(), recipe, settings).rl_module(model_config=_two_networks(settings))


def _game_ppo(recipe: PPORecipe, settings: PolicyTraining, observation: ObservationSpec) -> Any:
    network = _game_network(settings, observation, recipe.minibatch)
    return (
        _ppo(PPOConfig(algo_class=ArrayPPO), recipe, settings)
        .env_runners(env_runner_cls=GameRunner)
        .rl_module(rl_module_spec=RLModuleSpec(module_class=ActorCritic, model_config=network))
    )


def _appo(recipe: APPORecipe, settings: PolicyTraining) -> Any:
    return APPOConfig().training(
        lr=_step_size(recipe, settings),
        gamma=recipe.gamma,
        train_batch_size_per_learner=recipe.envs * recipe.fragment,
        entropy_coeff=recipe.entropy,
        clip_param=recipe.clip,
        vf_loss_coeff=1.0,  # these two: RLlib's example for Pong (pong_appo.py), from memory
        grad_clip=30.0,
        circular_buffer_num_batches=recipe.kept,
        circular_buffer_iterations_per_batch=2,
    )


def _vector_appo(recipe: APPORecipe, settings: PolicyTraining) -> Any:
    return _appo(recipe, settings).rl_module(model_config=_two_networks(settings))


def _game_appo(recipe: APPORecipe, settings: PolicyTraining, observation: ObservationSpec) -> Any:
    network = _game_network(settings, observation, recipe.envs * recipe.fragment)
    return (
        _appo(recipe, settings)
        # Otherwise RLlib's own runner fetches new weights when it samples, and ours does so in its own way.
        .env_runners(env_runner_cls=EpisodeRunner, use_env_runner_state_server=False)
        .rl_module(rl_module_spec=RLModuleSpec(module_class=TargetActorCritic, model_config=network))
    )


def _game_network(settings: PolicyTraining, observation: ObservationSpec, batch: int) -> dict[str, Any]:
    """What the modules of games are told, see ActorCritic."""
    architecture, bf16 = game_network(settings.network, settings.width), settings.bf16
    if bf16 is None:
        _, actions = environment_spec(settings.env)
        device = "cuda" if gpus(True) else "cpu"
        bf16 = bf16_is_faster(Model(ModelConfig(architecture, observation, actions, "logits")).to(device), batch)
    return {"architecture": architecture, "observation": observation.to_json(), "bf16": bf16}
