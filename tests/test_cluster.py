"""The files of cluster/: Ray takes them all, and the one for machines of one's own runs on three hosts."""

from __future__ import annotations

import copy
import csv
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import hosts
import pytest
import yaml
from conftest import wait_for
from ray.autoscaler._private.util import prepare_config, validate_config

from benchmarks.chaos.hosts import answers
from benchmarks.namespaces import Network
from benchmarks.namespaces import run as run_command
from gasim_ray.actors.loop import Progress

REPOSITORY = Path(__file__).parents[1]
CLUSTER = REPOSITORY / "cluster"
SHELL: dict[str, Any] = {"capture_output": True, "text": True, "check": True}
LAUNCHER = ("onprem", "aws", "gcp")


def read(name: str) -> dict[str, Any]:
    """A file of cluster/."""
    tree: dict[str, Any] = yaml.safe_load((CLUSTER / name).read_text())
    return tree


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_takes_the_files_of_the_launcher(name: str) -> None:
    tree = read(f"{name}.yaml")
    validate_config(prepare_config(copy.deepcopy(tree)))
    with pytest.raises(Exception, match="no_such_key"):
        validate_config(prepare_config(tree | {"no_such_key": 1}))


@pytest.mark.parametrize("name", LAUNCHER)
def test_every_node_of_the_launcher_speaks_with_the_token_and_shows_no_dashboard(name: str) -> None:
    tree = read(f"{name}.yaml")
    starting = [c for c in tree["head_start_ray_commands"] + tree["worker_start_ray_commands"] if "ray start" in c]
    assert len(starting) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starting)
    assert "--dashboard-host=127.0.0.1" in starting[0]
    assert "~/.ray/auth_token" in tree["file_mounts"]
    assert any("RAY_AUTH_MODE=token" in command for command in tree["setup_commands"])


def test_the_files_for_kubernetes_agree() -> None:
    cluster, job = read("kuberay/raycluster.yaml"), read("kuberay/rayjob.yaml")
    assert (cluster["kind"], job["kind"]) == ("RayCluster", "RayJob")
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    assert f"RAY={cluster['spec']['rayVersion']}-" in dockerfile
    assert f"ray=={cluster['spec']['rayVersion']}" in (REPOSITORY / "constraints.txt").read_text()


def test_the_dashboard_shows_what_runs_publish() -> None:
    panels = json.loads((CLUSTER / "grafana.json").read_text())["panels"]
    shown = {re.search(r"ray_gasim_(\w+)", panel["targets"][0]["expr"])[1] for panel in panels}  # type: ignore[index]
    assert shown == {f.name for f in fields(Progress)} - {"seconds"}


