"""Runs at an address: a shared folder, and an S3 server from a package."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import tiny
import yaml
from conftest import Gasim
from moto.server import ThreadedMotoServer
from pyarrow import fs

from gasim_ray import cli
from gasim_ray.core.model import load_model, same_model
from gasim_ray.errors import UserError
from gasim_ray.storage import Mirror, local_copy

#: Credentials that moto's server takes.
SECRET = "not-to-be-found-in-any-file"


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """The environment in which s3:// leads to a server of our own, with a bucket `bucket`."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": host,
    }
    keys = {"aws_access_key_id": "someone", "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=environment["AWS_ENDPOINT_URL"], **keys).create_bucket(Bucket="bucket")
    yield environment
    server.stop()


@pytest.fixture(params=["s3", "file"])
def address(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where nothing is yet."""
    if request.param == "file":
        return f"file://{tmp_path}/shared/run"
    for name, value in request.getfixturevalue("s3").items():
        monkeypatch.setenv(name, value)
    return f"s3://bucket/{tmp_path.name}/run"


def at(address: str, folder: Path) -> Path:
    """A copy of all that is at the address."""
    files, root = fs.FileSystem.from_uri(address)
    fs.copy_files(root, str(folder), source_filesystem=files)
    return folder


def test_a_download_that_is_broken_off_leaves_the_address_as_it_is(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "large"):
        (run / name).write_bytes(b"x" * 100)
    files, root = fs.FileSystem.from_uri(address)
    files.create_dir(root)
    fs.copy_files(str(run), root, destination_filesystem=files)
    opened = Path.open

    def half(self: Path, *mode: str) -> Any:
        if self.name.startswith("large") and mode == ("wb",):
            with opened(self, "wb") as file:
                file.write(b"x" * 50)
            raise KeyboardInterrupt
        return opened(self, *mode)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", half)
        with pytest.raises(KeyboardInterrupt), local_copy(address):
            pytest.fail("it is not whole")
    (tmp_path / "again").mkdir()
    assert (at(address, tmp_path / "again") / "large").read_bytes() == b"x" * 100


def test_a_run_at_an_address_is_whole_and_is_taken_up_elsewhere(
    address: str,
    tmp_path: Path,
    vector_teacher: Path,
    config_file: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    tree = tiny.tree(vector_teacher, local=True, out=address, checkpoint_seconds=0.1)
    distil = ["distill", str(config_file(tree))]
    assert cli.main(distil) == 0
    assert f"run: {address}" in capsys.readouterr().out
    run = at(address, tmp_path / "copy")
    for name in ("config.yaml", "metrics.csv", "summary.json", "samples.png", "checkpoint/state.pt"):
        assert (run / name).stat().st_size > 0
    before = load_model(run / "student")
    assert not list(run.rglob("*.partial"))
    assert not any(SECRET.encode() in path.read_bytes() for path in run.rglob("*") if path.is_file())
    assert cli.main(distil) == 2
    assert "go on with --resume" in capsys.readouterr().err
    assert cli.main([*distil, "--budget.student_steps", "80", "--resume"]) == 0
    after = at(address, tmp_path / "after")
    earlier, later = ((folder / "metrics.csv").read_text().splitlines() for folder in (run, after))
    assert later[: len(earlier) - 1] == earlier[:-1]  # the last row may be later than the checkpoint
    steps = [int(row["student_steps"]) for row in csv.DictReader(later)]
    assert steps == sorted(steps)
    assert steps[-1] >= 80
    assert load_model(after / "student").config == before.config
    # The file says what the run has become.
    written = yaml.safe_load((after / "config.yaml").read_text())
    assert (written["out"], written["budget"]["student_steps"]) == (address, 80)


def test_an_address_without_a_run_cannot_be_resumed(
    address: str, vector_teacher: Path, config_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    tree = config_file(tiny.tree(vector_teacher, local=True, out=address))
    assert cli.main(["distill", str(tree), "--resume"]) == 2
    assert f"no run at {address}" in capsys.readouterr().err


def test_a_job_that_was_killed_before_its_first_checkpoint_begins_again(
    tmp_path: Path, vector_teacher: Path, config_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "shared" / "run"
    there.mkdir(parents=True)
    for name in ("config.yaml", "events.out.tfevents.1"):
        (there / name).write_text("{}")
    tree = config_file(tiny.tree(vector_teacher, local=True, out=f"file://{there}", checkpoint_seconds=0.1))
    assert cli.main(["distill", str(tree), "--resume", "--overwrite"]) == 0
    assert "cannot be written" not in capsys.readouterr().err
    assert (there / "summary.json").exists()
    assert not (there / "events.out.tfevents.1").exists()


def test_a_run_is_replaced_by_one_of_the_teacher_that_it_alone_holds(
    tmp_path: Path, vector_teacher: Path, config_file: Callable[..., Path]
) -> None:
    there, teacher = tmp_path / "shared" / "run", Path(shutil.copytree(vector_teacher, tmp_path / "mine"))
    tree = config_file(tiny.tree(teacher, local=True, out=f"file://{there}"))
    assert cli.main(["distill", str(tree)]) == 0
    shutil.rmtree(teacher)
    assert cli.main(["distill", str(there), "--overwrite"]) == 0
    assert same_model(there / "teacher", vector_teacher)


def test_a_run_at_an_address_is_copied_to_be_read_and_gets_what_is_measured(tmp_path: Path) -> None:
    with Mirror(f"file://{tmp_path}/run") as mirror:
        (mirror.folder / "config.yaml").write_text("seed: 0")
        mirror.begin()
    with local_copy(f"file://{tmp_path}/run") as copy:
        assert (copy / "config.yaml").read_text() == "seed: 0"
        (copy / "controls").mkdir()
        (copy / "controls" / "one").write_text("measured")
    assert (tmp_path / "run" / "controls" / "one").read_text() == "measured"
    assert not copy.exists()
    with local_copy(str(tmp_path)) as folder:
        assert folder == tmp_path
    with pytest.raises(UserError, match="no run at"), local_copy(f"file://{tmp_path}/other"):
        pass


def test_what_overwrite_replaces_is_a_run(address: str) -> None:
    files, root = fs.FileSystem.from_uri(address)
    files.create_dir(root)
    with files.open_output_stream(f"{root}/thesis.tex") as file:
        file.write(b"years of work")
    with pytest.raises(UserError, match="holds something else than a run"):
        Mirror(address).claim(overwrite=True)
    with files.open_output_stream(f"{root}/config.yaml") as file:
        file.write(b"seed: 0")
    with pytest.raises(UserError, match="go on with --resume"):
        Mirror(address).claim(overwrite=False)
    with pytest.raises(UserError, match=r"holds thesis\.tex, which is no part of a run"):
        Mirror(address).claim(overwrite=True)
    files.delete_file(f"{root}/thesis.tex")
    Mirror(address).claim(overwrite=True)
    assert files.get_file_info(fs.FileSelector(root, allow_not_found=True)) == []


def test_a_name_that_leads_out_of_the_run_is_refused(tmp_path: Path) -> None:
    mirror = Mirror(f"file://{tmp_path}/run")
    with pytest.raises(UserError, match="leads out of the run's folder"):
        mirror._inside(f"{mirror.root}/../../etc/passwd")


@pytest.mark.parametrize("wrong", ["ftp://somewhere/run", "s3://"])
def test_addresses_of_nothing(wrong: str) -> None:
    with pytest.raises(UserError, match=r"^out: .* is no address that can be written") as caught:
        Mirror(wrong)
    assert "\n" not in str(caught.value)


def test_what_could_not_be_copied_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> Iterator[Mirror]:
        with Mirror(f"file://{tmp_path}/{len(list(tmp_path.iterdir()))}") as mirror:
            (mirror.folder / "config.yaml").write_text("seed: 0")
            mirror.begin()
            (mirror.folder / "result").write_text("years of work")
            shutil.rmtree(mirror.root)
            Path(mirror.root).touch()
            yield mirror

    run = broken()
    kept = next(run).folder
    with pytest.raises(UserError, match=f"cannot be written .*; the run is in {kept}"):
        next(run)
    assert (kept / "result").read_text() == "years of work"
    # What ended the run is told, not what came after it.
    run = broken()
    next(run)
    with pytest.raises(KeyboardInterrupt):
        run.throw(KeyboardInterrupt)
    assert "warning: out: file://" in capsys.readouterr().err


def test_the_address_holds_what_the_folder_does(tmp_path: Path) -> None:
    with Mirror(f"file://{tmp_path}/run") as mirror:
        for name in ("config.yaml", "snapshots/1.0/a", "snapshots/.2.0.new/a", "state.partial"):
            (mirror.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (mirror.folder / name).write_text(name)
        mirror.begin()
        mirror.start_upload(print)
        assert mirror.under_way is not None
        mirror.under_way.result()
        assert found(tmp_path / "run") == {"config.yaml", "snapshots/1.0/a"}
        shutil.rmtree(mirror.folder / "snapshots")
    assert found(tmp_path / "run") == {"config.yaml"}
    assert not mirror.folder.exists()


def found(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("wrong", ["s3://someone:secret@bucket/run", "s3://bucket/run?access_key=a&secret_key=secret"])
def test_an_address_with_credentials_is_refused_without_repeating_them(wrong: str) -> None:
    with pytest.raises(UserError, match="give them by environment") as caught:
        Mirror(wrong)
    assert "secret@" not in str(caught.value)
    assert "=secret" not in str(caught.value)


def test_an_address_that_is_down_ends_the_run_before_it_begins(
    tmp_path: Path, vector_teacher: Path, config_file: Callable[..., Path], gasim: Gasim
) -> None:
    nowhere = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_MAX_ATTEMPTS": "1",
    }
    tree = tiny.tree(vector_teacher, local=True, out="s3://bucket/run")
    process = gasim("distill", config_file(tree), **nowhere)
    _, complaint = process.communicate()
    assert process.returncode == 2
    assert "out: s3://bucket/run cannot be read" in complaint
    assert SECRET not in complaint
    assert os.listdir(tmp_path) == ["given.yaml"]
