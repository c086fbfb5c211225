"""Methods are presets of the parts in core/: a file each, one line of registration."""

from __future__ import annotations

from collections.abc import Callable

from gasim_ray.core.settings import PoolSettings
from gasim_ray.errors import UserError, nearest
from gasim_ray.methods import cmi, dafl, deepinversion, dfad, fast, gas, gasim, gaussian, noise, prior, zskt
from gasim_ray.methods.facts import TeacherFacts, Tree

__all__ = ["METHODS", "TeacherFacts", "Tree", "preset"]

METHODS: dict[str, Callable[[TeacherFacts], Tree]] = {
    "noise": noise.preset,
    "gaussian": gaussian.preset,
    "prior": prior.preset,
    "dafl": dafl.preset,
    "dfad": dfad.preset,
    "zskt": zskt.preset,
    "deepinversion": deepinversion.preset,
    "cmi": cmi.preset,
    "fast": fast.preset,
    "gas": gas.preset,
    "gasim": gasim.preset,
}


def preset(method: str, teacher: TeacherFacts) -> Tree:
    """The settings of a method for this teacher, with a pool that fits memory; raises UserError for an unknown name."""
    if method not in METHODS:
        raise UserError(f"method: {method!r} is not known; {nearest(method, METHODS)}")
    tree = METHODS[method](teacher)
    pool = tree.get("pool", {})
    if teacher.pooled < pool.get("capacity", PoolSettings.capacity):
        tree["pool"] = {**pool, "capacity": teacher.pooled}
    return tree
