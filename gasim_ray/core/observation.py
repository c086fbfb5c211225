"""What a network observes: shape, dtype, layout, bounds, normalisation and frame stack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from math import isfinite
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gasim_ray.errors import UserError, nearest

Layout = Literal["vector", "CHW", "HWC"]

#: An unbounded coordinate is explored within this many units (standard deviations, where the policy ships a
#: normaliser) around its centre.
UNBOUNDED_REACH = 10.0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(fits(item) for item in value)


_numbers, _bounds = _is_list_of(_is_number), _is_list_of(lambda item: item is None or _is_number(item))

#: Field -> how it is written in JSON or YAML, and whether a value is so.
FORMS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "shape": ("the sizes of one observation, such as [8] or [84, 84, 4]", _is_list_of(_is_integer)),
    "dtype": ("float32 or uint8", ("float32", "uint8").__contains__),
    "layout": ("vector, CHW or HWC", ("vector", "CHW", "HWC").__contains__),
    "low": ("a list of lowest values, such as [0]; [null] is unbounded", _bounds),
    "high": ("a list of highest values, such as [255]; [null] is unbounded", _bounds),
    "mean": ("a list of numbers, such as [0.0]", _numbers),
    "std": ("a list of positive numbers, such as [1.0]", _numbers),
    "clip": ("a number, or null for none", lambda value: value is None or _is_number(value)),
    "stack": ("a number of frames, such as 4", _is_integer),
    "skip": ("the emulator's frames for each action, such as 4, or 0 where there are none", _is_integer),
}
#: Those without a default.
REQUIRED = ("shape", "dtype", "layout", "low", "high")


@dataclass(frozen=True)
class ObservationSpec:
    """The observations that a network was trained on, as its environment or data set gives them.

    Raises UserError if the fields contradict each other.
    """

    #: Shape of one observation, the frame stack included.
    shape: tuple[int, ...]
    #: Storage type of one observation.
    dtype: Literal["float32", "uint8"]
    #: `vector` for one axis; `CHW` or `HWC` for images.
    layout: Layout
    #: Lowest value: one for all, or one for each element of a vector. None is unbounded.
    low: tuple[float | None, ...]
    #: Highest value, likewise.
    high: tuple[float | None, ...]
    #: Subtracted before the network reads an observation: one for all, one a vector element or one a channel.
    mean: tuple[float, ...] = (0.0,)
    #: What is then divided by, likewise.
    std: tuple[float, ...] = (1.0,)
    #: Values are clipped to plus and minus this after normalisation; None for no clipping.
    clip: float | None = None
    #: Number of successive frames that one observation holds.
    stack: int = 1
    #: Frames that an emulator shows for each action, of which one is kept; 0 where there is no emulator.
    skip: int = 0

    def __post_init__(self) -> None:
        expected_axes = 1 if self.layout == "vector" else 3
        if len(self.shape) != expected_axes or any(n < 1 for n in self.shape):
            raise UserError(
                f"observation.shape: {list(self.shape)} does not fit layout {self.layout!r}; "
                f"give {expected_axes} positive size(s)"
            )
        per_element = (1, self.shape[0]) if self.layout == "vector" else (1,)
        per_channel = (1, self.channels)
        for name, sizes in (
            ("low", per_element),
            ("high", per_element),
            ("mean", per_channel),
            ("std", per_channel),
        ):
            if len(getattr(self, name)) not in sizes:
                raise UserError(
                    f"observation.{name}: {len(getattr(self, name))} values for shape {list(self.shape)}; "
                    f"give {' or '.join(str(s) for s in dict.fromkeys(sizes))}"
                )
        if any(s <= 0 for s in self.std):
            raise UserError(f"observation.std: {min(self.std)} is not positive")
        if self.stack < 1 or self.channels % self.stack:
            raise UserError(
                f"observation.stack: {self.stack} frames do not make {self.channels} channels; give a divisor of that"
            )
        low, high = self.bounds()
        if bool((low >= high).any()):
            raise UserError(f"observation.low: {self.low} is not below observation.high: {self.high}")
        if self.dtype == "uint8" and (bool((low < 0).any()) or bool((high > 255).any())):
            raise UserError(
                f"observation.low: {self.low} to observation.high: {self.high} is more than uint8 holds; "
                "state bounds within 0 and 255"
            )
        # Those of values from 0 to 1; a network that reads bytes as they are has 0 and 1.
        small = max(self.std) < 1 and max(self.mean) <= 1 and float((high - low).max()) > 300 * min(self.std)
        if small and self.is_image and self.dtype == "uint8":
            raise UserError(
                f"observation.std: {list(self.std)} of bytes; mean and std are in the pixels' own units: give those of "
                "values from 0 to 1 times 255"
            )

    @property
    def channels(self) -> int:
        """Number of vector elements or of image channels, the frame stack included."""
        return self.shape[-1] if self.layout == "HWC" else self.shape[0]

    @property
    def is_image(self) -> bool:
        """Whether an observation is a picture rather than a vector."""
        return self.layout != "vector"

    @property
    def network_shape(self) -> tuple[int, ...]:
        """Shape of what `normalise` returns for one observation: (channels, height, width), or (elements,)."""
        if self.layout == "HWC":
            height, width, channels = self.shape
            return (channels, height, width)
        return self.shape

    @property
    def torch_dtype(self) -> torch.dtype:
        """The storage type as PyTorch names it."""
        return torch.uint8 if self.dtype == "uint8" else torch.float32

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Finite bounds, float32, that broadcast against a batch of observations.

        Where the environment states none, UNBOUNDED_REACH standard deviations around the mean stand in; where the
        other bound lies beyond that, as many from there.
        """
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        if self.is_image:
            mean, std = mean.mean(), std.mean()
        reach = UNBOUNDED_REACH * std
        low, high = (torch.tensor([float("nan") if v is None else v for v in b]) for b in (self.low, self.high))
        low_stated, high_stated = ~low.isnan(), ~high.isnan()
        above = torch.where(low_stated & (low >= mean + reach), low, mean) + reach
        below = torch.where(high_stated & (high <= mean - reach), high, mean) - reach
        low, high = torch.where(low_stated, low, below), torch.where(high_stated, high, above)
        return (low.reshape(-1, 1, 1), high.reshape(-1, 1, 1)) if self.is_image else (low, high)

    @cached_property
    def picture_range(self) -> tuple[float, float]:
        """Lowest and highest value of a picture's pixels."""
        low, high = (float(bound.mean()) for bound in self.bounds())
        return low, high

    def arranged(self, pictures: Tensor) -> Tensor:
        """Pictures (N, *network_shape), channels first, in the spec's layout: (N, *shape)."""
        return pictures.permute(0, 2, 3, 1) if self.layout == "HWC" else pictures

    def channels_first(self, observations: Tensor) -> Tensor:
        """Inverse of `arranged`; vectors stay as they are."""
        return observations.permute(0, 3, 1, 2) if self.layout == "HWC" else observations

    def normalise(self, observations: Tensor) -> Tensor:
        """Observations (N, *shape) of any dtype -> network input (N, *network_shape), float32, differentiable."""
        x = self.channels_first(observations.float())
        mean, std = x.new_tensor(self.mean), x.new_tensor(self.std)
        if self.is_image:
            mean, std = mean.reshape(-1, 1, 1), std.reshape(-1, 1, 1)
        if observations.dtype == torch.float32:
            x = (x - mean) / std
        else:
            # A copy is changed in place, if there is something to change: of pictures, memory is most of the time.
            x = (x.sub_(mean) if any(self.mean) else x).div_(std)
        return x if self.clip is None else x.clamp(-self.clip, self.clip)

    def quantise(self, observations: Tensor) -> Tensor:
        """Clamp (N, *shape) to the bounds and store it in the spec's dtype; uint8 rounds to the grid.

        What is uint8 already is taken as it is.
        """
        if observations.dtype == torch.uint8:
            return observations
        low, high = (b.to(observations.device) for b in self.bounds())
        x = torch.minimum(torch.maximum(observations, low), high)
        return x.round().to(torch.uint8) if self.dtype == "uint8" else x

    def check_batch(self, observations: npt.NDArray[Any]) -> None:
        """Raise UserError unless the array is (N, *shape)."""
        if observations.shape[1:] != self.shape:
            raise UserError(
                f"observations: shape {list(observations.shape[1:])} where the model reads {list(self.shape)}"
            )

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready description, which `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> ObservationSpec:
        """Inverse of `to_json`; raises UserError for an unknown or missing field, or one of another type."""
        for name in fields:
            if name not in FORMS:
                raise UserError(f"observation.{name}: no such field; {nearest(str(name), FORMS)}")
        for name, (form, fits) in FORMS.items():
            if name not in fields and name in REQUIRED:
                raise UserError(f"observation.{name}: missing; give {form}")
            if name in fields and not fits(fields[name]):
                raise UserError(f"observation.{name}: {fields[name]!r} does not fit; give {form}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**values)

    def numpy_dtype(self) -> npt.DTypeLike:
        """The storage type as NumPy names it."""
        return np.dtype(self.dtype)
