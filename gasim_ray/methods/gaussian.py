"""Normal noise around the middle of each element's bounds, labelled by the teacher: a control."""

from __future__ import annotations

from gasim_ray.methods.facts import TeacherFacts, Tree


def preset(teacher: TeacherFacts) -> Tree:
    """Normal observations, never improved."""
    return {"generator": {"kind": "direct", "prior": ["gaussian"], "steps": 0}}
