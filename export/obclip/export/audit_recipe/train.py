"""From a captions file to the model and its card."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections import Counter
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from obclip.core.errors import InputError
from obclip.core.files import atomic_folder
from obclip.edge.audit.evidence import Evidence
from obclip.edge.audit.model import CARD, WEIGHTS, AuditModel
from obclip.export.audit_recipe.captions import SPLITS, Caption, parse_captions, read_captions, rows_of
from obclip.export.audit_recipe.heads import (
    MIN_CAPTIONS,
    SPECS,
    Associations,
    build_head,
    build_vocabulary,
    check_associations,
    known_tables,
)
from obclip.export.audit_recipe.measure import measure_head, measure_sets, telling_words


def train_audit(captions: Path, out: Path, source: str = "", associations: Path | None = None) -> dict[str, Any]:
    """Write `out` (weights and card) whole or not at all, in place of an older one; returns the card.

    Captions are split 60 : 20 : 20 by a hash of their candidate sets: weights, then regularisation and temperature,
    then what the card reports. InputError for captions or associations that cannot be used.
    """
    texts = read_captions(captions)
    tables = _read_associations(associations)
    parsed, refused = {}, {}
    for policy in sorted({spec.policy for spec in SPECS}):
        parsed[policy], refused[policy] = parse_captions(texts, policy)
    training = [row for s in SPECS for row in rows_of(parsed[s.policy], s.attribute, "train")]
    if not training:
        raise InputError(f"{captions}: no caption there says anything that a policy hides")
    vocabulary = build_vocabulary(tables, training)
    made = [
        build_head(spec, tables, vocabulary, {s: rows_of(parsed[spec.policy], spec.attribute, s) for s in SPLITS})
        for spec in SPECS
    ]
    with atomic_folder(out, force=True, mark=CARD) as building:
        AuditModel(vocabulary, tuple(head for head, _ in made)).save(building)
        model = AuditModel.load(building)  # what is measured is what is shipped, at its precision
        card = {
            "captions": {
                "source": source,
                "sha256": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
                "distinct": len(texts),
                "refused": refused,
                "used": {p: dict(sorted(Counter(c.split for c in some).items())) for p, some in parsed.items()},
            },
            "associations": sum(len(words) for values in tables.values() for words in values.values()),
            "words": len(vocabulary.words),
            "min_captions": MIN_CAPTIONS,
            "bytes": (building / WEIGHTS).stat().st_size,
            "heads": [
                said | _measured(model, head, said["learned"], parsed[spec.policy])
                for spec, head, (_, said) in zip(SPECS, model.heads, made, strict=True)
            ],
            "held_out_sets": {p: measure_sets(model, _held_out(some)) for p, some in parsed.items()},
            "held_out_several_people": _several_people(model, _held_out(parsed["default"])),
        }
        (building / CARD).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", "utf8")
    return card


def _measured(model: AuditModel, head: Any, learned: bool, captions: list[Caption]) -> dict[str, Any]:
    measured = {"held_out": measure_head(model, head, _held_out(captions))} if learned else {}
    return {**measured, "telling_words": telling_words(head, model.vocabulary)}


def _held_out(captions: list[Caption]) -> list[Caption]:
    return [c for c in captions if c.split == "held_out"]


def _several_people(model: AuditModel, captions: list[Caption]) -> dict[str, Any]:
    """Log loss for gender where there are several people, from each one's own words and from all the words."""
    head = model.head("gender", ("man", "woman"))
    assert head is not None
    own = [c for c in captions if len(c.evidence.people) > 1]
    shared = [replace(c, evidence=_OneCrowd(c.evidence.pieces)) for c in own]
    return {
        name: {k: v for k, v in measure_head(model, head, some).items() if k != "reliability"}
        for name, some in (("own_words", own), ("all_words", shared))
    }


class _OneCrowd(Evidence):
    """The same words for everybody, each with their own slots."""

    def places(self, person: int) -> tuple[int, ...]:
        return tuple(i for i, p in enumerate(self.pieces) if self._counts(p, person))


def _read_associations(path: Path | None) -> Associations:
    try:
        text = (path or resources.files("obclip.edge.audit").joinpath("associations.toml")).read_text("utf8")
        tables: Associations = tomllib.loads(text)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"associations cannot be read: {error}") from error
    check_associations(tables, known_tables())
    return tables
