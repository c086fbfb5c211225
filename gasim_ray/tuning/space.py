"""Search spaces: dotted keys of a distillation's tree, each with the values that it may take."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np

from gasim_ray.config import build_config, known_keys, unknown_key
from gasim_ray.errors import UserError, nearest

Kind = Literal["uniform", "loguniform", "integer", "loginteger", "choice", "grid"]
#: Settings of one trial: dotted key -> value.
Settings = dict[str, Any]


@dataclass(frozen=True)
class Dimension:
    """One key of a search space."""

    #: Dotted key of the tree.
    key: str
    #: `choice` and `grid` list values; a search over a grid crosses either, any other draws from either.
    kind: Kind
    #: The listed values, or the lower and the upper bound, both included.
    values: tuple[Any, ...]
    #: Key of an earlier dimension -> the values of it with which this one counts.
    when: Mapping[str, tuple[Any, ...]]

    @property
    def listed(self) -> bool:
        """Whether the values are listed."""
        return self.kind in ("choice", "grid")

    @property
    def log(self) -> bool:
        """Whether it is searched on a logarithmic scale."""
        return self.kind.startswith("log")

    def counts(self, settings: Settings) -> bool:
        """Whether the settings of the dimensions before it leave it in."""
        return all(settings.get(key) in allowed for key, allowed in self.when.items())

    def draw(self, random: np.random.Generator) -> Any:
        """One value at random."""
        if self.listed:
            return self.values[int(random.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "integer":
            return int(random.integers(low, high + 1))
        if self.kind == "uniform":
            return float(random.uniform(low, high))
        return self.clamped(math.exp(random.uniform(math.log(low), math.log(high))))

    def clamped(self, value: Any) -> Any:
        """The allowed value nearest to one that a scheduler made of it; a listed one is left alone."""
        if self.listed:
            return value
        low, high = self.values
        bounded = min(max(value, low), high)
        return round(bounded) if self.kind.endswith("integer") else float(bounded)


def encoded(value: Any) -> Any:
    """A value as searchers take it: lists and mappings as JSON."""
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)


def decoded(value: Any) -> Any:
    """Inverse of `encoded`; NumPy's numbers become Python's."""
    if isinstance(value, np.generic):
        return value.item()
    return json.loads(value) if isinstance(value, str) and value[:1] in ("[", "{") else value


def with_settings(base: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """A tree with dotted keys set, at any depth; what is not beneath them stays."""
    tree: dict[str, Any] = dict(base)
    for key, value in settings.items():
        *sections, last = key.split(".")
        at = tree
        for section in sections:
            at[section] = dict(at.get(section) or {})
            at = at[section]
        at[last] = decoded(value)
    return tree


def parse_space(space: Mapping[str, Any]) -> tuple[Dimension, ...]:
    """The dimensions in their order; raises UserError that names the key, what is wrong and how to mend it."""
    if not space:
        raise UserError("space: empty; give at least one dotted key and its values")
    dimensions: list[Dimension] = []
    for key, declared in space.items():
        if key in ("teacher", "out"):
            raise UserError(f"space.{key}: is the same for all trials of a sweep; leave it out")
        # What an architecture takes is its own; the tree ends at it.
        if key not in known_keys() and not key.startswith("student.architecture."):
            raise UserError(f"space.{unknown_key(key, known_keys())}")
        dimensions.append(_dimension(key, declared, [d.key for d in dimensions]))
    return tuple(dimensions)


def _dimension(key: str, declared: Any, earlier: Sequence[str]) -> Dimension:
    name, kinds = f"space.{key}", get_args(Kind)
    given = dict(declared) if isinstance(declared, Mapping) else {}
    when = given.pop("when", {})
    if len(given) != 1:
        raise UserError(f"{name}: {declared!r} is no distribution; give one of {', '.join(kinds)}, such as choice: [1]")
    kind, values = next(iter(given.items()))
    if kind not in kinds:
        raise UserError(f"{name}: {kind!r} is not known; {nearest(str(kind), kinds)}")
    if not isinstance(values, list) or not values:
        raise UserError(f"{name}.{kind}: {values!r} is no list of values")
    if kind not in ("choice", "grid"):
        _check_bounds(f"{name}.{kind}", kind, values)
    if not isinstance(when, Mapping):
        raise UserError(f"{name}.when: {when!r} is no mapping of an earlier key to values")
    for other in when:
        if other not in earlier:
            raise UserError(f"{name}.when: {other} is not among the keys before it; put it into the space, further up")
    conditions = {other: tuple(v if isinstance(v, list) else [v]) for other, v in when.items()}
    for other, wanted in conditions.items():
        if not wanted:
            raise UserError(f"{name}.when: {other} is to have no value at all; give one or more")
    return Dimension(key, cast(Kind, kind), tuple(values), conditions)


def _check_bounds(name: str, kind: str, values: list[Any]) -> None:
    numbers = int if kind.endswith("integer") else int | float
    if len(values) != 2 or any(isinstance(v, bool) or not isinstance(v, numbers) for v in values):
        what = "whole numbers" if kind.endswith("integer") else "numbers"
        hint = "; YAML reads 1e-3 as text, write 1.0e-3" if any(isinstance(v, str) for v in values) else ""
        raise UserError(f"{name}: {values!r} are not two {what}, the lower and the upper bound{hint}")
    low, high = values
    if low > high:
        raise UserError(f"{name}: the lower bound {low} is above the upper one {high}; swap them")
    if kind.startswith("log") and low <= 0:
        raise UserError(f"{name}: {low} has no logarithm; start above 0, or leave out the log")


def check_values(base: Mapping[str, Any], space: Sequence[Dimension]) -> None:
    """Raise UserError for a value that a distillation would refuse, or that has the wrong type for its key."""
    for dimension in space:
        needed = {key: allowed[0] for key, allowed in dimension.when.items()}
        low, high = dimension.values[0], dimension.values[-1]
        between = () if dimension.listed or dimension.kind.endswith("integer") else (low + (high - low) / math.e,)
        for value in (*dimension.values, *between):
            try:
                build_config(with_settings(base, {**needed, dimension.key: value}))
            except UserError as error:
                raise UserError(f"space.{dimension.key}: with {value!r}: {error}") from error


def settings_of(space: Sequence[Dimension], value_of: Callable[[Dimension], Any]) -> Settings:
    """One trial's settings, encoded: a value for each dimension that counts with those before it."""
    settings: Settings = {}
    for dimension in space:
        if dimension.counts(settings):
            settings[dimension.key] = value_of(dimension)
    return {key: encoded(value) for key, value in settings.items()}


def random_settings(space: Sequence[Dimension], count: int, seed: int) -> list[Settings]:
    """The settings of `count` trials, independently drawn."""
    random = np.random.default_rng(seed)
    return [settings_of(space, lambda dimension: dimension.draw(random)) for _ in range(count)]


def grid_settings(space: Sequence[Dimension]) -> list[Settings]:
    """All combinations, each once; raises UserError for a dimension whose values are not listed."""
    combinations: list[Settings] = [{}]
    for dimension in space:
        if not dimension.listed:
            raise UserError(
                f"space.{dimension.key}: {dimension.kind} has no end of values; a grid takes choice or grid"
            )
        combinations = [
            extended
            for settings in combinations
            for extended in (
                [{**settings, dimension.key: value} for value in dimension.values]
                if dimension.counts(settings)
                else [settings]
            )
        ]
    return [{key: encoded(value) for key, value in settings.items()} for settings in combinations]
