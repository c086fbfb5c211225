"""Random observations within the bounds, labelled by the teacher: the control that every method must beat."""

from __future__ import annotations

from typing import Any

from gasim_ray.core.observation import ObservationSpec


def preset(spec: ObservationSpec) -> dict[str, dict[str, Any]]:
    """Uniform observations, never improved."""
    return {"generator": {"kind": "direct", "prior": ["uniform"], "steps": 0}}
