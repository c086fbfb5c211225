"""Trains a policy with RLlib (PPO, DQN or APPO, new API stack) and keeps the best greedy one as a teacher.

The training folder is the teacher folder: `config.json` and `model.safetensors` appear when the training ends; until
then, and afterwards if its goal was not reached, `checkpoint/` holds what `resume` needs.
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from dataclasses import asdict, dataclass, fields, replace
from math import inf
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from gasim_ray.config import plain
from gasim_ray.core.model import Model, load_config, load_model, save_model
from gasim_ray.core.observation import ObservationSpec
from gasim_ray.core.settings import check_range
from gasim_ray.errors import UserError, one_line
from gasim_ray.evaluation.atari import is_atari
from gasim_ray.evaluation.environments import environment_spec
from gasim_ray.evaluation.episodes import PARALLEL_ENVIRONMENTS, evaluate_many
from gasim_ray.evaluation.tasks import TEACHER
from gasim_ray.teachers import with_output_scale
from gasim_ray.teachers.folder import check_teacher_folder, replaced_folder, surviving_folder
from gasim_ray.teachers.rllib_modules import model_from_module
from gasim_ray.training.classifier import check_same
from gasim_ray.training.progress import Progress, Report
from gasim_ray.training.recipes import STOP_RETURNS, recipe_for

#: Episodes of a first look at the greedy policy, and of the second, which decides; only a policy that is better than
#: the best so far is looked at again.
LOOKS = (20, 100)
#: The same for Atari's games, whose episodes take thousands of steps.
GAME_LOOKS = (8, 16)
#: Time trained after an evaluation, at least, as a multiple of the time that it took: episodes may be long.
EVALUATION_REST = 5.0
#: Seeds of the looks; the reported episodes start from seeds of their own, so that choosing does not flatter them.
GLANCE_SEED, CONFIRM_SEED, REPORT_SEED = 10_000_000, 20_000_000, 30_000_000


@dataclass(frozen=True)
class PolicyTraining:
    """What to train, with what, and for how long."""

    section = ""

    env: str
    """Gymnasium id of the environment, whose actions must be discrete; a game's with ?sticky=0.25 behind it repeats
    an action with that probability."""

    algo: Literal["ppo", "dqn", "appo"]
    """RLlib's algorithm."""

    hidden: tuple[int, ...] = (256, 256)
    """Sizes of the hidden layers; not for Atari's games."""

    network: Literal["small", "nature", "impala"] = "small"
    """Atari's games: three convolutions for two cores, those of Mnih et al. 2015, or IMPALA's residual network."""

    width: float = 1.0
    """Atari's games: what the network's channels and units are multiplied by."""

    bf16: bool | None = None
    """Atari's games: compute in bfloat16, images channels last; None tries which is faster here."""

    stop_return: float | None = None
    """Greedy mean return at which to stop; None takes the environment's own, or trains to the budget."""

    budget_seconds: float | None = None
    """Seconds of training, those before a resume included; None takes 1,200, and for Atari's games no limit."""

    max_steps: int = 5_000_000
    """Environment steps after which to stop; for Atari's games the step size of PPO and APPO falls to nothing there."""

    seed: int = 0
    """Seed of the algorithm and its environments."""

    env_runners: int = 0
    """Environment runners that sample as Ray actors; with 0 the training's own process samples."""

    envs: int | None = None
    """Environments that each runner steps side by side; None takes the recipe's number."""

    evaluate_seconds: float | None = None
    """Seconds between two greedy evaluations, at least; None takes 10, and 600 for Atari's games."""

    checkpoint_seconds: float = 60.0
    """Seconds between two checkpoints."""

    episodes: int = 100
    """Greedy episodes of the score that the teacher carries."""

    def __post_init__(self) -> None:
        at_least_one = ("episodes", "max_steps", "envs")
        at_least_zero = ("budget_seconds", "env_runners", "evaluate_seconds", "checkpoint_seconds", "seed")
        limits = dict.fromkeys(at_least_one, 1.0) | dict.fromkeys(at_least_zero, 0.0) | {"width": 0.01}
        check_range(self, limits, {"width": 16.0})
        other = ("hidden",) if is_atari(self.env) else ("network", "width", "bf16")
        kind = "other environments; a game has --network and --width" if is_atari(self.env) else "Atari's games"
        for setting in fields(self):
            if setting.name in other and getattr(self, setting.name) != setting.default:
                raise UserError(f"{setting.name}: {getattr(self, setting.name)} is for {kind}; leave it out")

    @property
    def seconds(self) -> float:
        """Seconds of training, at most."""
        usual = inf if is_atari(self.env) else 1200.0
        return usual if self.budget_seconds is None else self.budget_seconds

    @property
    def rest_seconds(self) -> float:
        """Seconds between two greedy evaluations, at least."""
        usual = 600.0 if is_atari(self.env) else 10.0
        return usual if self.evaluate_seconds is None else self.evaluate_seconds

    def facts(self) -> dict[str, Any]:
        """What else made the policy than its source says: the network's settings, the last step, and the recipe."""
        network = (
            {"network": self.network, "width": self.width} if is_atari(self.env) else {"hidden": list(self.hidden)}
        )
        recipe = asdict(recipe_for(self.algo, self.env, self.envs))
        return {**network, "max_steps": self.max_steps, "env_runners": self.env_runners, "recipe": recipe}

    @property
    def goal(self) -> float | None:
        """The greedy mean return at which to stop, if any."""
        return self.stop_return if self.stop_return is not None else STOP_RETURNS.get(self.env)


