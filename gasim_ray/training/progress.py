"""What a training reports while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One line of a training's progress."""

    #: Seconds trained so far, those before a resume included.
    seconds: float
    #: Seconds after which the training stops; infinity for never.
    budget_seconds: float
    #: Environment steps of a policy, optimiser steps of a classifier.
    steps: int
    #: What `score` is: `test accuracy`, `mean return`, or of a game `clipped return of a life`.
    metric: str
    #: The latest figure: a policy's mean return while it explores, a classifier's accuracy; None before the first.
    score: float | None = None
    #: The best mean return of a greedy policy, the latest accuracy of a classifier; None before the first evaluation.
    best: float | None = None
    #: The figure at which the training stops early; None for never.
    goal: float | None = None
    #: Something worth a line of its own, or empty.
    message: str = ""


#: Called with every new Progress, a few times a minute.
Report = Callable[[Progress], None]
