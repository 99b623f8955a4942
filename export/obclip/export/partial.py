"""An export in progress: a hidden folder beside the bundle-to-be, each part either whole and on record or made again.

Killed exports go on where they were: the folder is kept while its key, a digest of the model and the options, is the
same. Only a folder with every part takes the bundle's name.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from obclip.core.errors import InputError, RunError
from obclip.core.files import atomic_write_bytes, check_replaceable, publish_folder, sync_folder
from obclip.core.manifest import Component, FileEntry, Variant, list_files

_STATE = ".export"
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Record:
    """A part that is done: its component, other graphs of it, and its files, relative to the bundle."""

    component: Component
    variants: tuple[Variant, ...]
    files: tuple[FileEntry, ...]

    def intact(self, folder: Path) -> bool:
        """Whether its bytes are what they were; files of weights may have grown."""
        return all(_holds(folder / f.path, f) for f in self.files)

    def undo_the_rest(self, folder: Path) -> None:
        """Take back what a run that was stopped added to the part: weights behind those on record, and files."""
        sizes = {folder / f.path: f.bytes for f in self.files}
        for path in sorted((folder / self.component.name).rglob("*"), reverse=True):  # what is in a folder first
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path not in sizes:
                path.unlink()
            elif path.stat().st_size > sizes[path]:
                os.truncate(path, sizes[path])


class Partial:
    """Use with `with`: it holds a lock, so that two exports to one place cannot mix.

    An exception of the disk (OSError, or what was made of one), Ctrl-C or a kill leaves the finished parts for the next
    run; any other error is the model's or the options' and leaves nothing. force, mark: of what may be replaced, as
    `obclip.core.files.check_replaceable` takes them.
    """

    def __init__(self, out: Path, key: str, force: bool = False, mark: str = "") -> None:
        self.out, self._force, self._mark = out, force, mark
        self.folder = out.parent / f".{out.name}.partial"
        self._state, self._key = self.folder / _STATE, key
        self._lock: Any = None
        self._published = False

    def __enter__(self) -> Partial:
        try:
            self._state.mkdir(parents=True, exist_ok=True)
            self._lock = (self._state / "lock").open("a")
            _lock(self._lock.fileno())
        except BlockingIOError as error:
            self._lock.close()
            raise InputError(f"another export is writing {self.out}; wait for it or choose another place") from error
        except OSError as error:
            raise RunError(f"cannot write to {self.out.parent} ({error.strerror}); choose another place") from error
        if self._read_key() != self._key:
            self._wipe()
            atomic_write_bytes(self._state / "key", self._key.encode())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        caused = error.__cause__ if isinstance(error, RunError) else error
        kept = isinstance(caused, OSError | MemoryError) or not isinstance(error, Exception)
        if not self._published and not (kept and self.records()):
            self._let_go_on_windows()
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()

    def records(self) -> list[str]:
        """Names of the parts on record."""
        return sorted(p.stem for p in self._state.glob("*.json"))

    def find(self, name: str) -> Record | None:
        """The record of a part that an earlier run finished, if its files are still what they were.

        What that run added to it afterwards, of a precision that it did not finish, is gone then.
        """
        try:
            values = json.loads((self._state / f"{name}.json").read_text(encoding="utf8"))
            record = Record(
                Component(**values["component"]),
                tuple(Variant(**v) for v in values["variants"]),
                tuple(FileEntry(**f) for f in values["files"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not record.intact(self.folder):
            return None
        record.undo_the_rest(self.folder)
        return record

    def begin(self, name: str) -> Path:
        """An empty folder for a part."""
        (self._state / f"{name}.json").unlink(missing_ok=True)
        folder = self.folder / name
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        return folder

    def finish(self, name: str, component: Component, variants: tuple[Variant, ...]) -> Record:
        """Put a part on record, once its bytes are on the disk."""
        folder = self.folder / name
        sync_folder(folder)
        files = tuple(FileEntry(f"{name}/{f.path}", f.bytes, f.sha256) for f in list_files(folder))
        record = Record(component, variants, files)
        atomic_write_bytes(self._state / f"{name}.json", json.dumps(asdict(record)).encode())
        return record

    def note(self, name: str) -> Path:
        """A file of the export's own, which is no part of the bundle. name: without .json, which records have."""
        return self._state / name

    def publish(self) -> None:
        """Give the folder the bundle's name. FileExistsError: something else that may not be replaced has it by now."""
        sync_folder(self.folder)
        try:
            check_replaceable(self.out, self._force, self._mark)
        except InputError as error:
            raise FileExistsError(errno.EEXIST, str(error)) from error
        self._let_go_on_windows()
        publish_folder(self.folder, self.out)  # with its records, without which a failure here would cost all parts
        self._published = True
        shutil.rmtree(self.out / _STATE, ignore_errors=True)

    def _let_go_on_windows(self) -> None:
        """It moves and removes nothing that is open; elsewhere the lock is held until the folder is gone from here."""
        if sys.platform == "win32":
            self._lock.close()

    def _read_key(self) -> str | None:
        try:
            return (self._state / "key").read_text()
        except OSError:
            return None

    def _wipe(self) -> None:
        for path in [*self.folder.iterdir(), *self._state.iterdir()]:
            if path == self._state or path.name == "lock":
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _holds(path: Path, entry: FileEntry) -> bool:
    """Whether the file begins with the entry's bytes; only further precisions' weights may follow."""
    if not path.is_file():
        return False
    size = path.stat().st_size
    if size < entry.bytes or (size > entry.bytes and not path.name.endswith("_data")):
        return False
    digest, left = hashlib.sha256(), entry.bytes
    with path.open("rb") as file:
        while left and (block := file.read(min(left, _BLOCK_BYTES))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest() == entry.sha256


def _lock(descriptor: int) -> None:
    """BlockingIOError if another process holds it; the system lets go when this one ends, however it ends."""
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError from error
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
