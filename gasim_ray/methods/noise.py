"""Random observations within the bounds, labelled by the teacher: the control that every method must beat."""

from __future__ import annotations

from gasim_ray.methods.facts import TeacherFacts, Tree


def preset(teacher: TeacherFacts) -> Tree:
    """Uniform observations, never improved."""
    return {"generator": {"kind": "direct", "prior": ["uniform"], "steps": 0}}
