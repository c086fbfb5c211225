"""Where the runs on a cluster stand: each driver leaves a line in the cluster's store, and `gasim status` reads them.

The store is that of Ray's head, so it is there wherever the driver runs, and goes with the cluster.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import ray
from ray.exceptions import RayError
from ray.experimental import internal_kv

from gasim_ray.actors.loop import Progress
from gasim_ray.errors import UserError, one_line
from gasim_ray.report.display import line

NAMESPACE = b"gasim"
#: A run that has not been heard of for so many seconds is shown as silent.
SILENT_SECONDS = 30.0
#: After so many its driver was killed, and the line is removed.
FORGOTTEN_SECONDS = 600.0
#: Seconds in which a head has to answer.
CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class Status:
    """What a run's driver last said."""

    #: Where the run is written.
    run: str
    #: `<teacher>, <method>`.
    what: str
    #: Seconds since it was said.
    age: float
    #: The fields of actors.loop.Progress.
    figures: Mapping[str, Any]


def leave_status(run: str, what: str, figures: Mapping[str, Any]) -> None:
    """Leave or replace the line of this process's run; while connected."""
    said = json.dumps({"run": run, "what": what, "time": time.time(), "figures": dict(figures)})
    internal_kv._internal_kv_put(own_key(), said.encode(), namespace=NAMESPACE)


def take_status_back() -> None:
    """Remove the line of this process's run, which has ended."""
    internal_kv._internal_kv_del(own_key(), namespace=NAMESPACE)


def own_key() -> bytes:
    """Of this process alone, so that runs of the same name do not take each other's place."""
    context = ray.get_runtime_context()
    return f"{context.get_job_id()}-{context.get_worker_id()}".encode()


def read_status() -> list[Status]:
    """The lines of all runs, while connected; those that have long been silent are removed."""
    found = []
    for key in internal_kv._internal_kv_list(b"", namespace=NAMESPACE):
        if not (said := internal_kv._internal_kv_get(key, namespace=NAMESPACE)):
            continue
        left = json.loads(said)
        if (age := time.time() - left["time"]) > FORGOTTEN_SECONDS:
            internal_kv._internal_kv_del(key, namespace=NAMESPACE)
        else:
            found.append(Status(left["run"], left["what"], age, left["figures"]))
    return sorted(found, key=lambda status: status.run)


def connect_to(address: str | None) -> None:
    """Join a cluster that is there; raises UserError if there is none."""
    try:
        if address:
            # Ray itself would try for a minute and then end the process.
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        ray.init(address or "auto", log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, OverflowError, RayError) as error:
        raise UserError(
            f"address: no Ray cluster at {address or 'this machine'} ({one_line(error)}); give HEAD:6379 on one of its "
            "machines"
        ) from error


def status_lines(runs: Sequence[Status]) -> list[str]:
    """Two lines a run: which it is, and its progress as the run itself shows it, with its mean rates."""
    lines = []
    for status in runs:
        known = {f.name for f in fields(Progress)}  # a run of another version may say more
        progress = Progress(**{name: value for name, value in status.figures.items() if name in known})
        seconds = max(progress.seconds, 1e-9)
        silent = ", silent" if status.age > SILENT_SECONDS else ""
        lines.append(f"{status.run} ({status.what}), {status.age:.0f} s ago{silent}")
        lines.append("  " + line(progress, (progress.observations / seconds, progress.student_steps / seconds)))
    return lines
