"""Tables of the docs and numbers of the committed results, for tests that compare them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
Check = tuple[str, float | None]  # what is printed, and what was measured


def results(name: str) -> dict[str, Any]:
    return json.loads((DOCS / "results" / f"{name}.json").read_text("utf8"))


def tables(path: Path, header: str) -> list[list[list[str]]]:
    """Cells of the rows of each table whose first line starts with `header`, without **."""
    found: list[list[list[str]]] = []
    lines = path.read_text("utf8").splitlines()
    for i, line in enumerate(lines):
        if line.startswith(header):
            rows = []
            for row in lines[i + 2 :]:
                if not row.startswith("|"):
                    break
                rows.append([c.strip().strip("*").removesuffix("**") for c in row.strip()[1:-1].split("|")])
            found.append(rows)
    assert all(found or [[]]), f"no table of {path.name} starts with {header!r}"
    return found


def filled(rows: list[list[str]], columns: int = 1) -> list[list[str]]:
    """Cells left empty at a row's beginning are those above."""
    for above, row in itertools.pairwise(rows):
        for i in range(columns):
            row[i] = row[i] or above[i]
    return rows


def off(checks: Iterable[Check]) -> list[Check]:
    """What is printed and is not the number, rounded to as many digits; an empty cell or a dash is no number."""
    wrong = []
    for text, value in checks:
        said = text.replace(",", "").split(" ")[0]
        if said in ("", "–"):
            continue
        decimals = len(said.partition(".")[2])
        if value is None or abs(float(said) - value) > 0.5000001 * 10**-decimals:
            wrong.append((text, value))
    return wrong


def off_by_digits(checks: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """`off` for numbers printed to some significant digits: "1.96e+03", "69 GB"."""
    wrong = []
    for text, value in checks:
        said = text.split(" ")[0]
        digits = len(said.partition("e")[0].replace(".", "").lstrip("0"))
        if float(f"{value:.{digits}g}") != float(said):
            wrong.append((text, value))
    return wrong


def of(rows: Sequence[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    found = [r for r in rows if all(r[k] == v for k, v in wanted.items())]
    assert len(found) == 1, (wanted, len(found))
    return found[0]
