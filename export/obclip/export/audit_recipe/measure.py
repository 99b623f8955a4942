"""How good the audit is on captions that it was not made from: log loss, accuracy, calibration, and whole sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obclip.edge.audit.evidence import attribute_of
from obclip.edge.audit.head import Head
from obclip.edge.audit.model import AuditModel
from obclip.edge.audit.vocabulary import Vocabulary
from obclip.export.audit_recipe.captions import Caption

BINS = 10
DRAWS, SEED = 1000, 20261124
TELLING_WORDS = 20
MIN_TELLING_CAPTIONS = 5

Float64 = NDArray[np.float64]


def measure_head(model: AuditModel, head: Head, captions: Sequence[Caption]) -> dict[str, Any]:
    """One attribute on captions, under the caption prior. Log losses in nats; the interval is a paired bootstrap's."""
    odds, right = [], []
    for caption in captions:
        said = model.posterior(caption, "captions", evidence=caption.evidence).attributes
        for label, value in caption.truth.items():
            if attribute_of(label) == head.attribute:
                odds.append([said[label].get(v, 0.0) for v in head.values])
                right.append(head.values.index(value))
    if not odds:
        return {"rows": 0}
    p, y = np.array(odds), np.array(right)
    loss = -np.log(np.maximum(p[np.arange(len(y)), y], 1e-12))
    gain = -np.log(head.prior)[y] - loss
    picks = np.random.default_rng(SEED).integers(len(y), size=(DRAWS, len(y)))
    hit = (p.argmax(1) == y).astype(np.float64)
    error, table = reliability(p.max(1), hit)
    return {
        "rows": len(y),
        "log_loss": _round(loss.mean()),
        "log_loss_of_base_rate": _round(-np.log(head.prior)[y].mean()),
        "gain_95": [_round(q) for q in np.quantile(gain[picks].mean(1), [0.025, 0.975])],
        "accuracy": _round(hit.mean()),
        "accuracy_of_majority": _round((y == head.prior.argmax()).mean()),
        "ece": _round(error),
        "reliability": table,
    }


def measure_sets(model: AuditModel, captions: Sequence[Caption]) -> dict[str, Any]:
    """Whole candidate sets: what the audit says the best guess's chance is, and how often that guess is right."""
    claimed, hit, base, n, effective = [], [], [], [], []
    for caption in captions:
        posterior = model.posterior(caption, "captions", evidence=caption.evidence)
        best = caption.values[int(np.argmax(posterior.probabilities))]
        claimed.append(posterior.top1)
        hit.append(float(best == caption.truth))
        base.append(float(_commonest(model, caption) == caption.truth))
        n.append(len(caption.prompts))
        effective.append(model.posterior(caption, "careful", evidence=caption.evidence).effective_n)
    if not n:
        return {"sets": 0}
    error, table = reliability(np.array(claimed), np.array(hit))
    share = np.array(effective) / np.array(n)
    return {
        "sets": len(n),
        "mean_candidates": _round(np.mean(n)),
        "mean_effective_n": _round(np.mean(effective)),
        "effective_share_quantiles_5_50_95": [_round(q) for q in np.quantile(share, [0.05, 0.5, 0.95])],
        "guess_claimed": _round(np.mean(claimed)),
        "guess_right": _round(np.mean(hit)),
        "guess_by_base_rate_right": _round(np.mean(base)),
        "guess_blind": _round(np.mean(1 / np.array(n))),
        "ece": _round(error),
        "reliability": table,
    }


def _commonest(model: AuditModel, caption: Caption) -> dict[str, str]:
    """Each hidden label's commonest value in the training captions."""
    guess = {}
    for label in caption.truth:
        values = sorted({row[label] for row in caption.values})
        head = model.head(attribute_of(label), values)
        guess[label] = max(values, key=lambda v: head.prior[head.values.index(v)] if head else 0.0)
    return guess


def reliability(confidence: Float64, hit: Float64) -> tuple[float, list[dict[str, float]]]:
    """Expected calibration error over equal-width bins (Guo et al. 2017, section 3), and the bins that hold rows."""
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    table, error = [], 0.0
    for b in range(BINS):
        inside = place == b
        if inside.any():
            says, is_right = confidence[inside].mean(), hit[inside].mean()
            error += inside.mean() * abs(says - is_right)
            row = {"from": b / BINS, "rows": int(inside.sum()), "confidence": _round(says), "right": _round(is_right)}
            table.append(row)
    return float(error), table


def telling_words(head: Head, vocabulary: Vocabulary) -> dict[str, list[list[Any]]]:
    """Value -> its most telling words, with their log-odds against the other values and their training captions."""
    found = {}
    for value in head.values:
        pushes = head.pushes(range(len(vocabulary.words)), head.values, value)
        learned = head.captions >= MIN_TELLING_CAPTIONS if head.captions.any() else head.judged
        order = [i for i in np.argsort(-pushes, kind="stable") if learned[i]][:TELLING_WORDS]
        found[value] = [[vocabulary.words[i], round(float(pushes[i]), 2), int(head.captions[i])] for i in order]
    return found


def _round(x: Any) -> float:
    return round(float(x), 4)
