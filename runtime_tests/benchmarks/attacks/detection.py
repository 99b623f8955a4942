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
from runtime_tests.data import ROOT

from .fuzz import TYPOS, alter
from .row import Row, rate
from .sets import shared_words, words_of
from .settings import Settings

LABELS = ROOT / "runtime_tests" / "data_labels" / "prompts.jsonl"
SAME = {"child": "age"}  # the parser's class of its own is an age in the labels
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


def run(settings: Settings, labels: Path = LABELS) -> list[Row]:
    if not labels.is_file():
        return []
    rows = [json.loads(line) for line in labels.read_text("utf8").splitlines() if line.strip()]
    return _score_rows(rows) + fuzz_rows(rows, settings)


def detection_scores(rows: Sequence[Labelled], policy: Policy | None = None) -> dict[str, Score]:
    """Attribute -> Score over labelled prompts, {"prompt": str, "mentions": [{"text": str, "attribute": str}, ...]}.

    A labelled mention is detected if the parser's mentions hold its words and attribute, or if the prompt is refused. A
    mention of the parser that no label answers is a false positive. Texts are compared as normalised.
    """
    rules = policy or load_policy("default")
    counts: Counter[tuple[str, str]] = Counter()
    for row in rows:
        labelled = Counter((normalise(m["text"]), SAME.get(m["attribute"], m["attribute"])) for m in row["mentions"])
        try:
            mentions = candidate_set(row["prompt"], rules).mentions
        except PrivacyError:
            for (_, attribute), n in labelled.items():
                counts[attribute, "labelled"] += n
                counts[attribute, "refused"] += n
            continue
        found = Counter((normalise(m.text), SAME.get(m.attribute, m.attribute)) for m in mentions)
        for name, some in (("labelled", labelled), ("found", found), ("matched", labelled & found)):
            for (_, attribute), n in some.items():
                counts[attribute, name] += n
    return {a: _score(a, counts) for a in sorted({a for a, _ in counts})}


def _score(attribute: str, counts: Counter[tuple[str, str]]) -> Score:
    return Score(*(counts[attribute, k] for k in ("labelled", "refused", "found", "matched")))


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


def _score_rows(rows: Sequence[Labelled]) -> list[Row]:
    result = []
    for attribute, s in detection_scores(rows).items():
        refused, sent = f"{s.refused} of {s.labelled} labelled are in refused prompts", s.labelled - s.refused
        for metric, hits, n, note in (
            ("recall", s.matched + s.refused, s.labelled, refused),
            ("recall among not refused", s.matched, sent, ""),
            ("precision", s.matched, s.found, ""),
        ):
            if n:
                result.append(rate("detection", "ours", f"{metric}, {attribute}", hits, n, None, "measured", note))
    return result
