"""Runs whose `out` is an address (s3://, gs://, file:// of a mounted share) instead of a folder.

A run works in a folder of the node that it runs on; what is whole there is copied to the address while it goes on, so
the run can be taken up elsewhere when the node is gone. Any file system of pyarrow's will do.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

from pyarrow import ArrowException, fs

from gasim_ray.errors import UserError, one_line
from gasim_ray.run_folder import check_only_run

#: What a run is told by.
MARKER = "config.yaml"
#: What copying raises where a service or its credentials are not as they should be.
FAILURES = (OSError, ArrowException)
#: Bytes that are copied at once.
BLOCK = 1 << 22


def is_address(out: str) -> bool:
    """Whether it is an address rather than a folder."""
    return "://" in out


def local_folder(out: str | Path) -> Path:
    """The folder of what cannot be at an address; raises UserError for one. A path is one already."""
    if isinstance(out, str) and is_address(out):
        raise UserError(f"out: {out} is an address; give a folder (of a sweep on several hosts, one that all share)")
    return Path(out)


class Mirror:
    """The copy of a run's folder at an address; `folder` is where the run works.

    A context: at its end all is copied and the folder removed. Raises UserError for an address that leads nowhere or
    holds a secret, which would get into the run's files.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        parts = urlsplit(address)
        if parts.username or parts.password or "key" in parts.query.lower():
            raise UserError("out: the address holds credentials, which would be written down; give them by environment")
        try:
            self.files, self.root = fs.FileSystem.from_uri(address.rstrip("/"))
        except (*FAILURES, ValueError) as error:
            raise UserError(f"out: {address} is no address that can be written ({one_line(error)})") from error
        if not self.root.strip("/"):
            raise UserError(f"out: {address} is no address that can be written; name a folder, such as s3://bucket/run")
        self.folder = Path(tempfile.mkdtemp(prefix="gasim-"))
        #: What is at the address -> (time, size) of the file that it is a copy of.
        self.copied: dict[Path, tuple[int, int]] = {}
        self.pool = ThreadPoolExecutor(1)
        self.under_way: Future[None] | None = None

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.pool.shutdown()
        if not self.copied:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        try:
            self._copy_what_is_new()
        except FAILURES as failure:
            told = f"out: {self.address} cannot be written ({one_line(failure)}); the run is in {self.folder}"
            if error is None:
                raise UserError(told) from failure
            print(f"warning: {told}", file=sys.stderr)  # what ended the run is told as well
            return
        shutil.rmtree(self.folder, ignore_errors=True)

    def claim(self, overwrite: bool) -> None:
        """Make the address free; raises as `check_clear`."""
        self.check_clear(overwrite)
        try:
            self.files.delete_dir_contents(self.root, missing_dir_ok=True)
            self.copied.clear()
        except FAILURES as error:
            raise UserError(f"out: {self.address} cannot be written ({one_line(error)})") from error

    def check_clear(self, overwrite: bool) -> None:
        """Raise UserError if a run is there and `overwrite` is off, and in any case if something else is."""
        try:
            there = self.files.get_file_info(fs.FileSelector(self.root, allow_not_found=True))
            if not there:
                return
            if not overwrite:
                raise UserError(f"out: {self.address} exists; go on with --resume, or replace it with --overwrite")
            if all(info.base_name != MARKER for info in there):
                raise UserError(f"out: {self.address} holds something else than a run, which --overwrite leaves alone")
            check_only_run(self.address, (info.base_name for info in there))
        except FAILURES as error:
            raise UserError(f"out: {self.address} cannot be read ({one_line(error)})") from error

    def begin(self) -> None:
        """Copy the marker, which tells others that the address is taken; raises UserError if it cannot be written."""
        try:
            self._copy(self.folder / MARKER)
        except FAILURES as error:
            raise UserError(f"out: {self.address} cannot be written ({one_line(error)})") from error

    def download(self) -> bool:
        """Bring what is there into the folder, and whether it is a run; raises UserError if it cannot be read."""
        selector = fs.FileSelector(self.root, recursive=True, allow_not_found=True)
        try:
            found = [info for info in self.files.get_file_info(selector) if info.type == fs.FileType.File]
            for info in found:
                place = self._inside(info.path)
                place.parent.mkdir(parents=True, exist_ok=True)
                partial = place.with_name(f"{place.name}.partial")  # which is never copied back
                with self.files.open_input_stream(info.path) as source, partial.open("wb") as copy:
                    while block := source.read(BLOCK):
                        copy.write(block)
                partial.replace(place)
                self.copied[place] = version_of(place)
        except FAILURES as error:
            raise UserError(f"out: {self.address} cannot be read ({one_line(error)})") from error
        return (self.folder / MARKER).exists()

    def _inside(self, path: str) -> Path:
        """Where a file of the address lies in the folder; raises UserError for a name that leads out of it."""
        place = self.folder / path.removeprefix(self.root).lstrip("/")
        if not place.resolve().is_relative_to(self.folder.resolve()):
            raise UserError(f"out: {path} leads out of the run's folder; remove it")
        return place

    def start_upload(self, complain: Callable[[str], None]) -> None:
        """Copy what is new in the background, unless the copying before is still under way; a failure is told."""
        if self.under_way is not None and not self.under_way.done():
            return
        if self.under_way is not None and self.under_way.exception():
            complain(f"warning: {self.address}: {one_line(self.under_way.exception())}; the run goes on")
        self.under_way = self.pool.submit(self._copy_what_is_new)

    def _copy_what_is_new(self) -> None:
        for path in self._whole_files():
            if not path.exists() or self.copied.get(path) == version_of(path):
                continue
            # A checkpoint that has become the one before is there already, under another name.
            twin = next((other for other, version in self.copied.items() if version == version_of(path)), None)
            if twin is None:
                self._copy(path)
            else:
                self.files.copy_file(self._target(twin), self._target(path))
                self.copied[path] = version_of(path)
        for path in [path for path in self.copied if not path.exists()]:
            self.files.delete_file(self._target(path))
            del self.copied[path]

    def _whole_files(self) -> Iterator[Path]:
        """All but what is being written beside its place."""
        for path in sorted(self.folder.rglob("*")):
            beside = any(part.startswith(".") for part in path.relative_to(self.folder).parts)
            if path.is_file() and not beside and path.suffix != ".partial":
                yield path

    def _target(self, path: Path) -> str:
        return f"{self.root}/{path.relative_to(self.folder).as_posix()}"

    def _copy(self, path: Path) -> None:
        """A reader at the address sees the file as it was or as it is, never a part of what is copied."""
        target, version = self._target(path), version_of(path)
        beside = target
        if isinstance(self.files, fs.LocalFileSystem):  # an object of a store appears when it is whole
            beside = f"{target}.partial"
            self.files.create_dir(target.rpartition("/")[0])
        with path.open("rb") as source, self.files.open_output_stream(beside) as copy:
            while block := source.read(BLOCK):
                copy.write(block)
        if beside != target:
            self.files.move(beside, target)
        self.copied[path] = version


@contextmanager
def local_copy(run: str) -> Iterator[Path]:
    """The folder of a run; of one at an address a copy, of which is brought back what is new.

    Raises UserError if no run is there.
    """
    if not is_address(run):
        yield Path(run)
        return
    with Mirror(run) as mirror:
        if not mirror.download():
            raise UserError(f"out: no run at {run} ({MARKER} is missing)")
        yield mirror.folder


def version_of(path: Path) -> tuple[int, int]:
    """What changes when a file is written anew."""
    state = path.stat()
    return state.st_mtime_ns, state.st_size
