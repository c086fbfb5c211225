"""Where a sweep stands, on the terminal: trials by state, best so far, time left."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ray import tune
from rich.console import Console
from rich.live import Live
from rich.table import Table

from gasim_ray.tuning.sweep import Sweep
from gasim_ray.tuning.trial import POINT

#: Seconds between lines where the output is no terminal.
PLAIN_SECONDS = 10.0
#: Tune's words for where a trial is -> ours.
STATES = {"PENDING": "waiting", "PAUSED": "waiting", "RUNNING": "running", "TERMINATED": "ended", "ERROR": "failed"}


class LiveTable(tune.Callback):  # type: ignore[misc]
    """Shows the sweep whenever Tune has done a step."""

    def __init__(self, sweep: Sweep, total: int, console: Console | None = None) -> None:
        self.sweep, self.total = sweep, total
        self.console = console or Console(stderr=True)
        self.started = time.monotonic()
        self.ended_before: int | None = None
        self.last_line = self.started
        self.live: Live | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks; a terminal cannot be saved."""
        return {"sweep": self.sweep, "total": self.total}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["sweep"], state["total"])  # type: ignore[misc]

    def setup(self, **info: Any) -> None:
        """Start the live table where there is a terminal."""
        if self.console.is_terminal:
            self.live = Live(console=self.console, refresh_per_second=2, transient=True)
            self.live.start()

    def on_step_end(self, iteration: int, trials: Sequence[Any], **info: Any) -> None:
        """Bring it up to date."""
        if self.ended_before is None:
            self.ended_before = sum(trial.is_finished() for trial in trials)
        if self.live:
            self.live.update(self.table(trials))
        elif time.monotonic() - self.last_line >= PLAIN_SECONDS:
            self.last_line = time.monotonic()
            self.console.print(self.line(trials), highlight=False, markup=False, soft_wrap=True)

    def on_experiment_end(self, trials: Sequence[Any], **info: Any) -> None:
        """Leave one line of it."""
        if self.live:
            self.live.stop()
        self.console.print(self.line(trials), highlight=False, markup=False, soft_wrap=True)

    def line(self, trials: Sequence[Any]) -> str:
        """One line: states, best so far, time left."""
        states = Counter(STATES.get(trial.status, trial.status) for trial in trials)
        counts = ", ".join(f"{states[name]} {name}" for name in dict.fromkeys(STATES.values()) if states[name])
        passed = time.monotonic() - self.started
        best = self.best(trials)
        found = "no report yet" if best is None else f"best {next(iter(self.sweep.objective))} {best[0]:.4f}"
        return f"{passed:5.0f} s, {self.left(trials, passed)} left | {counts} of {self.total} trials | {found}"

    def table(self, trials: Sequence[Any]) -> Table:
        """The line, and the settings of the best trial beneath it."""
        table = Table(title=self.line(trials), title_justify="left", show_header=False, box=None)
        best = self.best(trials)
        if best is not None:
            for key, value in best[1].items():
                table.add_row(f"  {key}", str(value))
        return table

    def best(self, trials: Sequence[Any]) -> tuple[float, dict[str, Any]] | None:
        """The best last report of the first objective, and the settings that gave it."""
        name, direction = next(iter(self.sweep.objective.items()))
        known = [(float(t.last_result[name]), t) for t in trials if t.last_result and name in t.last_result]
        if not known:
            return None
        value, trial = (max if direction == "max" else min)(known, key=lambda pair: pair[0])
        return value, dict(trial.config.get(POINT, trial.config))

    def left(self, trials: Sequence[Any], passed: float) -> str:
        """What is left at the rate so far, in seconds; the time budget's rest if that is less."""
        ended = sum(trial.is_finished() for trial in trials)
        done = ended - (self.ended_before or 0)
        rest = [passed / done * (self.total - ended)] if done else []
        if self.sweep.seconds is not None:
            rest.append(self.sweep.seconds - passed)
        return f"{max(0.0, min(rest)):.0f} s" if rest else "?"
