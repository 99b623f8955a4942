"""What the parser overlooks: recall and precision on labelled prompts, and misspelt or rephrased mentions."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from obclip.core.errors import InputError, PrivacyError
from obclip.edge.oblivious import Policy, candidate_set, load_policy
from obclip.edge.oblivious.text import normalise
from runtime_tests.labels import FOLDER, detect

from .fuzz import TYPOS, alter
from .row import Row, rate
from .sets import shared_words, words_of
from .settings import Settings

LABELS = ("prompts", "heldout")  # read while the parser was built, and not
Labelled = Mapping[str, Any]


@dataclass(frozen=True)
class Score:
    """Mentions of one attribute. labelled: by the reader, refused: those of them in refused prompts.

    found: by the parser, in prompts that it takes; matched: those of them that are labelled.
    """

    labelled: int
    refused: int
    found: int
    matched: int

    @property
    def recall(self) -> float:
        """Refusals count as detected: nothing is sent."""
        return (self.matched + self.refused) / self.labelled if self.labelled else math.nan

    @property
    def recall_not_refused(self) -> float:
        sent = self.labelled - self.refused
        return self.matched / sent if sent else math.nan

    @property
    def precision(self) -> float:
        return self.matched / self.found if self.found else math.nan


def run(settings: Settings, folder: Path = FOLDER) -> list[Row]:
    result, fuzzed = [], []
    for name in LABELS:
        path = folder / f"{name}.jsonl"
        if path.is_file():
            rows = [json.loads(line) for line in path.read_text("utf8").splitlines() if line.strip()]
            result += _score_rows(name, rows)
            fuzzed += rows
    return result + (fuzz_rows(fuzzed, settings) if fuzzed else [])


def detection_scores(rows: Sequence[Labelled], policy: Policy | None = None) -> dict[str, Score]:
    """Attribute -> Score over labelled prompts, {"prompt": str, "mentions": [{"text": str, "attribute": str}, ...]}.

    A labelled mention is detected if a mention of the parser has its attribute and its words, possessives and wider or
    narrower spans aside, or if the prompt is refused. A mention of the parser without a label is a false positive.
    """
    found = detect([dict(row) for row in rows], policy or load_policy("default"))
    return {
        a: Score(found.labelled[a], found.refused[a], found.found[a] + found.wrong[a], found.found[a])
        for a in sorted(found.labelled.keys() | found.wrong.keys())
    }


def outcome(prompt: str, word: str, policy: Policy) -> str:
    """What becomes of `word` of the prompt: refused, hidden, or clear, that is sent as it stands in every candidate.

    A prompt in which nothing is hidden is refused by `generate` unless the user allows it.
    """
    try:
        found = candidate_set(prompt, policy)
    except (PrivacyError, InputError):
        return "refused"
    if not found.attributes:
        return "refused"
    parts = words_of(normalise(word))
    return "clear" if parts <= shared_words(found.prompts) else "hidden"


def fuzz_rows(rows: Sequence[Labelled], settings: Settings) -> list[Row]:
    """Labelled mentions that are hidden as they stand, altered: how many are then sent in the clear."""
    policy, result = load_policy("default"), []
    places = [(str(row["prompt"]), str(m["text"])) for row in rows for m in row["mentions"]]
    for number, kind in enumerate((*TYPOS, "paraphrase")):
        rng = np.random.default_rng([settings.seed, number])
        altered = []
        for i in rng.permutation(len(places)):
            prompt, word = places[i]
            changed = alter(prompt, word, kind, rng)
            if changed is not None and outcome(prompt, word, policy) == "hidden":
                altered.append(changed)
            if len(altered) == settings.fuzz:
                break
        seen = Counter(outcome(prompt, word, policy) for prompt, word in altered)
        note = f"{seen['hidden']} hidden, {seen['refused']} refused; each is hidden as it stood"
        metric, n = f"sent in the clear, {kind}", len(altered)
        result.append(rate("detection", "ours", metric, seen["clear"], n, None, "measured", note))
    return result


def _score_rows(name: str, rows: Sequence[Labelled]) -> list[Row]:
    result = []
    for attribute, s in detection_scores(rows).items():
        refused, sent = f"{s.refused} of {s.labelled} labelled are in refused prompts", s.labelled - s.refused
        for metric, hits, n, note in (
            ("recall", s.matched + s.refused, s.labelled, refused),
            ("recall among not refused", s.matched, sent, ""),
            ("precision", s.matched, s.found, ""),
        ):
            if n:
                result.append(
                    rate("detection", f"ours: {name}", f"{metric}, {attribute}", hits, n, None, "measured", note)
                )
    return result
