"""Ray Tune: sweeps over the settings of a distillation."""

from gasim_ray.tuning.trial import trainable

__all__ = ["trainable"]