@dataclass
class _State:
    """What a checkpoint keeps beside RLlib's own."""

    seconds: float = 0.0
    steps: int = 0
    best: float | None = None
    score: float | None = None
    reached: bool = False
    #: Mean entropy, in nats, of the policy while it explores; of PPO and APPO.
    entropy: float | None = None
    #: That of the policy that is `best`.
    best_entropy: float | None = None


def train_policy(
    settings: PolicyTraining, out: Path, report: Report, *, resume: bool = False, overwrite: bool = False
) -> Model:
    """Train, keep the best greedy policy, evaluate it, and save it as a teacher folder at `out`.

    Ctrl-C leaves a checkpoint and raises KeyboardInterrupt again; after it, or after a kill, `resume` goes on.
    Raises UserError for an unknown environment, a continuous action space, an existing folder without `resume` or
    `overwrite`, or a checkpoint of other settings.
    """
    observation = policy_observation(settings.env)
    state = _prepare(settings, out, resume, overwrite)
    if state is None:
        return load_model(out).frozen()
    threads = torch.get_num_threads()
    if not observation.is_image:
        # Networks this small gain nothing from more, and on a busy machine threads that wait for each other lose a lot.
        torch.set_num_threads(1)
    training = _Training(settings, out, report, observation, state)
    if not resume:  # only now, when RLlib has refused nothing
        shutil.rmtree(out, ignore_errors=True)
    try:
        training.run()
    except KeyboardInterrupt:
        training.checkpoint()
        training.say(f"stopped; go on with --resume --out {out}")
        raise
    finally:
        training.algorithm.stop()
        torch.set_num_threads(threads)
    try:
        return training.finish()
    except KeyboardInterrupt:
        training.say(f"stopped; go on with --resume --out {out}")
        raise


def policy_observation(env_id: str) -> ObservationSpec:
    """What the policy to be trained reads: what the environment shows, a game's pixels scaled to 0 to 1.

    Raises UserError for an unknown environment, and for other pictures with channels first.
    """
    observation, _ = environment_spec(env_id)
    if is_atari(env_id):
        return replace(observation, std=(255.0,))
    if observation.layout == "CHW":
        raise UserError(f"env: {env_id} shows channels first; RLlib's networks read (height, width, channels)")
    if observation.is_image:
        from ray.rllib.models.utils import get_filter_config

        try:
            get_filter_config(observation.shape)
        except ValueError as error:
            size = list(observation.shape)
            raise UserError(
                f"env: {env_id} shows pictures of {size}, for which RLlib has no network of its own; train with RLlib "
                "(conv_filters) and bring it with `gasim teacher import`"
            ) from error
    return observation


