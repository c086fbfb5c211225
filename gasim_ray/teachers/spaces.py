"""Gymnasium's observation spaces as ObservationSpec; reads their attributes only and imports no Gymnasium."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gasim_ray.core.observation import ObservationSpec
from gasim_ray.errors import UserError

#: Gymnasium's environments write "no bound" as infinity or as the largest float.
NO_BOUND = 1e30


def observation_spec(space: Any, stack: int = 1) -> ObservationSpec:
    """The spec of a Box of one axis, or of three (height, width, channels); `stack` frames lie along the last axis.

    Raises UserError for any other space.
    """
    shape = getattr(space, "shape", None)
    if shape is None or not hasattr(space, "low") or len(shape) not in (1, 3):
        raise UserError(f"source: observations are {space}; only vectors and (height, width, channels) are supported")
    picture = len(shape) == 3
    dtype: Literal["float32", "uint8"] = "uint8" if space.dtype == np.uint8 else "float32"
    return ObservationSpec(
        shape=(*shape[:-1], shape[-1] * stack),
        dtype=dtype,
        layout="HWC" if picture else "vector",
        low=_bound(space.low.min(keepdims=True) if picture else space.low),
        high=_bound(space.high.max(keepdims=True) if picture else space.high),
        stack=stack,
    )


def _bound(values: npt.NDArray[Any]) -> tuple[float | None, ...]:
    bounds = tuple(None if abs(float(v)) > NO_BOUND else float(v) for v in values.flatten())
    return bounds[:1] if len(set(bounds)) == 1 else bounds
