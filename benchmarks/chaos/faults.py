"""What is done to a run: a fault comes when a third of the budget is distilled, then the run is seen to its end."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.chaos.cluster import Cluster, kill
from benchmarks.chaos.hosts import Hosts, RedisHosts
from benchmarks.chaos.scene import Scene
from gasim_ray.errors import UserError

#: Seconds between two generators that are killed.
KILL_EVERY = 10.0
#: Seconds for which a worker is cut off from the network.
CUT_SECONDS = 30.0
#: Seconds for which the head is gone.
HEAD_GONE_SECONDS = 10.0
#: Seconds in which a run that is told to end has written a checkpoint.
NOTICE_SECONDS = 10.0
#: Bytes of a disk that is too small for a run's checkpoints.
SMALL_DISK = 6_000_000
#: Pieces and bytes of each that somebody else keeps in the object store: nearly all of it.
HOGGED = (7, 10_000_000)

Fault = Callable[[Scene, float], None]


def undisturbed(scene: Scene, budget: float) -> None:
    """Nothing."""
    scene.start()
    scene.end(budget)


def generators_killed(scene: Scene, budget: float) -> None:
    """A generator's process is killed every ten seconds."""
    scene.start()
    draw = random.Random(0)
    while scene.running():
        scene.watch(scene.look().seconds + KILL_EVERY, patience=2 * KILL_EVERY)
        if scene.running() and (processes := scene.actors("GeneratorActor")) and scene.looks[-1].seconds:
            scene.fault()
            kill(draw.choice(processes))
    scene.end(budget)


def learner_killed(scene: Scene, budget: float) -> None:
    """The learner's process is killed once."""
    begin(scene, budget)
    kill(scene.actors("LearnerActor")[0])
    scene.end(budget)


def driver_killed(scene: Scene, budget: float) -> None:
    """The process that the user started is killed; then --resume."""
    begin(scene, budget)
    assert scene.process is not None
    scene.process.kill()
    scene.end(budget)
    go_on(scene, budget)


def node_killed(scene: Scene, budget: float) -> None:
    """The raylet of a worker node is killed; the learner is on the head."""
    begin(scene, budget)
    kill(scene.cluster.raylets()[-1])
    scene.end(budget)


def head_killed(scene: Scene, budget: float) -> None:
    """The head's own processes and every raylet are killed; then --resume on a new cluster."""
    begin(scene, budget)
    for process in [*scene.cluster.processes("gcs_server"), *scene.cluster.raylets()]:
        kill(process)
    scene.end(budget)
    with Cluster() as scene.cluster:
        go_on(scene, budget)


def worker_cut_off(scene: Scene, budget: float) -> None:
    """The network of a worker node, a host of its own, is cut for half a minute.

    When it is back Ray ends the node, of which it has heard nothing for too long, and it is started again, as its
    supervisor would do.
    """
    with Hosts() as cluster:
        scene.cluster = cluster
        begin(scene, budget / 3)  # early, since Ray takes half a minute to see that it is back
        cluster.network.cut(1)
        scene.watch(patience=CUT_SECONDS)
        cluster.network.mend(1)
        while scene.running():
            if cluster.nodes[1].poll() is not None:
                cluster.start_node(1)
            scene.watch(patience=1.0)
        scene.end(budget)


def head_killed_redis(scene: Scene, budget: float) -> None:
    """The head, a host of its own that keeps the cluster's state in Redis, is lost, and started again a while later."""
    with RedisHosts() as cluster:
        scene.cluster = cluster
        scene.tree["student"] = {**dict(scene.tree["student"]), "node_label": "gasim=driver"}  # type: ignore[call-overload]
        begin(scene, budget)
        cluster.lose(0)
        scene.watch(patience=HEAD_GONE_SECONDS)
        cluster.start_node(0)
        scene.end(budget)


def spot_notice(scene: Scene, budget: float) -> None:
    """SIGTERM to the process that the user started, and ten seconds until it is killed; then --resume."""
    begin(scene, budget)
    assert scene.process is not None
    noticed = time.time()
    scene.process.terminate()
    scene.watch(patience=NOTICE_SECONDS)
    scene.process.kill()
    if scene.folder.checkpoint.stat().st_mtime < noticed:
        raise UserError(f"chaos: no checkpoint within {NOTICE_SECONDS:g} s of SIGTERM; see {scene.log}")
    scene.end(budget)
    go_on(scene, budget)


