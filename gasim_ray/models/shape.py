"""What an architecture reads."""

from __future__ import annotations


def picture_shape(input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(channels, height, width); raises ValueError for the shape of anything else than a picture."""
    if len(input_shape) != 3:
        raise ValueError("it reads images of (channels, height, width); for vectors there is mlp")
    channels, height, width = input_shape
    return channels, height, width
