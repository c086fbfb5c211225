"""Several hosts on one machine: network namespaces on a bridge, each with its own processes, home and sshd.

What `ray up` over ssh needs of a host is there; the file system outside their homes is shared, and with it this Python
environment. Making them takes root, iproute2, util-linux, OpenSSH and rsync.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.namespaces import Network, run

NETWORK = Network("gasim0", "10.177.0")
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"
TOOLS = ("ip", "unshare", "sshd", "ssh", "ssh-keygen", "rsync")


def missing() -> str | None:
    """Why hosts cannot be made here, in words; None if they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "hosts are made of Linux's namespaces, by root"
    try:
        run("unshare", "--net", "--mount", "--pid", "--fork", "true")
        run("ip", "link", "add", f"{NETWORK.bridge}try", "type", "bridge")
        run("ip", "link", "delete", f"{NETWORK.bridge}try")
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no namespaces or bridges can be made here ({error})"
    absent = [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


@dataclass
class Host:
    """One host; all that runs on it dies with its first process."""

    number: int
    folder: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        """Its address on the bridge."""
        return NETWORK.address(self.number)

    @property
    def namespace(self) -> str:
        """Its network namespace."""
        return NETWORK.namespace(self.number)

    @property
    def home(self) -> Path:
        """The home of whoever logs in."""
        return self.folder / "home"

    def start(self, key: Path) -> None:
        """Bring sshd up."""
        for name in ("home", "ray"):
            (self.folder / name).mkdir(parents=True)
        (self.home / ".bashrc").touch()
        (self.home / ".profile").write_text("")
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / "host_key")
        (self.folder / "sshd_config").write_text(
            f"ListenAddress {self.address}\nHostKey {self.folder}/host_key\nPidFile none\nStrictModes no\n"
            f"AuthorizedKeysFile {key}.pub\nPasswordAuthentication no\nPermitRootLogin yes\nUsePAM no\n"
            f"PrintMotd no\nMaxStartups 100\nMaxSessions 100\n"
        )
        Path("/tmp/ray").mkdir(exist_ok=True)
        Path("/run/sshd").mkdir(exist_ok=True)
        sshd = shutil.which("sshd", path=PATH)
        # Programs take the home from here, whatever HOME says.
        users = [line.split(":") for line in Path("/etc/passwd").read_text().splitlines()]
        changed = [":".join([*user[:5], str(self.home), "/bin/bash"] if user[0] == "root" else user) for user in users]
        (self.folder / "passwd").write_text("\n".join(changed) + "\n")
        mounts = {"passwd": "/etc/passwd", "ray": "/tmp/ray"}
        inside = " && ".join(
            [
                *(f"mount --bind {self.folder}/{own} {place}" for own, place in mounts.items()),
                f"exec {sshd} -D -e -f {self.folder}/sshd_config",
            ]
        )
        with (self.folder / "sshd.log").open("wb") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, "unshare", "--mount", "--pid", "--fork", "--mount-proc",
                 "--kill-child", "sh", "-c", inside],
                stdout=log, stderr=log,
            )  # fmt: skip

    def lose(self) -> None:
        """What a power failure does: no process of the host is left."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextmanager
def hosts(count: int, folder: Path) -> Iterator[tuple[list[Host], Path]]:
    """So many hosts that are up, and the private key that opens them; all is removed afterwards."""
    key = folder / "key"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
    made = [Host(number, folder / f"host{number}") for number in range(count)]
    with NETWORK.up(count):
        try:
            for host in made:
                host.start(key)
            for host in made:
                wait_until_open(host, key)
            yield made, key
        finally:
            for host in made:
                host.lose()


def wait_until_open(host: Host, key: Path, seconds: float = 20.0) -> None:
    """Until the host lets one in; raises TimeoutError with what its sshd said."""
    deadline = time.monotonic() + seconds
    options = [
        "-o",
        "ConnectTimeout=5",
        "-i",
        key,
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
    ]
    while time.monotonic() < deadline:
        tried = subprocess.run(["ssh", *options, f"root@{host.address}", "true"], capture_output=True, check=False)
        if tried.returncode == 0:
            return
        time.sleep(0.2)
    raise TimeoutError((host.folder / "sshd.log").read_text())