class OnPremises:
    """A cluster that `ray up` has started from cluster/onprem.yaml on three hosts."""

    def __init__(self, folder: Path, made: list[hosts.Host], key: Path) -> None:
        self.folder, self.made, self.key = folder, made, key
        tree = read("onprem.yaml")
        tree["provider"] |= {"head_ip": made[0].address, "worker_ips": [host.address for host in made[1:]]}
        tree["auth"] = {"ssh_user": "root", "ssh_private_key": str(key)}
        # The hosts share this file system, so the environment that the two commands would make is here already.
        make, install, *rest = tree["setup_commands"]
        assert "venv" in make
        assert "pip install" in install
        names = subprocess.run(["bash", "-c", install.replace("~/gasim_env/bin/pip", "echo")], **SHELL).stdout
        assert names.split()[-1] == f"{Path.home()}/gasim_ray[tune]"
        environment = Path(sys.executable).parents[1]
        tree["setup_commands"] = [f"ln -sfn {environment} ~/gasim_env", *rest]
        # However many CPUs the machine has: each host has two.
        for commands in (tree["head_start_ray_commands"], tree["worker_start_ray_commands"]):
            commands[-1] = commands[-1].replace("ray start", "ray start --num-cpus=2")
        self.file = folder / "onprem.yaml"
        self.file.write_text(yaml.safe_dump(tree))
        # The token is where `ray get-auth-token --generate` puts it.
        self.home = folder / "home"
        (self.home / ".ray").mkdir(parents=True)
        (self.home / ".ray" / "auth_token").write_text(os.environ["RAY_AUTH_TOKEN"])

    def ray(self, *arguments: object, code: int = 0) -> str:
        """Run `ray` as a user would who stands in the repository."""
        environment = {k: v for k, v in os.environ.items() if k not in ("RAY_AUTH_TOKEN", "RAY_ADDRESS")}
        command = [Path(sys.executable).with_name("ray"), *arguments]
        done = subprocess.run(
            [str(part) for part in command],
            cwd=REPOSITORY,
            env=environment | {"HOME": str(self.home), "RAY_AUTH_MODE": "token"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    def nodes(self) -> int:
        """How many are alive."""
        return self.on(self.made[0], "ray list nodes").stdout.count("ALIVE")

    def on(self, host: hosts.Host, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command on one of the hosts, as whoever logs in there."""
        options = ["-i", self.key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        login = ["ssh", *options, f"root@{host.address}", f"bash --login -c '{command}'"]
        return subprocess.run([str(part) for part in login], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def on_premises(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnPremises]:
    """See OnPremises; three hosts, of which one is the head."""
    if reason := hosts.missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("hosts")
    with hosts.hosts(3, folder) as (made, key):
        cluster = OnPremises(folder, made, key)
        cluster.ray("up", cluster.file, "--yes", "--no-config-cache")
        wait_for(lambda: cluster.nodes() == 3, pause=3.0)
        yield cluster


#: Acrobot's policy on generators for which one host is too small.
DISTILL = (
    "distill", "--teacher", "benchmarks/teachers/acrobot-dqn",
    "--generator.actors", "3", "--generator.cpus", "1",
)  # fmt: skip


def test_a_script_submitted_to_three_hosts_distils_on_them(on_premises: OnPremises) -> None:
    run = on_premises.made[0].home / "run"
    script = (on_premises.file, CLUSTER / "gasim.py", "--")
    said = on_premises.ray("submit", *script, *DISTILL, "--budget.student_steps", 400, "--out", run)
    assert "run: " in said
    assert json.loads((run / "summary.json").read_text())["generator_actors"] == 3


def test_a_job_takes_the_working_folder_along(on_premises: OnPremises) -> None:
    command = "python -m gasim_ray distill --teacher benchmarks/teachers/acrobot-dqn --budget.student_steps 100"
    run = on_premises.made[0].home / "job"
    job = f"cd gasim_ray && ray job submit --address http://127.0.0.1:8265 --working-dir . -- {command} --out {run}"
    assert "succeeded" in on_premises.ray("exec", on_premises.file, job)
    assert (run / "student" / "model.safetensors").exists()
    failing = job.replace("acrobot-dqn", "nowhere")
    assert "no model there" in on_premises.ray("exec", on_premises.file, failing, code=1)


def test_generators_begin_where_a_node_joins(on_premises: OnPremises) -> None:
    head, *_, late = on_premises.made
    # The autoscaler would bring the node back by itself, at a time of its own.
    on_premises.on(head, "pkill -f autoscaler/_private/monitor.py")
    assert on_premises.on(late, "ray stop").returncode == 0
    wait_for(lambda: on_premises.nodes() == 2, pause=3.0)
    run = head.home / "elastic"
    script = (on_premises.file, CLUSTER / "gasim.py", "--")
    # The exit status is the run's.
    assert "4 is free" in on_premises.ray("submit", *script, *DISTILL, "--generator.actors", 5, "--out", run, code=1)
    budget = ("--elastic", "--generator.actors", 5, "--budget.seconds", 200, "--out", run)
    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(on_premises.ray, "submit", *script, *DISTILL, *budget, code=1)
        wait_for(lambda: last_row(run)["actors_alive"] == 3)
        assert (
            on_premises.on(late, f"RAY_AUTH_MODE=token ray start --num-cpus=2 --address={head.address}:6379").returncode
            == 0
        )
        wait_for(lambda: last_row(run)["actors_alive"] == 5)
        on_premises.on(head, f"pkill -INT -f gasim.py.*{run}")
        assert "go on with" in ending.result()


def last_row(run: Path) -> dict[str, float]:
    """The last row of a run's metrics; zeros without any."""
    path = run / "metrics.csv"
    rows = list(csv.DictReader(path.open())) if path.exists() else []
    return {name: float(value) for name, value in rows[-1].items()} if rows else defaultdict(float)


def test_a_host_that_is_lost_takes_its_generators_alone(on_premises: OnPremises) -> None:
    run = on_premises.made[0].home / "lossy"
    where = ("--student.node_label", "gasim=head", "--out", run)
    budget = ("--budget.seconds", 60, "--checkpoint_seconds", 1)
    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(
            on_premises.ray, "submit", on_premises.file, CLUSTER / "gasim.py", "--", *DISTILL, *budget, *where
        )
        wait_for((run / "checkpoint" / "state.pt").exists)
        on_premises.made[2].lose()
        ending.result()
    assert last_row(run)["restarts"] >= 1
    assert last_row(run)["actors_alive"] == 3
    assert (run / "student" / "model.safetensors").exists()


def test_a_host_is_cut_off_and_back_and_nothing_is_left() -> None:
    if reason := hosts.missing():
        pytest.skip(reason)
    network, port = Network("gasimt", "10.179.0"), 8000
    listener = [sys.executable, "-m", "http.server", "--bind", network.address(0), str(port)]
    with network.up(1):
        inside = ["ip", "netns", "exec", network.namespace(0), *listener]
        with subprocess.Popen(inside, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
            wait_for(lambda: answers(network.address(0), port))
            network.cut(0)
            assert not answers(network.address(0), port)
            network.mend(0)
            wait_for(lambda: answers(network.address(0), port))
            network.remove()
    assert network.namespace(0) not in run_command("ip", "netns", "list")
    assert network.bridge not in run_command("ip", "-br", "link")
