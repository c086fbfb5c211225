"""Methods are presets of the parts in core/: a file each, one line of registration."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from gasim_ray.core.observation import ObservationSpec
from gasim_ray.errors import UserError
from gasim_ray.methods import dafl, gas, gasim, noise

#: Section -> field -> value, laid over the defaults and under what the user gives.
Preset = dict[str, dict[str, Any]]

METHODS: dict[str, Callable[[ObservationSpec], Preset]] = {
    "noise": noise.preset,
    "dafl": dafl.preset,
    "gas": gas.preset,
    "gasim": gasim.preset,
}


def preset(method: str, spec: ObservationSpec) -> Preset:
    """The settings of a method for these observations; raises UserError for an unknown name."""
    if method not in METHODS:
        near = get_close_matches(method, METHODS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(METHODS)}"
        raise UserError(f"method: {method!r} is not known; {hint}")
    return METHODS[method](spec)
