"""A Ray cluster of several nodes on this machine, whose processes can be found and killed."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from gasim_ray.errors import UserError

#: Nodes, the head first, and cores that each says it has.
NODES, NODE_CPUS = 2, 2
#: Bytes of each node's object store: about the least that Ray takes.
OBJECT_STORE = 80_000_000
#: Seconds in which a node has to come up.
START_SECONDS = 60.0


class Cluster:
    """A head, and worker nodes beside it; a context that leaves no process behind."""

    #: How many nodes.
    count = NODES

    def __init__(self) -> None:
        # Ray's sockets lie in it, and their paths may not be long.
        self.folder = Path(tempfile.mkdtemp(prefix="gasim-chaos-", dir="/tmp"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            # Its own, by which its processes are told from those of other clusters.
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ADDRESS": self.address,
        }
        self.nodes: dict[int, subprocess.Popen[bytes]] = {}
        #: What has to be there as long as the nodes are.
        self.resources = ExitStack()

    def __enter__(self) -> Self:
        try:
            self.prepare()
            for number in range(self.count):
                self.start_node(number)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for node in reversed(self.nodes.values()):
            node.terminate()
        for node in self.nodes.values():
            with suppress(subprocess.TimeoutExpired):
                node.wait(20)
        for process in self.processes():
            kill(process)
        self.resources.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def prepare(self) -> None:
        """Bring up what has to be there before the first node, as `resources`."""

    def start_node(self, number: int) -> None:
        """Start a node, of which 0 is the head, and wait until it is up; raises UserError if it does not come up."""
        command = [Path(sys.executable).with_name("ray"), "start", "--block", *self.options(number)]
        log = self.folder / f"node{number}.log"
        with log.open("wb") as output:
            self.nodes[number] = subprocess.Popen(
                [str(part) for part in (*self.inside(number), *command)],
                env=self.node_environment(number),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + START_SECONDS
        while b"Ray runtime started" not in log.read_bytes():
            if time.monotonic() > deadline or self.nodes[number].poll() is not None:
                raise UserError(f"ray start: the node did not come up: {log.read_text()[-500:]}")
            time.sleep(0.2)

    def options(self, number: int) -> list[str]:
        """Of `ray start` for a node."""
        port = self.address.partition(":")[2]
        head = ["--head", f"--port={port}", "--labels=gasim=head", "--include-dashboard=false"]
        where = [*head, f"--temp-dir={self.folder}"] if number == 0 else [f"--address={self.address}"]
        return [*where, f"--num-cpus={self.cpus(number)}", f"--object-store-memory={OBJECT_STORE}"]

    def cpus(self, number: int) -> int:
        """Cores that a node says it has."""
        return NODE_CPUS

    def node_environment(self, number: int) -> dict[str, str]:
        """Variables of a node's processes."""
        return {name: value for name, value in self.environment.items() if name != "RAY_ADDRESS"}

    def inside(self, number: int) -> list[str]:
        """The command that runs another where a node is; none where all are on this machine."""
        return []

    def driver(self) -> list[str]:
        """Likewise, for the process that a user starts."""
        return []

    def processes(self, name: str = "") -> list[int]:
        """The cluster's processes that are called so, in the order in which they were started."""
        found: list[tuple[int, int]] = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                environment = (folder / "environ").read_bytes()
                called = (folder / "cmdline").read_bytes().split(b"\0")[0]
                own = self.environment["RAY_AUTH_TOKEN"].encode() in environment
                inside = str(self.folder).encode() in (folder / "cmdline").read_bytes() or b"ray::" in called
                if own and inside and called.rpartition(b"/")[2].startswith(name.encode()):
                    # When it was started, of proc(5)'s stat: numbers of processes begin anew at some thirty thousand.
                    ticks = int((folder / "stat").read_text().rpartition(")")[2].split()[19])
                    found.append((ticks, int(folder.name)))
        return [process for _, process in sorted(found)]

    def raylets(self) -> list[int]:
        """One of each node."""
        return self.processes("raylet")


def kill(process: int) -> None:
    """SIGKILL a process that may have ended."""
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
