"""Which heads there are, and how one is made from judgements and captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obclip.core.errors import InputError
from obclip.edge.audit.evidence import Slot
from obclip.edge.audit.head import Head
from obclip.edge.audit.vocabulary import FUNCTION_WORDS, MAX_PHRASE_WORDS, Vocabulary, slot_word
from obclip.export.audit_recipe.captions import SPLITS, Row
from obclip.export.audit_recipe.fit import Classes, Float64, best_temperature, fit, log_loss, shares

Associations = Mapping[str, Mapping[str, Mapping[str, float]]]  # attribute -> value -> word -> log-odds

MIN_ROWS = 200  # training rows below which an attribute is left to judgement alone
MIN_CAPTIONS = 3  # captions that a word must occur in to get a weight of its own
STRENGTHS = (1.0, 3.0, 10.0, 30.0)


@dataclass(frozen=True)
class Spec:
    """policy: under which captions are read. tables: value -> its table of associations, where the names differ."""

    attribute: str
    policy: str
    values: tuple[str, ...]
    tables: Mapping[str, str] = field(default_factory=dict)


SPECS = (
    Spec("gender", "default", ("man", "woman")),
    Spec("age", "default", ("middle-aged", "old", "young")),
    Spec("age", "emoji", ("adult", "child", "older"), {"older": "old"}),
    Spec("ethnicity", "default", ("african", "asian", "caucasian", "european", "indian")),
    Spec("skin", "default", ("dark", "light", "medium", "medium-dark", "medium-light")),
)


def check_associations(tables: Associations, known: Mapping[str, set[str]]) -> None:
    """InputError for a table that no head reads, a phrase that is too long, or a strength that is no small number."""
    for attribute, values in tables.items():
        for value, words in values.items():
            if value not in known.get(attribute, set()):
                raise InputError(f"associations: no value {value!r} of {attribute!r} is known")
            for word, strength in words.items():
                if not isinstance(strength, (int, float)) or not 0 < strength <= 6:
                    raise InputError(f"associations: {word!r} has strength {strength!r}; wanted a number from 0 to 6")
                if word != word.lower() or not 1 <= len(word.split()) <= MAX_PHRASE_WORDS:
                    raise InputError(f"associations: {word!r} must be one to three words in lower case")


def known_tables() -> dict[str, set[str]]:
    """Attribute -> the tables that some head reads."""
    found: dict[str, set[str]] = {}
    for spec in SPECS:
        found.setdefault(spec.attribute, set()).update(spec.tables.get(v, v) for v in spec.values)
    return found


def build_vocabulary(tables: Associations, training: Sequence[Row]) -> Vocabulary:
    """Every judged word, and every word and slot noun of enough training captions; sorted."""
    seen: dict[str, set[int]] = {}
    for row in training:
        evidence = row.caption.evidence
        for piece in (evidence.pieces[i] for i in evidence.places(row.person)):
            word = slot_word(piece) if isinstance(piece, Slot) else piece
            if word not in FUNCTION_WORDS:
                seen.setdefault(word, set()).add(id(row.caption))
    judged = {word for values in tables.values() for words in values.values() for word in words}
    return Vocabulary(tuple(sorted(judged | {w for w, captions in seen.items() if len(captions) >= MIN_CAPTIONS})))


def build_head(
    spec: Spec, tables: Associations, vocabulary: Vocabulary, rows: Mapping[str, Sequence[Row]]
) -> tuple[Head, dict[str, Any]]:
    """The head, and how it came about. rows: split -> the people of whom captions say this attribute."""
    start = _judgements(spec, tables, vocabulary)
    x, y = {}, {}
    for split in SPLITS:
        x[split], y[split] = _matrix(rows[split], vocabulary, spec.values)
    k = len(spec.values)
    said: dict[str, Any] = {
        "attribute": spec.attribute,
        "values": list(spec.values),
        "policy": spec.policy,
        "rows": {split: dict(sorted(Counter(row.value for row in rows[split]).items())) for split in SPLITS},
        "judged_words": int(start.any(1).sum()),
        "learned": len(y["train"]) >= MIN_ROWS,
    }
    if not said["learned"]:
        head = _head(spec, np.zeros(k), np.full(k, 1 / k), 1.0, start, np.zeros(len(start)), start)
        return head, said
    fitted = {s: fit(x["train"], y["train"], start, s) for s in STRENGTHS}
    tuned = {s: _tune(x["calibrate"] @ w + b, y["calibrate"]) for s, (w, b) in fitted.items()}
    strength = min(tuned, key=lambda s: tuned[s][1])
    (weights, bias), temperature = fitted[strength], tuned[strength][0]
    blank = fit(x["train"], y["train"], np.zeros_like(start), strength)
    blank_temperature, _ = _tune(x["calibrate"] @ blank[0] + blank[1], y["calibrate"])
    said |= {
        "strength": strength,
        "temperature": round(temperature, 4),
        "held_out_log_loss_without_judgements": round(
            log_loss((x["held_out"] @ blank[0] + blank[1]) / blank_temperature, y["held_out"]), 4
        ),
    }
    return _head(spec, bias, shares(y["train"], k), temperature, weights, x["train"].sum(0), start), said


def _tune(logits: Float64, y: Classes) -> tuple[float, float]:
    temperature = best_temperature(logits, y)
    return temperature, log_loss(logits / temperature, y) if len(y) else 0.0


def _head(
    spec: Spec, bias: Float64, prior: Float64, temperature: float, weights: Float64, captions: Float64, start: Float64
) -> Head:
    return Head(
        attribute=spec.attribute,
        values=spec.values,
        bias=bias,
        prior=prior,
        temperature=temperature,
        weights=weights.astype(np.float32),
        captions=np.minimum(captions, 65535).astype(np.uint16),
        judged=np.asarray(start.any(axis=1), np.bool_),
    )


def _judgements(spec: Spec, tables: Associations, vocabulary: Vocabulary) -> Float64:
    start = np.zeros((len(vocabulary.words), len(spec.values)))
    for k, value in enumerate(spec.values):
        for word, strength in tables.get(spec.attribute, {}).get(spec.tables.get(value, value), {}).items():
            start[vocabulary.index[word], k] = strength
    return start


def _matrix(
    rows: Sequence[Row], vocabulary: Vocabulary, values: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    x = np.zeros((len(rows), len(vocabulary.words)))
    for i, row in enumerate(rows):
        x[i, [hit.feature for hit in vocabulary.hits(row.caption.evidence, row.person)]] = 1
    return x, np.array([values.index(row.value) for row in rows], np.int64)
