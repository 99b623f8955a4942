"""Files that are either whole or absent."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from obclip.core.errors import InputError, RunError


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: Path) -> str:
    """A file that the user wrote. InputError if it cannot be read, or is not UTF-8."""
    try:
        return path.read_text(encoding="utf8")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def check_writable(path: Path) -> None:
    """RunError unless `path` could be made or replaced as a file. Called before work whose result would be lost.

    Leaves no folder behind: of a path whose folders are yet to be made, the nearest one that exists is tried.
    """
    if path.is_dir() or not path.name:
        raise RunError(f"{path} is a folder; name a file in it")
    try:
        with tempfile.NamedTemporaryFile(dir=next(folder for folder in path.parents if folder.exists())):
            pass
    except OSError as error:
        raise RunError(f"cannot write to {path.parent} ({error.strerror}); choose another place") from error


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` in one step: a reader sees the old file or the new one, never a part. RunError if not."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise RunError(f"cannot write to {path.parent} ({error.strerror}); choose another place") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except OSError as error:
        raise RunError(f"cannot write {path} ({error.strerror})") from error
    finally:
        Path(name).unlink(missing_ok=True)


@contextmanager
def atomic_folder(out: Path, force: bool = False, mark: str = "") -> Iterator[Path]:
    """Build a folder beside `out`; it takes the name `out` only if the block ends without an error.

    InputError if `out` exists and `force` is not set; with `force` the old folder stays until the new one is whole, and
    only an empty folder or one that holds the file `mark` is replaced, so that a slip never costs somebody's data.
    RunError if the disk does not take it.
    """
    check_replaceable(out, force, mark)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as error:
        raise RunError(f"cannot write to {out.parent} ({error.strerror}); choose another place") from error
    try:
        yield building
        publish_folder(building, out)
    except OSError as error:
        raise RunError(f"cannot write {out} ({error.strerror or error}); nothing of it is kept") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def check_replaceable(out: Path, force: bool = False, mark: str = "") -> None:
    """InputError unless a folder may take the name `out`, as `atomic_folder` says."""
    if out.exists() and not force:
        raise InputError(f"{out} exists; pass --force to replace it")
    if out.exists() and not (out.is_dir() and ((mark and (out / mark).is_file()) or not any(out.iterdir()))):
        raise InputError(f"{out} is not what this command writes (it has no {mark or 'mark'}); choose another place")


def publish_folder(building: Path, out: Path) -> None:
    """Give the whole folder `building` the name `out`, in place of what had it. OSError: `out` is as it was before."""
    old = building.with_name(building.name + ".old")
    os.chmod(building, 0o777 & ~_umask())
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)  # of one that was killed right behind its last step
        os.replace(out, old)
    try:
        os.replace(building, out)
    except OSError:
        if old.exists():
            os.replace(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(folder: Path) -> bool:
    """Take the name away first, so that no half of the folder is ever found under it. False if it stays."""
    gone = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.gone")
    try:
        os.replace(folder, gone)
    except OSError:
        return False
    shutil.rmtree(gone, ignore_errors=True)
    return True


def sync_folder(folder: Path) -> None:
    """Bring the bytes of every file below `folder` to the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
