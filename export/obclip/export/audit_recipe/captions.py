"""Captions as training rows: who stands in them, which words stand by whom, and which of three parts they are in."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from obclip.core.errors import InputError, ObclipError
from obclip.edge.audit.evidence import Evidence, attribute_of, person_of, read_evidence
from obclip.edge.oblivious import candidate_set, load_policy

SPLITS = ("train", "calibrate", "held_out")
_SHARES = (60, 20, 20)


@dataclass(frozen=True)
class Caption:
    """One caption's candidate set under a policy. values: for each of its prompts, hidden label -> value.

    truth: label -> the value that the caption really has. split: one of SPLITS.
    """

    evidence: Evidence
    prompts: tuple[str, ...]
    values: tuple[dict[str, str], ...]
    truth: dict[str, str]
    split: str


@dataclass(frozen=True)
class Row:
    """One person's value of one attribute, and where to find the words about them."""

    caption: Caption
    person: int
    value: str


def read_captions(path: Path) -> list[str]:
    """Distinct captions, in the file's order. InputError for a file that is not JSON lines with captions."""
    try:
        rows = [json.loads(line) for line in path.read_text("utf8").splitlines() if line.strip()]
        texts = [row.get("prompt") or row["caption"] for row in rows]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is not JSON lines with a prompt or caption each ({error!r})") from error
    return list(dict.fromkeys(texts))


def parse_captions(texts: list[str], policy: str) -> tuple[list[Caption], int]:
    """Those that hide something under the policy, and how many of the others were refused."""
    rules, kept, refused = load_policy(policy), [], 0
    for text in texts:
        try:
            found = candidate_set(text, rules)
        except ObclipError:
            refused += 1
            continue
        if found.attributes:
            evidence = read_evidence(found)
            kept.append(Caption(evidence, found.prompts, found.values, found.attributes, split_of(found.prompts)))
    return kept, refused


def split_of(prompts: tuple[str, ...]) -> str:
    """By a hash of the candidate set, so that captions which share one are never on both sides."""
    place = int.from_bytes(hashlib.sha256("\n".join(prompts).encode()).digest()[:8], "big") % sum(_SHARES)
    for split, share in zip(SPLITS, _SHARES, strict=True):
        if place < share:
            return split
        place -= share
    raise AssertionError


def rows_of(captions: list[Caption], attribute: str, split: str) -> list[Row]:
    """One row for each person of whom the captions of a split say the attribute."""
    return [
        Row(caption, person, value)
        for caption in captions
        if caption.split == split
        for label, value in caption.truth.items()
        if attribute_of(label) == attribute and (person := person_of(label)) is not None
    ]
