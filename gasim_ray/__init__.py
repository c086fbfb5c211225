"""Distil a trained network into another one without its data or its simulator, on Ray."""

from gasim_ray.core.model import load_model as load_model

__version__ = "0.1.0"
