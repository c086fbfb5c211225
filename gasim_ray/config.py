"""The configuration of a distillation: one tree for the command line, YAML files and dotted keys.

Precedence, lowest first: defaults, the method's preset, the YAML file, dotted keys.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings
from torch import nn

from gasim_ray import methods
from gasim_ray.core.device import check_device_name
from gasim_ray.core.model import Model, has_model, load_config, same_model
from gasim_ray.core.scenes import SceneSettings
from gasim_ray.core.settings import (
    BudgetSettings,
    GeneratorSettings,
    ObjectiveSettings,
    PoolSettings,
    StudentSettings,
    check_range,
)
from gasim_ray.core.worlds import WorldSettings
from gasim_ray.errors import UserError, one_line

#: Sections of which generator actors may have settings of their own, and what of these is the loop's.
OF_AN_ACTOR = ("generator", "objective", "scenes", "worlds")
SHARED_BY_ACTORS = tuple(f"generator.{n}" for n in ("actors", "per_actor", "in_flight", "timeout", "cpus", "gpus"))

#: Where a run keeps a copy of its teacher.
TEACHER_COPY = "teacher"

#: Settings that are gone, at what they were when they did nothing.
RETIRED = (("generator.families", False),)

# The text under a field is its --help.
set_parsing_settings(docstring_parse_attribute_docstrings=True)


@dataclass(frozen=True)
class DistillConfig:
    """One distillation."""

    section = "config"

    teacher: str
    """Folder of the teacher, made by `gasim teacher train` or `gasim teacher import`."""

    method: str = "gasim"
    """Preset that the other settings start from, one of gasim_ray.methods.METHODS."""

    out: str = ""
    """Folder that the run is written to, or an address of pyarrow's file systems such as s3://bucket/run; if empty,
    runs/<teacher>-<method>-<seed>."""

    seed: int = 0
    """Fixes all randomness of the synchronous mode."""

    device: str = "cpu"
    """Where the student learns: cpu, cuda, or cuda:N with --local. Generators compute there with --local, and else on
    what `generator.gpus` reserves."""

    bf16: bool = False
    """Compute the networks' products in bfloat16, labels included; weights and losses stay float32."""

    channels_last: bool = False
    """Keep images channels last in memory, which suits convolutions on GPUs."""

    local: bool = False
    """Run in this process without Ray, one generator after another, synchronously."""

    synchronous: bool = False
    """With Ray: wait for every generator before each update, so that the same seed gives the same student."""

    elastic: bool = False
    """With Ray: begin with the generators that there is room for instead of refusing; the others begin when nodes join,
    which an autoscaler is asked for."""

    checkpoint_seconds: float = 30.0
    """Seconds between checkpoints."""

    snapshot_seconds: float = 0.0
    """Seconds between copies of the student, kept in snapshots/ for a curve of what it had learnt when; 0 for none."""

    actor_settings: tuple[dict[str, dict[str, Any]], ...] = ()
    """What generator actors have of their own over the settings below, in turn: trees of sections generator, objective,
    scenes and worlds, such as [{"generator": {"prior": ["scenes"]}}, {"objective": {"adversarial": 3.0}}]. Fewer actors
    than that take several each, order by order. What the student starts with is taken from the settings below alone."""

    student: StudentSettings = field(default_factory=StudentSettings)
    generator: GeneratorSettings = field(default_factory=GeneratorSettings)
    scenes: SceneSettings = field(default_factory=SceneSettings)
    worlds: WorldSettings = field(default_factory=WorldSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    pool: PoolSettings = field(default_factory=PoolSettings)
    budget: BudgetSettings = field(default_factory=BudgetSettings)

    def __post_init__(self) -> None:
        check_range(self, {"seed": 0, "checkpoint_seconds": 0.1, "snapshot_seconds": 0})
        # Whether it is there is asked where it computes: a run is also read where it did not.
        check_device_name(self.device)
        if ":" in self.device and not self.local:
            raise UserError(f"device: {self.device!r} goes with local; Ray chooses which GPU an actor has: use cuda")
        if self.local and self.generator.gpus:
            raise UserError(
                f"generator.gpus: {self.generator.gpus:g}, which only actors of Ray reserve; with local, set it to 0 "
                "and device to cuda"
            )
        if self.elastic and self.ordered:
            raise UserError("elastic: goes with neither local nor synchronous, which wait for every generator")
        if self.pool.replay < 1 and self.student.batch_size > self.generator.batch_size:
            raise UserError(
                f"student.batch_size: {self.student.batch_size} is more than generator.batch_size "
                f"({self.generator.batch_size}), and pool.replay {self.pool.replay} < 1 takes fresh observations"
            )

    @property
    def ordered(self) -> bool:
        """Whether orders are answered one round after another, so that the run can be repeated."""
        return self.local or self.synchronous

    def run_folder(self) -> Path:
        """Where the run is written."""
        return Path(self.out or f"runs/{Path(self.teacher).name}-{self.method}-{self.seed}")

    def at(self, out: Path) -> DistillConfig:
        """The same distillation, written elsewhere."""
        return replace(self, out=str(out))

    def to_yaml(self) -> str:
        """The whole tree as YAML that `gasim distill` reads back."""
        return yaml.safe_dump(plain(asdict(self)), sort_keys=False)


def plain(value: Any) -> Any:
    """Tuples as lists, all the way down: what YAML and JSON write."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def dotted(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a configuration by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= {f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def make_parser() -> ArgumentParser:
    """The parser of the tree; its --help is the dataclasses' documentation."""
    parser = ArgumentParser(prog="gasim distill", exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(DistillConfig, fail_untyped=True)
    return parser


def read_yaml(path: str) -> dict[str, Any]:
    """A YAML mapping; raises UserError if the file is missing, malformed or something else."""
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as a configuration ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no mapping of keys to values")
    return content


def parse_config(
    arguments: Sequence[str], file: str | None = None, base: Mapping[str, Any] | None = None
) -> DistillConfig:
    """Build the configuration from dotted arguments over an optional YAML file over an optional base.

    Raises UserError for an unknown key (naming the nearest), a wrong type or an impossible value.
    """
    return build_config(merged(base or {}, read_run_or_yaml(file) if file else {}), arguments)


def read_run_or_yaml(file: str) -> dict[str, Any]:
    """A configuration's tree; that of a run whose teacher is gone, or is another, names the run's own copy."""
    tree, run = read_yaml(file), Path(file).parent
    teacher, own = Path(str(tree.get("teacher"))), run / TEACHER_COPY
    if Path(file).name != "config.yaml" or "teacher" not in tree or not has_model(own) or same_model(own, teacher):
        return tree
    tell_once(f"teacher: {teacher} is gone, or another one; {own} is taken, which the run has kept")
    return {**tree, "teacher": str(own), "out": tree.get("out") or str(run)}


@cache
def tell_once(message: str) -> None:
    """Say something on standard error, but not again."""
    print(message, file=sys.stderr)


def merged(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """One configuration tree of several; of two values for a setting the later one counts."""
    whole: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            both = isinstance(value, dict) and isinstance(whole.get(key), dict)
            whole[key] = {**whole[key], **value} if both else value
    return whole


def build_config(tree: dict[str, Any], arguments: Sequence[str] = ()) -> DistillConfig:
    """The same from a nested mapping."""
    tree = without_retired(tree)
    check_keys(tree)
    method, teacher = tree.get("method", DistillConfig.method), tree.get("teacher")
    if arguments or not isinstance(method, str) or not isinstance(teacher, str):
        first = parse(plain_parser(), tree, arguments)
        method, teacher = first.method, first.teacher
    facts = teacher_facts(teacher)
    check_method(tree, method, facts)
    parser = method_parser(method, facts)
    config = instantiate(parser, parse(parser, tree, arguments))
    kinds_of(config)
    return config


def kinds_of(config: DistillConfig, actor: int | None = None) -> list[DistillConfig]:
    """The configuration with each of `actor_settings`: all of them, or those that one generator actor takes in turn.

    Raises UserError for what an actor cannot have of its own.
    """
    kinds = [with_own(config, index) for index in range(len(config.actor_settings))] or [config]
    return kinds if actor is None else kinds[actor % len(kinds) :: config.generator.actors]


def with_own(config: DistillConfig, index: int) -> DistillConfig:
    """The configuration with one of `actor_settings`; raises UserError for what an actor cannot have of its own."""
    own = config.actor_settings[index]
    try:
        check_keys(own)
        for key in [key for key in dotted(own) if key.split(".")[0] not in OF_AN_ACTOR or key in SHARED_BY_ACTORS]:
            raise UserError(f"{key}: all actors share it; set it beside actor_settings")
        return of_whole(merged(plain(asdict(config)), {"actor_settings": []}, own))
    except UserError as error:
        raise UserError(f"actor_settings[{index}]: {error}") from error


def of_whole(tree: dict[str, Any]) -> DistillConfig:
    """The configuration of a tree that says everything, to which a preset would add nothing."""
    return instantiate(plain_parser(), parse(plain_parser(), tree, []))


def check_method(tree: Mapping[str, Any], method: str, facts: methods.TeacherFacts) -> None:
    """Raise UserError if a tree that names one method holds what its preset sets, and another is to take its place."""
    named = tree.get("method", method)
    if named == method:
        return
    before, after = (method_parser(str(name), facts).get_defaults() for name in (named, method))
    preset = methods.preset(str(named), facts)
    for key, value in dotted({section: tree[section] for section in preset if section in tree}).items():
        if plain(value) == plain(before.get(key)) != plain(after.get(key)):
            raise UserError(
                f"method: {method!r} over a configuration of {named!r} whose {key} would stay; take that and the "
                "others of its preset out of it, or start from --teacher"
            )


@cache
def plain_parser() -> ArgumentParser:
    """The parser with the defaults of no method; kept, because making one takes longer than all else here."""
    return make_parser()


def teacher_facts(folder: str) -> methods.TeacherFacts:
    """What presets depend on; the network is built with whatever weights, as random numbers elsewhere stay the same."""
    config = load_config(Path(folder))
    with torch.random.fork_rng(devices=[]):
        model = Model(config)
    dense_layers = sum(isinstance(layer, nn.Linear) for layer in model.network.modules())
    return methods.TeacherFacts(config.observation, model.has_batch_norm, dense_layers)


@lru_cache
def method_parser(method: str, teacher: methods.TeacherFacts) -> ArgumentParser:
    """The parser with a method's defaults; kept likewise."""
    parser = make_parser()
    parser.set_defaults(dotted(methods.preset(method, teacher)))
    return parser


def parse(parser: ArgumentParser, tree: dict[str, Any], arguments: Sequence[str]) -> Namespace:
    """Parse both layers, of which an empty one takes no time; raises UserError in one line, with the nearest key."""
    try:
        base = parser.parse_object(tree, defaults=True) if tree else None
        return parser.parse_args(list(arguments), namespace=base) if arguments or base is None else base
    except (ArgumentError, TypeError, KeyError, ValueError) as error:
        raise UserError(explain(str(error), keys_of(parser), parser.prog)) from error


def instantiate(parser: ArgumentParser, namespace: Namespace) -> DistillConfig:
    """Dataclasses from a parsed namespace."""
    return DistillConfig(**parser.instantiate_classes(namespace).as_dict())


@cache
def known_keys() -> list[str]:
    """Every dotted key of the tree."""
    return keys_of(plain_parser())


def keys_of(parser: ArgumentParser) -> list[str]:
    """Every dotted key that a parser takes."""
    return [key for key in parser.get_defaults().keys() if key != "help"]  # noqa: SIM118


def without_retired(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree without settings of earlier versions that were off: runs that hold them can still be read."""
    return {
        key: {k: v for k, v in value.items() if (f"{key}.{k}", v) not in RETIRED} if isinstance(value, dict) else value
        for key, value in tree.items()
    }


def check_keys(tree: dict[str, Any]) -> None:
    """Raise UserError for the first key of a nested mapping that the tree does not have."""
    known = known_keys()
    sections = {key.split(".")[0] for key in known if "." in key}

    for key, value in tree.items():
        if key in sections and not isinstance(value, dict):
            raise UserError(f"{key}: {value!r} is no mapping; its settings go beneath it, or after a dot")
        names = [f"{key}.{inner}" for inner in value] if key in sections and isinstance(value, dict) else [key]
        for name in names:
            if name not in known and name not in sections:
                raise UserError(unknown_key(str(name), known))
        for name, inner in dotted({key: value}).items():
            if inner is None and not name.startswith("budget."):
                raise UserError(f"{name}: is empty; give a value or leave it out")


def unknown_key(name: str, known: Sequence[str], command: str = "gasim distill") -> str:
    """The message for a key that is not among the known ones."""
    near = get_close_matches(name, known, n=1, cutoff=0.4)
    return f"{name}: no such key; did you mean {near[0]}?" if near else f"{name}: no such key; see {command} --help"


def explain(message: str, known: Sequence[str], command: str = "gasim distill") -> str:
    """One line of a parser's error; an unrecognised argument names the nearest key."""
    line = one_line(message, most=10_000)
    wrong_type = re.search(r"""Parser key "([\w.]+)": Expected (?:a|an) (.*?)\. Got value: (.*)""", line)
    if wrong_type:
        key, kind, value = wrong_type.groups()
        plain_kind = re.sub(r"<class '(.*)'>", r"\1", kind).replace("typing.", "")
        return f"{key}: {value!r} is not of type {plain_kind}"
    name = unrecognised(line)
    return unknown_key(name, known, command) if name else line


def unrecognised(message: str) -> str:
    """The argument that a parser's error does not know; empty for another error."""
    found = re.search(r"[Uu]nrecognized (?:arguments|options): --([\w.-]+)", message)
    return found.group(1) if found else ""
