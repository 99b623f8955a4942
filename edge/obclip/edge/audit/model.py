"""How likely each candidate is to someone who reads the words that all candidates share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from obclip.core.errors import InputError, ModelMissingError, RunError
from obclip.core.files import atomic_write_bytes
from obclip.edge.audit.evidence import Candidates, Evidence, attribute_of, person_of, read_evidence, real_rows
from obclip.edge.audit.head import Head, log_softmax
from obclip.edge.audit.vocabulary import Hit, Vocabulary
from obclip.edge.oblivious.policy import ABSENT

WEIGHTS, CARD = "model.safetensors", "card.json"
FORMAT = "obclip-audit-1"
MIN_LOG_ODDS = 0.2  # words that say less are left out of the list, not out of the sums

Prior = Literal["careful", "uniform", "captions"]
PRIORS: tuple[Prior, ...] = ("careful", "uniform", "captions")


@dataclass(frozen=True)
class Word:
    """A word beside a person and what it says about one attribute.

    log_odds: natural logarithm, for `value` against the mean of the others; negative if it speaks against. share: its
    part of the sum of all absolute log-odds. source: captions, judgement or both, where its weight comes from.
    slot: the word is in the slot itself (groom|bride, men|women) and cannot be dropped alone.
    """

    text: str
    value: str
    log_odds: float
    share: float
    source: str
    slot: bool = False


@dataclass(frozen=True)
class Posterior:
    """probabilities: of each of the set's prompts, in their order; 0 for padding, which the cloud can tell.

    attributes: label -> value -> probability, the value "" being that the prompt does not say it.

    prior: the one used, "uniform" or "captions". words: label -> the words that speak, loudest first; they are the same
    under either prior, and speak for the value that the words alone make likeliest. unknown: hidden labels of which
    this model knows nothing, left uniform.
    """

    prior: str
    probabilities: tuple[float, ...]
    attributes: dict[str, dict[str, float]]
    words: dict[str, tuple[Word, ...]]
    unknown: tuple[str, ...]

    @property
    def top1(self) -> float:
        """The chance that the best guess is right."""
        return max(self.probabilities)

    @property
    def entropy_bits(self) -> float:
        p = np.array(self.probabilities)
        p = p[p > 0]
        return max(0.0, float(-(p * np.log2(p)).sum()))

    @property
    def effective_n(self) -> float:
        """2 to the entropy: how many equally likely candidates would leave as much doubt."""
        return float(2.0**self.entropy_bits)


@dataclass(frozen=True)
class AuditModel:
    """A vocabulary and one head for each attribute (two for age: with and without children)."""

    vocabulary: Vocabulary
    heads: tuple[Head, ...]

    @classmethod
    def load(cls, folder: Path | None = None) -> AuditModel:
        """The shipped model, or the one in a folder. ModelMissingError or RunError if it is absent or damaged."""
        if folder is not None:
            return cls._open(folder / WEIGHTS)
        with resources.as_file(resources.files("obclip.edge.audit").joinpath(WEIGHTS)) as path:
            return cls._open(path)

    @classmethod
    def _open(cls, path: Path) -> AuditModel:
        if not path.is_file():
            raise ModelMissingError(f"no audit model at {path}; `python -m obclip.export.audit_recipe` trains one")
        try:
            with safe_open(path, framework="np") as file:
                said = json.loads((file.metadata() or {})[FORMAT])
                tensor = file.get_tensor
                heads = [
                    Head(
                        attribute=head["attribute"],
                        values=tuple(head["values"]),
                        bias=tensor(f"{i}.bias").astype(np.float64),
                        prior=tensor(f"{i}.prior").astype(np.float64),
                        temperature=float(head["temperature"]),
                        weights=tensor(f"{i}.weights").astype(np.float32),
                        captions=tensor(f"{i}.captions"),
                        judged=tensor(f"{i}.judged").astype(np.bool_),
                    )
                    for i, head in enumerate(said["heads"])
                ]
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise RunError(f"{path} cannot be read ({error}); train it again or reinstall") from error
        return cls(Vocabulary(tuple(said["words"])), tuple(heads))

    def save(self, folder: Path) -> None:
        """Write the weights file, float16, equal bytes for equal models. RunError if the disk does not take it."""
        tensors: dict[str, NDArray[np.generic]] = {}
        for i, head in enumerate(self.heads):
            tensors[f"{i}.bias"] = head.bias.astype(np.float32)
            tensors[f"{i}.prior"] = head.prior.astype(np.float32)
            tensors[f"{i}.weights"] = head.weights.astype(np.float16)
            tensors[f"{i}.captions"] = head.captions.astype(np.uint16)
            tensors[f"{i}.judged"] = head.judged.astype(np.uint8)
        heads = [{"attribute": h.attribute, "values": h.values, "temperature": h.temperature} for h in self.heads]
        said = json.dumps({"words": self.vocabulary.words, "heads": heads}, ensure_ascii=False)
        atomic_write_bytes(folder / WEIGHTS, save(tensors, {FORMAT: said}))  # one key: their order is not kept

    def posterior(
        self, found: Candidates, prior: Prior = "careful", *, evidence: Evidence | None = None,
        without: frozenset[int] = frozenset(),
    ) -> Posterior:  # fmt: skip
        """The probability of each candidate given the words they share.

        Attributes and people are taken as independent given the words, so a candidate's probability is the product
        over its hidden labels. Where not saying an attribute is a value too, it is as likely as the average of the
        others, whatever the words: how often people leave things unsaid is not known.

        prior: "uniform" gives what the words add to 1/N; "captions" also knows which values captions name more often
        (men more than women); "careful" is whichever of these two leaves fewer candidates. evidence: that of `found`,
        where it is at hand. without: pieces of it read as if they were not there.
        """
        if prior not in PRIORS:
            raise InputError(f"prior is {prior!r}; choose one of {', '.join(PRIORS)}")
        if evidence is None:
            evidence = read_evidence(found)
        labels = _labels(found)
        if prior == "careful":
            both = [self._posterior(found, evidence, labels, p, without) for p in ("uniform", "captions")]
            return min(both, key=lambda p: p.effective_n)
        return self._posterior(found, evidence, labels, prior, without)

    def _posterior(
        self, found: Candidates, evidence: Evidence, labels: dict[str, tuple[str, ...]], prior: str,
        without: frozenset[int],
    ) -> Posterior:  # fmt: skip
        real = real_rows(found)
        total = np.full(len(found.prompts), -np.inf)
        total[real] = 0.0
        attributes, words, unknown = {}, {}, []
        for label, values in labels.items():
            spoken = tuple(v for v in values if v != ABSENT)
            head, person = self.head(attribute_of(label), spoken), person_of(label)
            if head is None or person is None:
                unknown.append(label)
                log_p = np.full(len(spoken), -np.log(len(spoken)))
            else:
                hits = self.vocabulary.hits(evidence, person, without)
                features = [hit.feature for hit in hits]
                log_p = head.log_odds(features, spoken, uniform=prior == "uniform")
                value = spoken[int(head.log_odds(features, spoken, uniform=True).argmax())]
                words[label] = self._words(head, hits, evidence, spoken, value)
            by_value = dict(zip(spoken, log_p + np.log(len(spoken) / len(values)), strict=True))
            if ABSENT in values:
                by_value[ABSENT] = -np.log(len(values))
            attributes[label] = {v: float(np.exp(x)) for v, x in by_value.items()}
            total[real] += [by_value[found.values[i][label]] for i in real]
        probabilities = np.exp(log_softmax(total))
        return Posterior(prior, tuple(map(float, probabilities)), attributes, words, tuple(unknown))

    def head(self, attribute: str, values: Sequence[str]) -> Head | None:
        """The head that knows these values of the attribute, exactly these if there is one; None if none does."""
        fitting = [head for head in self.heads if head.fits(attribute, values)]
        return min(fitting, key=lambda head: len(head.values), default=None)

    def _words(
        self, head: Head, hits: list[Hit], evidence: Evidence, values: tuple[str, ...], value: str
    ) -> tuple[Word, ...]:
        features = [hit.feature for hit in hits]
        pushes = head.pushes(features, values, value)
        total = float(np.abs(pushes).sum())
        loud = [i for i in np.argsort(-np.abs(pushes), kind="stable") if abs(pushes[i]) >= MIN_LOG_ODDS]
        return tuple(
            Word(
                text=self.vocabulary.words[features[i]] if slot else evidence.text(hits[i].places),
                value=value,
                log_odds=float(pushes[i]),
                share=float(abs(pushes[i]) / total),
                source=_source(head, features[i]),
                slot=slot,
            )
            for i in loud
            for slot in [evidence.is_slot(hits[i].places[0])]
        )


def _source(head: Head, feature: int) -> str:
    if head.captions[feature]:
        return "both" if head.judged[feature] else "captions"
    return "judgement"


def _labels(found: Candidates) -> dict[str, tuple[str, ...]]:
    """Hidden label -> its values, sorted."""
    rows = [found.values[i] for i in real_rows(found)]
    return {label: tuple(sorted({row[label] for row in rows})) for label in rows[0]}
