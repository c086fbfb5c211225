"""RLlib checkpoints (new API stack) as a source: PPO, APPO, IMPALA and DQN with their default MLP and CNN modules.

What the policy sees is not in its module: the mean/std filter and the frame stack lie in the environment runner's
connectors, and a policy restored without them plays badly. They become a part of the teacher's ObservationSpec.

RLlib and Gymnasium are imported only while a checkpoint is read.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gasim_ray.core.model import Model
from gasim_ray.core.observation import ObservationSpec
from gasim_ray.errors import UserError
from gasim_ray.models import resolve
from gasim_ray.teachers.options import ImportOptions
from gasim_ray.teachers.rllib_modules import model_from_module
from gasim_ray.teachers.spaces import observation_spec

#: What RLlib pickles every part of a checkpoint under.
MARKER = "class_and_ctor_args.pkl"
#: Where the modules lie in an algorithm's checkpoint.
MODULES = Path("learner_group/learner/rl_module")
#: Name of a single agent's module.
DEFAULT_MODULE = "default_policy"
#: Where an algorithm's checkpoint keeps what happens between the environment and the module.
CONNECTORS = Path("env_runner/env_to_module_connector")
#: Connectors that leave the values of an observation as they are.
NEUTRAL = {
    "AddObservationsFromEpisodesToBatch",
    "AddTimeDimToBatchAndZeroPad",
    "AddStatesFromEpisodesToBatch",
    "AgentToModuleMapping",
    "BatchIndividualItems",
    "NumpyToTensor",
}
#: RLlib divides by the standard deviation plus this (ray.rllib.utils.numpy.SMALL_NUMBER).
SMALL_NUMBER = 1e-6


def recognises(source: str) -> bool:
    """Whether the source is a folder that holds a checkpoint of an algorithm or of a module."""
    folder = Path(source)
    return (folder / MARKER).exists() or (folder / "rllib_checkpoint.json").exists()


def load(source: str, options: ImportOptions) -> Model:
    """The policy of a checkpoint's root or of its module folder.

    Raises UserError without `options.trust`, and if the checkpoint is damaged or its policy is not one of RLlib's
    default modules with discrete actions.
    """
    if not options.trust:
        raise UserError(
            f"trust: {source} is an RLlib checkpoint, which is a pickle: opening it runs whatever code it contains; "
            "if you trust where it came from, give --trust"
        )
    folder = _module_folder(Path(source).absolute())
    module = _read(folder, "ray.rllib.core.rl_module.rl_module:RLModule")
    observation = stacked(_observation(folder, module), options.stack)
    return model_from_module(module, observation, _described(folder, module))


def stacked(observation: ObservationSpec, stack: int | None) -> ObservationSpec:
    """The observation as one of so many frames; raises UserError if a connector stacks others."""
    if stack is None or observation.stack == stack:
        return observation
    if observation.stack > 1:
        raise UserError(
            f"stack: {stack}, but the checkpoint's connector stacks {observation.stack} frames; leave it out"
        )
    return replace(observation, stack=stack)


def _module_folder(source: Path) -> Path:
    for candidate in (source / MODULES / DEFAULT_MODULE, source / DEFAULT_MODULE):
        if (candidate / MARKER).exists():
            return candidate
    for modules in (source / MODULES, source):
        several = sorted(p.parent.name for p in modules.glob(f"*/{MARKER}"))
        if several and (modules == source / MODULES or not (source / "module_state.pkl").exists()):
            raise UserError(f"source: {source} holds the modules {', '.join(several)}; give the folder of one of them")
    return source


def _read(folder: Path, reference: str) -> Any:
    """Restore a part of a checkpoint; RLlib raises almost anything if it is damaged."""
    restorable: Any = resolve(reference, "source")
    try:
        return restorable.from_checkpoint(str(folder))
    except Exception as error:
        raise UserError(
            f"source: {folder} cannot be read as an RLlib checkpoint ({type(error).__name__}: {error}); "
            f"it is damaged, of RLlib's old API stack, or of another version of Ray ({_version(folder)})"
        ) from error


def _version(folder: Path) -> str:
    try:
        return str(json.loads((folder / "metadata.json").read_text())["ray_version"])
    except (OSError, ValueError, KeyError):
        return "unknown"


def _observation(folder: Path, module: Any) -> ObservationSpec:
    root = folder.parents[len(MODULES.parts)] if folder.match(str(MODULES / "*")) else None
    if root is None or not (root / CONNECTORS).exists():
        told = "an observation filter or a frame stack, if there was one, is told by the algorithm's checkpoint alone"
        print(f"warning: {folder} is a module without its algorithm; {told}", file=sys.stderr)
        return observation_spec(module.observation_space)
    pipeline = _read(root / CONNECTORS, "ray.rllib.connectors.env_to_module:EnvToModulePipeline")
    return _after_connectors(pipeline)


def _after_connectors(pipeline: Any) -> ObservationSpec:
    """The environment's observations with what the connectors do to them."""
    stack, normaliser = 1, None
    for connector in pipeline.connectors:
        name = type(connector).__name__
        if name == "FrameStacking":
            stack = connector.num_frames
        elif name == "MeanStdFilter":
            normaliser = connector
        elif name not in NEUTRAL and not _flattens_nothing(connector):
            raise UserError(
                f"source: the connector {name} changes observations in a way that cannot be taken along; "
                "only MeanStdFilter and FrameStacking can"
            )
    spec = observation_spec(pipeline.connectors[0].input_observation_space, stack)
    return spec if normaliser is None else _normalised(spec, normaliser)


def _flattens_nothing(connector: Any) -> bool:
    shape = getattr(connector.input_observation_space, "shape", None)
    return type(connector).__name__ == "FlattenObservations" and shape is not None and len(shape) == 1


def _normalised(spec: ObservationSpec, connector: Any) -> ObservationSpec:
    if spec.is_image:
        raise UserError("source: a MeanStdFilter over pictures (one mean a pixel) is not supported")
    (state,) = connector.get_state().values()
    (running,) = connector._filters.values()
    statistics = running.running_stats
    std = np.asarray(statistics.std, np.float64) + SMALL_NUMBER
    return replace(
        spec,
        mean=tuple(np.asarray(statistics.mean, np.float64).tolist()) if state["de_mean_to_zero"] else (0.0,),
        std=tuple(std.tolist()) if state["de_std_to_one"] else (1.0,),
        clip=state["clip_by_value"] or None,
    )


def _described(folder: Path, module: Any) -> dict[str, Any]:
    return {"kind": "rllib", "module": type(module).__name__, "versions": {"ray": _version(folder)}}
