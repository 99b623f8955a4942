"""Sensitivity by the layers it was measured on; in a file, so that an export that goes on need not measure again."""

from __future__ import annotations

import json
from dataclasses import astuple
from pathlib import Path

from obclip.core.files import atomic_write_bytes
from obclip.export.quantise.sensitivity import Damage

Table = tuple[list[str], list[Damage]]  # names of a graph's layers, and the damage of each group of them


class Measured(dict[str, Table]):
    """path: of the file, which is read now and written with each entry; one that cannot be read is as none."""

    def __init__(self, path: Path | None = None) -> None:
        self._path, found = path, {}
        try:
            if path is not None:
                found = {k: _table(*entry) for k, entry in json.loads(path.read_text(encoding="utf8")).items()}
        except (OSError, ValueError, TypeError, AttributeError):
            pass
        super().__init__(found)

    def __setitem__(self, key: str, table: Table) -> None:
        super().__setitem__(key, table)
        if self._path is not None:
            plain = {k: (names, [astuple(d) for d in damages]) for k, (names, damages) in self.items()}
            atomic_write_bytes(self._path, json.dumps(plain).encode())


def _table(names: list[str], damages: list[tuple[list[str], float, float]]) -> Table:
    return names, [Damage(tuple(group), noise, share) for group, noise, share in damages]
