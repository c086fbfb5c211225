"""Clusters whose nodes are hosts of their own, with a network between them and processes that end together."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path

from benchmarks.chaos.cluster import NODES, Cluster, kill
from benchmarks.namespaces import Network
from gasim_ray.errors import UserError

NETWORK = Network("gasimc", "10.178.0")
PORT, REDIS_PORT = 6379, 6390
#: Seconds in which Redis has to come up.
REDIS_SECONDS = 10.0


class Hosts(Cluster):
    """Host 0 is the head, where the driver is too; raises UserError where no hosts can be made."""

    #: On which of them the driver runs.
    driver_host = 0

    def __init__(self) -> None:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            raise UserError("chaos: this fault makes hosts of Linux's namespaces, which takes root and iproute2")
        super().__init__()
        self.network = NETWORK
        self.address = self.environment["RAY_ADDRESS"] = f"{NETWORK.address(0)}:{PORT}"

    def prepare(self) -> None:
        """See Cluster."""
        self.resources.enter_context(self.network.up(self.count))

    def options(self, number: int) -> list[str]:
        """See Cluster; a node's address is its host's."""
        return [*super().options(number), f"--node-ip-address={self.network.address(number)}"]

    def inside(self, number: int) -> list[str]:
        """See Cluster; all processes of a host end with its first one."""
        apart = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
        return ["ip", "netns", "exec", self.network.namespace(number), *apart]

    def driver(self) -> list[str]:
        """See Cluster."""
        return ["nsenter", "--target", str(self.first_process(self.driver_host)), "--mount", "--pid", "--net", "--wd"]

    def first_process(self, number: int) -> int:
        """The one with which all of a host end."""
        (process,) = children(self.nodes[number].pid)
        return process

    def lose(self, number: int) -> None:
        """What a power failure does: no process of the host is left."""
        kill(self.first_process(number))
        self.nodes[number].wait()


class RedisHosts(Hosts):
    """The head keeps the cluster's state in Redis, which this machine runs; the driver is elsewhere.

    Raises UserError if redis-server is not installed.
    """

    count, driver_host = NODES + 1, 1

    def __init__(self) -> None:
        if shutil.which("redis-server") is None:
            raise UserError("chaos: head-killed-redis needs redis-server (Debian's package of that name)")
        super().__init__()
        self.password = secrets.token_hex(16)

    def prepare(self) -> None:
        """Bring up the network, and Redis in it."""
        super().prepare()
        settings = {
            "bind": self.network.own_address,
            "port": REDIS_PORT,
            "requirepass": self.password,
            "dir": self.folder,
        }
        redis = subprocess.Popen(["redis-server", "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        self.resources.callback(redis.wait)
        self.resources.callback(redis.kill)
        assert redis.stdin is not None
        redis.stdin.write("".join(f"{name} {value}\n" for name, value in settings.items()) + 'save ""\n')
        redis.stdin.close()
        deadline = time.monotonic() + REDIS_SECONDS
        while not answers(self.network.own_address, REDIS_PORT):
            if time.monotonic() > deadline:
                raise UserError(f"chaos: redis-server did not come up at {self.network.own_address}:{REDIS_PORT}")
            time.sleep(0.1)

    def options(self, number: int) -> list[str]:
        """See Cluster; the node of the driver can be told by its label."""
        own = {0: [f"--redis-password={self.password}"], self.driver_host: ["--labels=gasim=driver"]}
        return [*super().options(number), *own.get(number, [])]

    def cpus(self, number: int) -> int:
        """See Cluster; nothing runs on the head, as is advised for one that may be lost."""
        return 0 if number == 0 else super().cpus(number)

    def node_environment(self, number: int) -> dict[str, str]:
        """See Cluster; only the head knows Redis."""
        redis = {"RAY_REDIS_ADDRESS": f"{self.network.own_address}:{REDIS_PORT}"} if number == 0 else {}
        return {**super().node_environment(number), **redis}


def answers(address: str, port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection((address, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def children(process: int) -> list[int]:
    """Of a process on this machine."""
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