def _prepare(settings: PolicyTraining, out: Path, resume: bool, overwrite: bool) -> _State | None:
    """The state to start from, or None if the training ended at its goal.

    Raises UserError if the folder is in the way or belongs to other settings.
    """
    check_teacher_folder(out, resume, overwrite)
    if not resume:
        return _State()
    checkpoint = surviving_folder(out / "checkpoint")
    if not (checkpoint / "state.json").exists():
        if not (out / "config.json").exists():
            return _State()
        source = load_config(out).source
        trained = {"env": source.get("environment"), "algo": source.get("algorithm"), "seed": source.get("seed")}
        _check_same(settings, {**trained, **source.get("training", {})}, f"the finished teacher in {out}")
        return None
    try:
        saved = json.loads((checkpoint / "state.json").read_text())
    except ValueError as error:
        raise _damaged(out, error) from error
    _check_same(settings, saved["settings"], f"the checkpoint in {out}")
    return _State(**saved["state"])


def _check_same(settings: PolicyTraining, known: dict[str, Any], where: str) -> None:
    """Raise UserError if what is there was trained with other settings, as far as it tells them."""
    network = ("network", "width") if is_atari(settings.env) else ("hidden",)
    asked = {name: getattr(settings, name) for name in ("env", "algo", *network, "seed")}
    check_same({name: plain(value) for name, value in asked.items()}, plain(known), where)


def _damaged(out: Path, error: Exception) -> UserError:
    return UserError(f"out: the checkpoint in {out} is damaged ({one_line(error)}); --overwrite starts afresh")


