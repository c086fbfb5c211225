"""Several hosts on one machine: network namespaces on a bridge. Linux, root and iproute2."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass


def run(*command: object) -> str:
    """Run a command and return what it printed; raises CalledProcessError with what it said."""
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


@dataclass(frozen=True)
class Network:
    """A bridge, which is this machine's own way in, and hosts numbered from 0 on it."""

    #: Name of the bridge, with which those of all that belongs to it begin.
    bridge: str
    #: The first three parts of all addresses.
    prefix: str

    @property
    def own_address(self) -> str:
        """This machine's."""
        return f"{self.prefix}.1"

    def address(self, host: int) -> str:
        """That of a host."""
        return f"{self.prefix}.{10 + host}"

    def namespace(self, host: int) -> str:
        """The network namespace of a host, for `ip netns exec`."""
        return f"{self.bridge}-{host}"

    def link(self, host: int) -> str:
        """The end of its cable that is on the bridge."""
        return f"{self.bridge}v{host}"

    @contextmanager
    def up(self, hosts: int) -> Iterator[None]:
        """The bridge with so many hosts; everything, and what an earlier one left, is removed."""
        self.remove()
        try:
            run("ip", "link", "add", self.bridge, "type", "bridge")
            run("ip", "address", "add", f"{self.own_address}/24", "dev", self.bridge)
            run("ip", "link", "set", self.bridge, "up")
            for host in range(hosts):
                self._add(host)
            yield
        finally:
            self.remove()

    def _add(self, host: int) -> None:
        namespace, link = self.namespace(host), self.link(host)
        run("ip", "netns", "add", namespace)
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        run("ip", "link", "set", link, "master", self.bridge, "up")
        run("ip", "-n", namespace, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            run("ip", "-n", namespace, "link", "set", device, "up")
        # Leads nowhere, but Ray takes the address on the way to it for the host's own.
        run("ip", "-n", namespace, "route", "add", "default", "via", self.own_address)

    def cut(self, host: int) -> None:
        """Pull a host's cable."""
        run("ip", "link", "set", self.link(host), "down")

    def mend(self, host: int) -> None:
        """Put it in again."""
        run("ip", "link", "set", self.link(host), "up")

    def remove(self) -> None:
        """Kill what runs in the namespaces and delete them with the bridge."""
        for name in (line.split()[0] for line in run("ip", "netns", "list").splitlines()):
            if name.startswith(f"{self.bridge}-"):
                for pid in run("ip", "netns", "pids", name).split():
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
        links = (line.split()[0].split("@")[0] for line in run("ip", "-br", "link").splitlines())
        for name in links:
            if name == self.bridge or name.startswith(f"{self.bridge}v"):
                subprocess.run(["ip", "link", "delete", name], capture_output=True, check=False)
