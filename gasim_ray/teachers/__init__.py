"""Turns sources of trained networks into teachers: one file a source, one line of registration.

A teacher is a folder of the project's own format (see core/model.py). Once it is imported, nothing of where it came
from is needed; neither RLlib nor Gymnasium is imported unless an RLlib checkpoint is being read.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from gasim_ray.core.geometry import Geometry
from gasim_ray.core.model import Model, check_finite, check_network, load_model, save_model
from gasim_ray.core.outputs import q_value_scale
from gasim_ray.core.prior import Prior, Uniform, random_observations
from gasim_ray.core.scenes import Scenes
from gasim_ray.core.seeds import rng
from gasim_ray.errors import UserError, nearest
from gasim_ray.teachers import rllib, torch_module
from gasim_ray.teachers.folder import check_teacher_folder, replaced_folder
from gasim_ray.teachers.options import ImportOptions

__all__ = ["SOURCES", "ImportOptions", "Source", "import_teacher", "load_teacher"]

#: Observations on which a teacher is tried before it is used.
TRIAL_OBSERVATIONS = 64
#: Observations on which the scale of Q-values is measured.
SCALE_OBSERVATIONS = 4096


@dataclass(frozen=True)
class Source:
    """A kind of source."""

    #: Whether this text names one of its kind.
    recognises: Callable[[str], bool]
    #: Reads it; raises UserError if it cannot.
    load: Callable[[str, ImportOptions], Model]
    #: Which fields of ImportOptions it reads.
    options: tuple[str, ...]


#: Kind -> how it is recognised and read.
SOURCES: dict[str, Source] = {
    "rllib": Source(rllib.recognises, rllib.load, ("trust", "stack")),
    "torch": Source(
        torch_module.recognises, torch_module.load, ("weights", "observation", "actions", "outputs", "arguments")
    ),
}


def import_teacher(
    source: str, out: Path, options: ImportOptions, *, kind: str | None = None, overwrite: bool = False
) -> Model:
    """Read a source and write it to `out` as a teacher folder, whole or not at all.

    Without `kind` it is told from the source. Raises UserError if the kind is unknown, the source cannot be read or
    answers NaN, a pickle is not trusted, or `out` exists without `overwrite`.
    """
    if out.exists() and not overwrite:
        raise UserError(f"out: {out} exists; give another folder, or --overwrite")
    check_teacher_folder(out, resume=False, overwrite=overwrite)
    name = kind or _recognise(source)
    reader = _named(name)
    for option in fields(ImportOptions):
        given, usual = getattr(options, option.name), getattr(ImportOptions(), option.name)
        if option.name not in reader.options and given != usual:
            raise UserError(f"{option.name}: {given} is not for a source of kind {name}; leave it out")
    model = with_output_scale(_tried(reader.load(source, options).frozen(), source))
    with replaced_folder(out) as folder:
        save_model(model, folder)
    return model


def _named(kind: str) -> Source:
    if kind not in SOURCES:
        raise UserError(f"kind: {kind!r} is not known; {nearest(kind, SOURCES)}")
    return SOURCES[kind]


def _recognise(source: str) -> str:
    for name, kind in SOURCES.items():
        if kind.recognises(source):
            return name
    raise UserError(
        f"source: {source!r} is neither an RLlib checkpoint folder nor package.module:factory; check the path"
    )


def with_output_scale(model: Model) -> Model:
    """A Q teacher with the scale of its values measured, without data, where its weights say that its data lay.

    See core.outputs. Logits keep their scale of 1.
    """
    if model.config.outputs == "logits":
        return model
    spec, prior = model.config.observation, likely_prior(model)
    with torch.inference_mode():
        q_values = model(spec.quantise(prior.sample(SCALE_OBSERVATIONS, rng("cpu", 0))))
    model.config = replace(model.config, output_scale=q_value_scale(q_values))
    return model


def likely_prior(model: Model) -> Prior:
    """What comes nearest, without data, to what a model was trained on: see the priors of these names."""
    for kind in (Geometry, Scenes):
        with suppress(UserError):  # the one is of vectors and wide first layers, the other of stacked frames
            return kind(model, "cpu")
    return Uniform(model, "cpu")


def load_teacher(folder: str | Path) -> Model:
    """A teacher folder as a frozen model on the CPU.

    Raises UserError if the folder is missing, truncated or of another version, or if the teacher answers NaN, for
    another number of actions, or not at all.
    """
    return _tried(load_model(folder).frozen(), str(folder))


def _tried(model: Model, who: str) -> Model:
    check_network(model, who)
    with torch.inference_mode():
        check_finite(model(random_observations(model, TRIAL_OBSERVATIONS)), who)
    return model
