"""Hand-labelled prompts and how well the parser finds what they say: `data_labels/`."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from obclip.core.errors import PrivacyError
from obclip.edge.oblivious import Policy, candidate_set

FOLDER = Path(__file__).with_name("data_labels")


def labelled(name: str) -> list[dict[str, Any]]:
    """Rows of `prompts` (read while the parser was built) or `heldout` (not read)."""
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text("utf8").splitlines()]


@dataclass
class Detection:
    """Counts by attribute. labelled: mentions in the labels; found: of those, mentions that the parser reports;
    refused: of those, mentions of prompts that it refuses whole; wrong: what it reports and the labels do not have."""

    labelled: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    missed: list[tuple[str, str, str]] = field(default_factory=list)
    prompts_refused: list[dict[str, Any]] = field(default_factory=list)

    def recall(self, attribute: str) -> float:
        """Share of mentions that do not leave the device as they are: hidden, left out, or refused."""
        return (self.found[attribute] + self.refused[attribute]) / self.labelled[attribute]

    def recall_of_sent(self, attribute: str) -> float:
        return self.found[attribute] / (self.labelled[attribute] - self.refused[attribute])

    def precision(self, attribute: str) -> float:
        return self.found[attribute] / (self.found[attribute] + self.wrong[attribute])


def detect(rows: list[dict[str, Any]], policy: Policy) -> Detection:
    """Match each row's labels with the parser's mentions: the same attribute, the words of one within the other's."""
    result = Detection()
    for row in rows:
        wanted = Counter((m["text"].lower(), m["attribute"]) for m in row["mentions"])
        for (_, attribute), n in wanted.items():
            result.labelled[attribute] += n
        try:
            found = candidate_set(row["prompt"], policy)
        except PrivacyError:
            result.prompts_refused.append(row)
            for (_, attribute), n in wanted.items():
                result.refused[attribute] += n
            continue
        got = [
            (m.text.removesuffix("'s").removesuffix("'"), m.attribute.replace("child", "age")) for m in found.mentions
        ]
        for (text, attribute), n in wanted.items():
            for _ in range(n):
                match = next(
                    (g for g in got if g[1] == attribute and (_within(text, g[0]) or _within(g[0], text))), None
                )
                if match is None:
                    result.missed.append((text, attribute, row["prompt"]))
                else:
                    got.remove(match)
                    result.found[attribute] += 1
        result.wrong.update(attribute for _, attribute in got)
    return result


def _within(text: str, other: str) -> bool:
    """Whether `other` has `text` with no letter beside it: "girl" is in "1girl", "man" is not in "woman"."""
    return re.search(rf"(?<![^\W\d_]){re.escape(text)}(?![^\W\d_])", other) is not None
