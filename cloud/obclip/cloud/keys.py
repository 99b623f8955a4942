"""API keys in a file: names, limits and SHA-256 digests, never the keys themselves.

A slow, salted hash (scrypt, argon2) protects words that people choose, because those can be guessed. A key here is 256
random bits: there is nothing to guess, so that one SHA-256 is as safe, and cheap enough to be taken on every request.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from obclip.cloud.limits import Rate
from obclip.core.errors import InputError, RunError

_PREFIX = "obclip_"  # lets scanners of leaked secrets know a key when they see one


@dataclass(frozen=True)
class Key:
    """One entry. name: 1 to 64 letters, digits, dots, dashes or underscores; it shows in logs. digest: SHA-256 of the
    key, hexadecimal. metrics: whether it reads metrics instead of denoising. InputError for anything else."""

    name: str
    digest: str
    rate: Rate = field(default_factory=Rate)
    metrics: bool = False

    def __post_init__(self) -> None:
        good = isinstance(self.name, str) and self.name.isascii() and 0 < len(self.name) <= 64
        if not good or not all(c.isalnum() or c in "._-" for c in self.name):
            raise InputError(
                "the name of a key is 1 to 64 letters, digits, dots, dashes or underscores, such as phone-app"
            )
        if not isinstance(self.digest, str) or len(self.digest) != 64 or set(self.digest) - set("0123456789abcdef"):
            raise InputError(f"the key {self.name} has no SHA-256 digest; add it anew with `obclip keys add`")
        if not isinstance(self.metrics, bool):
            raise InputError(f"metrics of the key {self.name} is {self.metrics!r}; it must be true or false")


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf8", "surrogateescape")).hexdigest()


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys in `path`. InputError, quoting none of it, if it is not such a file."""
    try:
        values = json.loads(path.read_text(encoding="utf8"))
        if values["version"] != 1:
            raise InputError(f"{path} is a keys file of version {values['version']!r}; this release reads 1")
        keys = tuple(_from_dict(entry) for entry in values["keys"])
    except OSError as error:
        raise InputError(
            f"the keys file {path} cannot be read ({error.strerror}); make it with `obclip keys add`"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no keys file ({type(error).__name__}); make one with `obclip keys add`") from error
    if len({k.name for k in keys}) != len(keys):
        raise InputError(f"{path} has two keys of one name; remove one with `obclip keys remove`")
    return keys


def add_key(path: Path, name: str, rate: Rate | None = None, metrics: bool = False) -> str:
    """Make a key, write its digest to `path` (made if it is not there, mode 0600) and return it: nothing else has it.

    InputError for a name that is taken or cannot be one; RunError if the file cannot be written.
    """
    keys = read_keys(path) if path.exists() else ()
    if any(k.name == name for k in keys):
        raise InputError(f"{path} has a key {name} already; choose another name, or remove that one first")
    secret = _PREFIX + secrets.token_urlsafe(32)
    _write(path, (*keys, Key(name, digest_of(secret), rate or Rate(), metrics)))
    return secret


def remove_key(path: Path, name: str) -> None:
    """A running server stops taking the key within a second. InputError if there is none of that name."""
    keys = read_keys(path)
    left = tuple(k for k in keys if k.name != name)
    if len(left) == len(keys):
        raise InputError(f"{path} has no key {name}; it has {', '.join(k.name for k in keys) or 'none'}")
    _write(path, left)


def _from_dict(entry: dict[str, Any]) -> Key:
    rate = Rate(entry.get("requests_per_minute"), entry.get("rows_per_minute"))
    return Key(entry["name"], entry["sha256"], rate, entry.get("metrics", False))


def _write(path: Path, keys: tuple[Key, ...]) -> None:
    entries = [
        {
            "name": k.name,
            "sha256": k.digest,
            "requests_per_minute": k.rate.requests_per_minute,
            "rows_per_minute": k.rate.rows_per_minute,
            "metrics": k.metrics,
        }
        for k in keys
    ]
    text = json.dumps({"version": 1, "keys": entries}, indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600, and it stays so
    except OSError as error:
        raise RunError(f"cannot write to {path.parent} ({error.strerror}); choose another place") from error
    try:
        with os.fdopen(descriptor, "w", encoding="utf8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except OSError as error:
        raise RunError(f"cannot write {path} ({error.strerror})") from error
    finally:
        Path(name).unlink(missing_ok=True)
