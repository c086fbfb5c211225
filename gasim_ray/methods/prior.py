"""What gasim starts from and nothing more, a fixed prior without an adversary: a control of what the game adds."""

from __future__ import annotations

from gasim_ray.methods import gasim
from gasim_ray.methods.facts import TeacherFacts, Tree


def preset(teacher: TeacherFacts) -> Tree:
    """gasim's prior, views, pool and student; no gradient step."""
    settings = gasim.preset(teacher)
    settings["generator"]["steps"] = 0
    settings["objective"] = {}
    return settings
