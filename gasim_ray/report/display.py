"""Progress of a distillation on the terminal: one live line, or a plain line now and then where there is none."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from gasim_ray.actors.loop import Progress

#: Seconds between lines where the output is no terminal.
PLAIN_SECONDS = 5.0
#: Seconds over which rates are taken.
RATE_SECONDS = 2.0


class Display:
    """Shows where a run stands; a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        #: What each line begins with in a log, which several runs may share.
        self.run = ""
        self.last_line = time.monotonic()
        self.earlier = Progress()
        self.rates = (0.0, 0.0)

    def __enter__(self) -> Display:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.live:
            self.live.stop()

    def show(self, progress: Progress) -> None:
        """Bring the line up to date; called several times a second."""
        passed = progress.seconds - self.earlier.seconds
        if passed >= RATE_SECONDS:
            self.rates = (
                (progress.observations - self.earlier.observations) / passed,
                (progress.student_steps - self.earlier.student_steps) / passed,
            )
            self.earlier = Progress(**vars(progress))
        elif passed < 0:  # back at a checkpoint
            self.earlier = Progress(**vars(progress))
        if self.live:
            self.live.update(Text(line(progress, self.rates)))
        elif time.monotonic() - self.last_line >= PLAIN_SECONDS:
            self.last_line = time.monotonic()
            self.note(line(progress, self.rates))

    def note(self, message: str) -> None:
        """Print a line that stays."""
        if self.run and not self.live:
            message = f"{self.run}: {message}"
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)


def line(p: Progress, rates: tuple[float, float]) -> str:
    """One line of progress; rates are observations and student steps a second."""
    if not p.observations:
        return (
            f"{p.seconds:5.0f} s | waiting for the first batch | {p.actors_alive} actors alive, {p.restarts} restarts"
        )
    left = p.seconds * (1 - p.spent) / p.spent if p.spent > 0 else float("nan")
    return (
        f"{p.seconds:5.0f} s, {left:4.0f} s left | {rates[0]:7,.0f} observations/s {rates[1]:6,.0f} student steps/s | "
        f"agreement {100 * p.agreement:5.1f} % loss {p.loss:.4f} | pool {p.pool_size:,} | "
        f"{p.reinitialisations:,} re-initialisations | staleness {p.staleness:.0f} steps | "
        f"{p.actors_alive} actors alive, {p.restarts} restarts"
    )
