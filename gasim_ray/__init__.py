"""Distil a trained network into another one without its data or its simulator, on Ray."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gasim_ray.core.model import load_model as load_model

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`gasim_ray.load_model`, without PyTorch in processes that only pass batches on."""
    if name == "load_model":
        from gasim_ray.core.model import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
