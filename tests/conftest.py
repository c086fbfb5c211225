"""What several test files need: small teachers on disk, and one Ray cluster for all of them."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from hypothesis import settings

from gasim_ray import cli
from gasim_ray.core.model import Model, ModelConfig, save_model

REPOSITORY = Path(__file__).parents[1]

# Ray reads these when it is imported: the cluster, the tests and what they start share one secret; each worker of
# pytest-xdist has its own, by which it tells its processes from those of the others.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

# Networks are so small here that threads only wait for each other; those of commands do so without taking a core.
torch.set_num_threads(1)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

settings.register_profile("gasim", deadline=None)
settings.load_profile("gasim")


#: Files that take longest, in the order in which they begin, so that no worker is left alone with one at the end.
LONGEST = ("test_tuning_sweep.py", "test_benchmarks.py", "test_training_games.py", "test_training_rllib.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """See LONGEST; the others follow by name."""
    place = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="session")
def vector_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a teacher of four numbers and three actions."""
    folder = tmp_path_factory.mktemp("teachers") / "vector"
    save_model(tiny.model(tiny.VECTOR), folder)
    return folder


@pytest.fixture(scope="session")
def image_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a classifier of 28x28 images with four classes."""
    folder = tmp_path_factory.mktemp("teachers") / "image"
    save_model(tiny.model(tiny.GREY, actions=4), folder)
    return folder


@pytest.fixture(scope="session")
def coloured_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a classifier of 16x16 coloured images with batch normalisation."""
    folder = tmp_path_factory.mktemp("teachers") / "coloured"
    spec = replace(tiny.COLOUR, shape=(3, 16, 16), dtype="uint8", high=(255.0,), mean=(120.0,), std=(60.0,))
    save_model(Model(ModelConfig(tiny.SMALL_RESNET, spec, 4, "logits")).frozen(), folder)
    return folder


# Not ray.cluster_utils.Cluster: that announces itself to every Ray program on this machine.
CLUSTER = """
import sys, ray
ray.init("local", num_cpus=4, include_dashboard=False, object_store_memory=200_000_000, logging_level="ERROR")
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="session")
def cluster_address() -> Iterator[str]:
    """A Ray cluster of four CPUs that no test is connected to; starting one takes longer than the tests on it."""
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, "Ray did not start"
        yield address
        # Leaving the block closes its standard input, which ends it.


@pytest.fixture(scope="module")
def joined_by_rllib(cluster_address: str) -> Iterator[None]:
    """The Ray that RLlib starts where there is none is this cluster, here and in what is started from here."""
    import ray  # after the settings above

    ray.shutdown()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster_address)
        yield
    ray.shutdown()


def processes_of(actor: str) -> list[int]:
    """The processes of this kind of Ray actor on the tests' own cluster."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            own = os.environ["RAY_AUTH_TOKEN"].encode() in (folder / "environ").read_bytes()
            if own and (folder / "cmdline").read_bytes().startswith(f"ray::{actor}".encode()):
                found.append(int(folder.name))
    return found


def wait_for(condition: Callable[[], bool], seconds: float = 120.0, pause: float = 0.5) -> None:
    """Until it holds, asked after each pause; raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(pause)


@pytest.fixture
def on_cluster(cluster_address: str) -> Iterator[None]:
    """This process is connected to the cluster, and what the test before it started there is gone."""
    import ray  # after the settings above

    ray.shutdown()  # training a policy leaves the Ray that it has started
    ray.init(cluster_address, log_to_driver=False)
    wait_for(lambda: ray.available_resources().get("CPU", 0) >= ray.cluster_resources()["CPU"], 60.0, 0.1)
    yield
    ray.shutdown()


#: Runs `gasim` with these arguments in a process of its own and in a folder of its own.
Gasim = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def gasim(tmp_path: Path) -> Iterator[Gasim]:
    """See Gasim; what still runs at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
        path = os.pathsep.join(filter(None, [environment.pop("PYTHONPATH", ""), str(REPOSITORY)]))
        process = subprocess.Popen(
            [sys.executable, "-m", "gasim_ray", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, **environment, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


#: Runs a command line that is wrong and checks that the one line on standard error says this, in this order.
Refused = Callable[..., None]


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Refused:
    """See Refused."""

    def check(arguments: list[object], *said: str) -> None:
        capfd.readouterr()
        assert cli.main([str(a) for a in arguments]) == 2
        lines = capfd.readouterr().err.splitlines()
        line = lines[-1]
        assert line.startswith("gasim: ")
        assert not any("Traceback" in text or text.startswith("gasim: ") for text in lines[:-1])
        place = 0
        for part in said:
            assert part in line[place:], line
            place = line.index(part, place)

    return check


@pytest.fixture
def config_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tree as YAML and returns where."""

    def write(tree: object, name: str = "given.yaml") -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(tree))
        return path

    return write


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A declared benchmark suite; see small_suite."""
    from small_suite import begin  # which imports all of the benchmarks

    return begin(tmp_path, monkeypatch)


BLOCKED = "raise ImportError(f'{__name__} is blocked')\n"

#: A student whose construction proves, in every process that makes one, that the blocked modules cannot be imported.
FACTORY = """
import importlib, os, pathlib
from gasim_ray.models.mlp import MLP

def make(input_shape, outputs, marks, modules):
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            assert str(error) == f"{module} is blocked", error
        else:
            raise AssertionError(f"{module} can be imported")
    pathlib.Path(marks, str(os.getpid())).touch()
    return MLP(input_shape, outputs, [8])
"""


@pytest.fixture
def blocker(tmp_path: Path) -> Callable[..., Path]:
    """A folder that, first on the path, makes modules unimportable."""

    def block(*modules: str) -> Path:
        folder = tmp_path / "blocker"
        folder.mkdir()
        for module in modules:
            (folder / f"{module}.py").write_text(BLOCKED)
        (folder / "marking.py").write_text(FACTORY)
        (folder / "marks").mkdir()
        return folder

    return block


def marking(folder: Path, *modules: str) -> dict[str, Any]:
    """The architecture of a student that `blocker` proves and marks its processes by."""
    return {"name": "marking:make", "marks": str(folder / "marks"), "modules": list(modules)}