def disk_full(scene: Scene, budget: float) -> None:
    """The run's folder is on a disk that is too small for its checkpoints, and full before that."""
    with small_disk(scene.run.parent / "disk") as disk:
        scene.run = disk / "run"
        begin(scene, budget)
        free = os.statvfs(disk)
        (disk / "filler").write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - 200_000)))
        scene.watch(2 * budget / 3)
        scene.fault()
        (disk / "filler").unlink()
        scene.end(budget)
        keep(scene, disk)


def store_full(scene: Scene, budget: float) -> None:
    """Somebody else fills the object store."""
    hog = (
        "import ray, sys; ray.init(log_to_driver=False); "
        f"kept = [ray.put(bytes({HOGGED[1]})) for _ in range({HOGGED[0]})]; "
        "print('full', flush=True); sys.stdin.read()"
    )
    begin(scene, budget)
    with subprocess.Popen(
        [sys.executable, "-c", hog], env=scene.cluster.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"full\n"
        scene.end(budget)


def mad(kind: str) -> Fault:
    """Generator 0 goes wrong in this way, see benchmarks.chaos.driver."""

    def fault(scene: Scene, budget: float) -> None:
        scene.tree["generator"] = {**dict(scene.tree["generator"]), "timeout": 5.0}  # type: ignore[call-overload]
        begin(scene, budget)
        Path(f"{scene.run}.fault").write_text(kind)
        scene.end(budget)

    return fault


def damaged(how: Callable[[bytes], bytes]) -> Fault:
    """The last checkpoint is damaged while the run stands still; then --resume."""

    def fault(scene: Scene, budget: float) -> None:
        begin(scene, budget)
        assert scene.process is not None
        scene.process.terminate()
        scene.end(budget)
        scene.folder.checkpoint.write_bytes(how(scene.folder.checkpoint.read_bytes()))
        go_on(scene, budget)

    return fault


def flipped(content: bytes) -> bytes:
    """One bit in the middle is another."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def begin(scene: Scene, budget: float) -> None:
    """Run until the fault is due."""
    scene.start()
    scene.watch(budget / 3, patience=budget + 60)
    if not scene.running():
        raise UserError(f"chaos: the run ended before the fault; see {scene.log}")
    scene.fault()


def go_on(scene: Scene, budget: float) -> None:
    """Resume, and see it to its end."""
    scene.start(resume=True)
    scene.end(budget)


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """A file system of SMALL_DISK bytes; raises UserError where none can be mounted."""
    place.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        raise UserError("chaos: disk-full mounts a small file system, which takes root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def keep(scene: Scene, disk: Path) -> None:
    """Copy a run and its log from a disk that goes away."""
    log, kept = scene.log, disk.parent / "kept"
    subprocess.run(["cp", "-r", str(scene.run), str(kept)], check=True)
    scene.run = kept
    subprocess.run(["cp", str(log), str(scene.log)], check=True)


#: Name of the cell's method -> what is done.
FAULTS: dict[str, Fault] = {
    "undisturbed": undisturbed,
    "generators-killed": generators_killed,
    "learner-killed": learner_killed,
    "driver-killed": driver_killed,
    "node-killed": node_killed,
    "head-killed": head_killed,
    "head-killed-redis": head_killed_redis,
    "worker-cut-off": worker_cut_off,
    "spot-notice": spot_notice,
    "disk-full": disk_full,
    "store-full": store_full,
    "generator-nan": mad("nan"),
    "generator-shape": mad("shape"),
    "generator-hangs": mad("hang"),
    "generator-slow": mad("slow"),
    "checkpoint-truncated": damaged(lambda content: content[: len(content) // 2]),
    "checkpoint-altered": damaged(flipped),
}
#: Faults after which a user resumes -> the exit code before, or None for any; every other run ends by itself.
RESUMED: dict[str, int | None] = {
    "driver-killed": -9,
    "head-killed": None,
    "spot-notice": 130,
    "checkpoint-truncated": 130,
    "checkpoint-altered": 130,
}