class _Training:
    """One run of RLlib's algorithm between two checkpoints."""

    def __init__(
        self, settings: PolicyTraining, out: Path, report: Report, observation: ObservationSpec, state: _State
    ) -> None:
        from gasim_ray.training.algorithms import build_algorithm

        self.settings, self.out, self.report, self.observation, self.state = settings, out, report, observation, state
        self.algorithm = build_algorithm(settings, observation)
        self.best: Model | None = None
        if state.steps:
            try:
                self.algorithm.restore_from_path(str((out / "checkpoint" / "algorithm").resolve()))
            except Exception as error:  # whatever pickle and RLlib make of damaged files
                self.algorithm.stop()
                raise _damaged(out, error) from error
            if state.best is not None:
                self.best = load_model(out / "checkpoint" / "best")
            self.say("resumed")
        self.started = time.monotonic() - state.seconds
        self.checkpointed = time.monotonic()
        self.next_evaluation = self.checkpointed + settings.rest_seconds

    def run(self) -> None:
        """Iterate until the goal, the budget or the last step."""
        while not (self.state.reached or self._exhausted()):
            result = self.algorithm.train()
            now = time.monotonic()
            self.state.seconds = now - self.started
            sampled = result.get("env_runners", {})
            self.state.steps = int(sampled.get("num_env_steps_sampled_lifetime", self.state.steps))
            returned = sampled.get("episode_return_mean")
            self.state.score = None if returned is None or np.isnan(returned) else float(returned)
            learned = result.get("learners", {}).get(DEFAULT_MODULE_ID, {})
            self.state.entropy = float(learned["entropy"]) if "entropy" in learned else self.state.entropy
            if now >= self.next_evaluation:
                self._evaluate()
                took = time.monotonic() - now
                self.next_evaluation = now + took + max(self.settings.rest_seconds, EVALUATION_REST * took)
            if now - self.checkpointed >= self.settings.checkpoint_seconds:
                self.checkpoint()
            self.say()
        if not self.state.reached:
            self._evaluate()
        self.checkpoint()

    def _exhausted(self) -> bool:
        return self.state.seconds >= self.settings.seconds or self.state.steps >= self.settings.max_steps

    def current(self) -> Model:
        """The policy as it is now, as a teacher."""
        module = copy.deepcopy(self.algorithm.get_module())
        # The learner's, since runners of their own fetch theirs and this process's module lags behind.
        module.set_state(self.algorithm.learner_group.get_weights()[DEFAULT_MODULE_ID])
        if is_atari(self.settings.env):
            model: Model = module.model.cpu()
            return model.computing(False, False).frozen()
        return model_from_module(module, self.observation, {})

    def _evaluate(self) -> None:
        policy = self.current()
        first, second = GAME_LOOKS if is_atari(self.settings.env) else LOOKS
        if self.state.best is not None and self._mean_return(policy, first, GLANCE_SEED) <= self.state.best:
            return
        confirmed = self._mean_return(policy, second, CONFIRM_SEED)
        if self.state.best is None or confirmed > self.state.best:
            self.state.best, self.best = confirmed, policy
            self.state.best_entropy = self.state.entropy
            goal = self.settings.goal
            self.state.reached = goal is not None and confirmed >= goal

    def _mean_return(self, policy: Model, episodes: int, seed: int) -> float:
        return float(self._play(policy, episodes, seed).mean())

    def _play(self, policy: Model, episodes: int, seed: int) -> npt.NDArray[np.float64]:
        # What fits side by side into this process is not worth the start of others.
        alone = episodes < PARALLEL_ENVIRONMENTS or not is_atari(self.settings.env)
        env, seed = self.settings.env, seed + self.settings.seed
        return evaluate_many({TEACHER: policy}, env, episodes, seed, {}, alone)[TEACHER].returns

    def checkpoint(self) -> None:
        """Write what `resume` needs; the previous checkpoint stays whole until the new one is."""
        self.state.seconds = time.monotonic() - self.started
        self.out.mkdir(parents=True, exist_ok=True)
        with replaced_folder(self.out / "checkpoint") as folder:
            self.algorithm.save_to_path(str((folder / "algorithm").resolve()))
            if self.best is not None:
                save_model(self.best, folder / "best")
            saved = {"settings": asdict(self.settings), "state": asdict(self.state)}
            (folder / "state.json").write_text(json.dumps(saved, indent=1) + "\n")
        self.checkpointed = time.monotonic()

    def finish(self) -> Model:
        """Score the best policy on fresh episodes and save it; a reached goal needs no checkpoint any more."""
        assert self.best is not None
        returns = self._play(self.best, self.settings.episodes, REPORT_SEED)
        self.best.config = replace(self.best.config, source=self._source(returns))
        model = with_output_scale(self.best.frozen())
        save_model(model, self.out)
        if self.state.reached:
            shutil.rmtree(self.out / "checkpoint", ignore_errors=True)
        self.say(f"greedy return {returns.mean():.1f} ± {returns.std():.1f} over {len(returns)} episodes")
        return model

    def _source(self, returns: npt.NDArray[np.float64]) -> dict[str, Any]:
        import ray

        training = self.settings.facts()
        if is_atari(self.settings.env):
            training["bf16"] = self.algorithm.config.rl_module_spec.model_config["bf16"]
        return {
            "kind": "rllib",
            "environment": self.settings.env,
            "algorithm": self.settings.algo,
            "seed": self.settings.seed,
            "environment_steps": self.state.steps,
            "wall_seconds": round(self.state.seconds, 1),
            "mean_return": round(float(returns.mean()), 3),
            "std_return": round(float(returns.std()), 3),
            "episodes": len(returns),
            "entropy": self.state.best_entropy and round(self.state.best_entropy, 4),
            "training": training,
            "versions": {"ray": ray.__version__},
        }

    def say(self, message: str = "") -> None:
        """Report the state; time left is that to the last step, at the rate so far, if that comes first."""
        to_the_end = self.state.seconds * self.settings.max_steps / self.state.steps if self.state.steps else inf
        self.report(
            Progress(
                seconds=self.state.seconds,
                budget_seconds=min(self.settings.seconds, to_the_end),
                steps=self.state.steps,
                # The rewards that it learns from are clipped there, and a life counts as an episode.
                metric="clipped return of a life" if is_atari(self.settings.env) else "mean return",
                score=self.state.score,
                best=self.state.best,
                goal=self.settings.goal,
                message=message,
            )
        )
