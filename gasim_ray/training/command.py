"""`gasim teacher train` and `gasim teacher import`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from math import isfinite
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings
from rich.console import Console

from gasim_ray.config import explain, unrecognised
from gasim_ray.core.model import Model
from gasim_ray.errors import UserError
from gasim_ray.storage import local_folder
from gasim_ray.tasks import TASKS, folder_to_train, split_task, training_of
from gasim_ray.teachers import SOURCES, ImportOptions, import_teacher
from gasim_ray.training.progress import Progress

# The text under a field is its --help.
set_parsing_settings(docstring_parse_attribute_docstrings=True)


#: What `gasim teacher train --help` begins with.
TRAIN_USAGE = """Train a policy (--env) or a classifier (--dataset, or --task for a named one with its settings).
`--env NAME --help` shows a policy's settings, `--dataset NAME --help` a classifier's. Named tasks: {tasks}."""


def train_command(arguments: list[str]) -> None:
    """Train a policy or a classifier, see TRAIN_USAGE."""
    # Only here, because RLlib takes seconds to import.
    from gasim_ray.training.classifier import ClassifierTraining, train_classifier
    from gasim_ray.training.rllib import PolicyTraining, train_policy

    settings: type
    train: Any
    by_name = any(a.split("=")[0] == "--task" for a in arguments)
    named, arguments = split_task(arguments) if by_name else (None, arguments)
    if named or any(a.split("=")[0] == "--dataset" for a in arguments):
        settings, train = ClassifierTraining, train_classifier
    else:
        settings, train = PolicyTraining, train_policy
    usage = TRAIN_USAGE.format(tasks=", ".join(TASKS))
    parser = ArgumentParser(prog="gasim teacher train", exit_on_error=False, description=usage)
    parser.add_class_arguments(settings)
    parser.add_argument("--out", type=local_folder, required=named is None, help="folder of the teacher")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in --out")
    if named:
        parser.set_defaults({**training_of(*named), "out": folder_to_train(*named)})
    try:
        given = parser.instantiate_classes(parser.parse_args(arguments)).as_dict()
    except (ArgumentError, TypeError, ValueError) as error:
        raise UserError(refusal(str(error), settings)) from error
    out, resume, overwrite = given.pop("out"), given.pop("resume"), given.pop("overwrite")
    model = train(settings(**given), out, show, resume=resume, overwrite=overwrite)
    describe(model, out)
    if settings is ClassifierTraining and (out / "checkpoint").exists():
        done = f"{model.config.source['epochs']} of {given['epochs']} epochs"
        print(f"unfinished: the budget ended after {done}; go on with --resume and a longer --budget_seconds")


def refusal(message: str, settings: type) -> str:
    """One line of the parser's error; a setting of the other kind of training says what it goes with."""
    from gasim_ray.training.classifier import ClassifierTraining
    from gasim_ray.training.rllib import PolicyTraining

    policy, classifier = ({field.name for field in fields(kind)} for kind in (PolicyTraining, ClassifierTraining))
    own, other, goes_with = (
        (classifier, policy, "--env") if settings is ClassifierTraining else (policy, classifier, "--task or --dataset")
    )
    name = unrecognised(message)
    if name in other - own:
        return f"{name}: goes with {goes_with}; give that, or leave it out"
    return explain(message, sorted({*own, "task", "dataset", "env", "out", "resume"}), "gasim teacher train")


def show(progress: Progress) -> None:
    """One line of a training's progress."""

    def figure(value: float | None) -> str:
        return "-" if value is None else f"{value:.4g}"

    budget = progress.budget_seconds
    left = f", at most {max(0.0, budget - progress.seconds):.0f} s left" if isfinite(budget) else ""
    rate = progress.steps / progress.seconds if progress.seconds else 0.0
    print(
        f"{progress.seconds:5.0f} s{left} | {progress.steps:,} steps, {rate:,.0f} a second | "
        f"{progress.metric} {figure(progress.score)}, best {figure(progress.best)}, goal {figure(progress.goal)} "
        f"{progress.message}",
        flush=True,
    )


def import_command(arguments: list[str]) -> None:
    """Turn an RLlib checkpoint or a PyTorch module into a teacher folder."""
    parser = argparse.ArgumentParser(prog="gasim teacher import", description=import_command.__doc__)
    parser.add_argument("source", help="RLlib checkpoint folder (root or module), or package.module:factory")
    parser.add_argument("--out", type=local_folder, required=True, help="folder of the teacher")
    parser.add_argument("--kind", help=f"what the source is ({', '.join(SOURCES)}); by default told from the source")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in --out")
    parser.add_argument("--trust", action="store_true", help="open pickles, which run the code that they contain")
    parser.add_argument(
        "--stack", type=int, help="RLlib: frames that a wrapper, no connector, stacks in an observation"
    )
    parser.add_argument("--weights", type=Path, help="PyTorch: state dict (torch.save or safetensors)")
    parser.add_argument("--observation", type=Path, help="PyTorch: JSON or YAML file with the observation's fields")
    parser.add_argument("--actions", type=int, help="PyTorch: number of discrete actions or classes")
    parser.add_argument("--outputs", choices=("logits", "q_values"), default="logits", help="PyTorch: what it answers")
    parser.add_argument("--arguments", default="{}", help="PyTorch: the factory's settings, such as {hidden: [64, 64]}")
    given = parser.parse_args(arguments)
    settings = read_mapping(given.arguments, "arguments")
    names = ("trust", "stack", "weights", "observation", "actions", "outputs")
    options = ImportOptions(**{name: getattr(given, name) for name in names}, arguments=settings)
    describe(import_teacher(given.source, given.out, options, kind=given.kind, overwrite=given.overwrite), given.out)


def read_mapping(text: str, field: str) -> dict[str, Any]:
    """A mapping written as JSON or YAML; raises UserError, which begins with `field`, for anything else."""
    try:
        read = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{field}: {text!r} cannot be read ({error}); write it as {{key: value}}") from error
    if not isinstance(read, dict):
        raise UserError(f"{field}: {text!r} is no mapping; write it as {{key: value}}")
    return read


def span(numbers: Sequence[float | None]) -> str:
    """From the least to the greatest of some numbers, of which there may not be some."""
    known = sorted(number for number in numbers if number is not None)
    text = " to ".join(f"{number:.4g}" for number in dict.fromkeys((known[0], known[-1]))) if known else "none"
    return f"{text} (none for {len(numbers) - len(known)})" if 0 < len(known) < len(numbers) else text


def describe(model: Model, folder: Path) -> None:
    """Say what a teacher folder holds."""
    config, spec = model.config, model.config.observation
    facts = {
        "architecture": config.architecture,
        "observation": f"{list(spec.shape)} {spec.dtype}, {spec.layout}, a stack of {spec.stack}",
        "bounds": f"{span(spec.low)} and {span(spec.high)}",
        "explored within": " and ".join(span(bound.flatten().tolist()) for bound in spec.bounds()),
        "normalised by": f"mean {span(spec.mean)}, deviation {span(spec.std)}",
        "actions": config.actions,
        "outputs": f"{config.outputs}, scale {config.output_scale:.4g}",
        "parameters": f"{model.parameter_count:,}",
        **config.source,
    }
    console = Console(highlight=False, markup=False)
    for name, value in facts.items():
        console.print(f"  {name}: {value}", soft_wrap=True)
    console.print(f"teacher: {folder}", soft_wrap=True)
