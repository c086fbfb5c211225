"""Runs whose `out` is an address (s3://, gs://, file:// of a mounted share) instead of a folder.

A run works in a folder of the node that it runs on; what is whole there is copied to the address while it goes on, so
the run can be taken up elsewhere when the node is gone. Any file system of pyarrow's will do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pyarrow import ArrowException, fs

from gasim_ray.errors import UserError

#: What a run is told by.
MARKER = "config.yaml"
#: What copying raises where a service or its credentials are not as they should be.
FAILURES = (OSError, ArrowException)


def is_address(out: str) -> bool:
    """Whether it is an address rather than a folder."""
    return "://" in out


class Mirror:
    """The copy of a run's folder at an address; `folder` is where the run works.

    Raises UserError if there is no such file system.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        try:
            self.files, self.root = fs.FileSystem.from_uri(address.rstrip("/"))
        except (*FAILURES, ValueError) as error:
            raise UserError(f"out: {address} is no address that can be written ({first_line(error)})") from error
        if not self.root.strip("/"):
            raise UserError(f"out: {address} is no address that can be written; name a folder, such as s3://bucket/run")
        self.folder = Path(tempfile.mkdtemp(prefix="gasim-"))
        self.copied: dict[Path, tuple[int, int]] = {}
        self.pool = ThreadPoolExecutor(1)
        self.under_way: Future[None] | None = None

    def begin(self, overwrite: bool) -> None:
        """Make sure that the address is free; raises UserError if a run or something else is there."""
        try:
            there = self.files.get_file_info(fs.FileSelector(self.root, allow_not_found=True))
            if not there:
                return
            if not overwrite:
                raise UserError(f"out: {self.address} exists; go on with --resume, or replace it with --overwrite")
            if all(info.base_name != MARKER for info in there):
                raise UserError(f"out: {self.address} holds something else than a run, which --overwrite leaves alone")
            self.files.delete_dir_contents(self.root)
        except FAILURES as error:
            raise UserError(f"out: {self.address} cannot be read ({first_line(error)})") from error

    def download(self) -> None:
        """Bring what is there into the folder; raises UserError if no run is."""
        selector = fs.FileSelector(self.root, recursive=True, allow_not_found=True)
        try:
            found = [info for info in self.files.get_file_info(selector) if info.type == fs.FileType.File]
            for info in found:
                place = self._inside(info.path)
                place.parent.mkdir(parents=True, exist_ok=True)
                with self.files.open_input_stream(info.path) as source, place.open("wb") as copy:
                    while block := source.read(1 << 22):
                        copy.write(block)
        except FAILURES as error:
            raise UserError(f"out: {self.address} cannot be read ({first_line(error)})") from error
        if not (self.folder / MARKER).exists():
            raise UserError(f"out: no run at {self.address} ({MARKER} is missing)")

    def _inside(self, path: str) -> Path:
        """Where a file of the address lies in the folder; raises UserError for a name that leads out of it."""
        place = (self.folder / path.removeprefix(self.root).lstrip("/")).resolve()
        if not place.is_relative_to(self.folder.resolve()):
            raise UserError(f"out: {path} leads out of the run's folder; remove it")
        return place

    def start_upload(self, complain: Callable[[str], None]) -> None:
        """Copy what is new in the background, unless the copying before is still under way; a failure is told."""
        if self.under_way is not None and not self.under_way.done():
            return
        if self.under_way is not None and self.under_way.exception():
            complain(f"warning: {self.address}: {first_line(self.under_way.exception())}; the run goes on")
        self.under_way = self.pool.submit(self._copy_what_is_new)

    def finish(self) -> None:
        """Copy all that is new and wait for it; raises UserError, the folder kept, if it cannot be written."""
        self.pool.shutdown()
        try:
            self._copy_what_is_new()
        except FAILURES as error:
            raise UserError(
                f"out: {self.address} cannot be written ({first_line(error)}); the run is in {self.folder}"
            ) from error

    def _copy_what_is_new(self) -> None:
        for path in sorted(self.folder.rglob("*")):
            if path.is_dir() or path.suffix == ".partial":
                continue
            state = path.stat()
            version = (state.st_mtime_ns, state.st_size)
            if self.copied.get(path) != version:
                self._copy(path)
                self.copied[path] = version

    def _copy(self, path: Path) -> None:
        """A reader at the address sees the file as it was or as it is, never half of it."""
        target = f"{self.root}/{path.relative_to(self.folder).as_posix()}"
        whole = isinstance(self.files, fs.LocalFileSystem)
        if whole:  # an object of a store appears when it is whole
            self.files.create_dir(target.rpartition("/")[0])
        beside = f"{target}.partial" if whole else target
        with path.open("rb") as source, self.files.open_output_stream(beside) as copy:
            while block := source.read(1 << 22):
                copy.write(block)
        if whole:
            self.files.move(beside, target)


def first_line(error: BaseException | None) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())[:300]
