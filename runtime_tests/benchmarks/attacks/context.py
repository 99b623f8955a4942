"""The words that are not hidden, against an adversary who has read captions: how far above 1/N it gets.

Trained on one half of the captions, tested on the other; then on portrait templates that give their subject away, and
on templates that do not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from obclip.edge.oblivious import load_policy

from .bayes import Float64, WordModel, labelled, posterior, train
from .portraits import AGES, CLUES, GENDERS, LEAKING, NEUTRAL, fill
from .row import Row, rate
from .sets import Known, attribute_of, captions, examine, known_captions
from .settings import Settings
from .stats import entropy_bits

Posterior = Callable[[Known], Float64]


def run(settings: Settings) -> list[Row]:
    models, test = trained(settings)
    source = captions(settings.captions)[1]
    groups: list[tuple[str, list[Known]]] = [
        (f"{source}, all sets", test),
        (f"{source}, one gender (N=2)", [k for k in test if set(k.found.attributes) == {"gender"}]),
        (f"{source}, gender and age (N=6)", [k for k in test if set(k.found.attributes) == {"gender", "age"}]),
    ]
    rows = []
    for name, some in groups:
        rows += _measure(f"ours: {name}", some, lambda k: posterior(models, k, "learned"))
        rows += _top("ours: " + name, "top-1, value frequencies alone", some, lambda k: _frequency(models, k))
    leaking = known_templates(LEAKING)
    rows += _measure("ours: 10 leaking templates", leaking, lambda k: posterior(models, k, "uniform"), "as meant")
    rows += _given_away("ours: 10 leaking templates", models, with_clues=False)
    note = "clue words weighed by hand by the templates' author: an upper bound"
    rows += _measure("ours: 10 leaking, with clues", leaking, lambda k: clued(models, k), note)
    rows += _given_away("ours: 10 leaking, with clues", models, with_clues=True)
    neutral = known_templates(tuple((t, {}) for t in NEUTRAL))
    note = "every value of every template once, so no adversary can beat 1/N here"
    return rows + _measure("ours: 10 neutral templates", neutral, lambda k: posterior(models, k, "uniform"), note)


@lru_cache(maxsize=2)
def trained(settings: Settings) -> tuple[dict[str, WordModel], list[Known]]:
    """Models of each attribute from a random half of the captions, and the other half."""
    rng = np.random.default_rng(settings.seed)
    known = known_captions(settings.captions)
    order = rng.permutation(len(known))
    half = [known[i] for i in order[: len(known) // 2]]
    values = load_policy("default").values
    models = {a: train(labelled(half, a), values[a], rng) for a in values}
    return models, [known[i] for i in order[len(known) // 2 :]]


def known_templates(templates: Sequence[tuple[str, dict[str, str]]]) -> list[Known]:
    """Every template with every value that agrees with what it means; those the parser refuses are left out."""
    policy, found = load_policy("default"), []
    for template, meant in templates:
        for age, gender in itertools.product(AGES, GENDERS):
            if meant.items() <= {"age": age, "gender": gender}.items():
                known = examine(fill(template, age, gender), policy)
                found += [] if known is None else [known]
    return found


def clued(models: dict[str, WordModel], known: Known) -> Float64:
    scores = np.log(posterior(models, known, "uniform"))
    for word in sorted(known.words & CLUES.keys()):
        attribute, value, weight = CLUES[word]
        scores += [weight * (v.get(attribute) == value) for v in known.values]
    p = np.exp(scores - scores.max())
    return p / p.sum()


def _frequency(models: dict[str, WordModel], known: Known) -> Float64:
    scores = np.zeros(known.size)
    for label in known.found.attributes:
        model = models[attribute_of(label)]
        scores += np.array([model.prior[model.values.index(v[label])] for v in known.values])
    p = np.exp(scores - scores.max())
    return p / p.sum()


def success(p: Float64, index: int) -> float:
    """Chance that the likeliest member is the real one; ties are drawn."""
    best = p >= p.max() - 1e-12
    return float(best[index]) / float(best.sum())


def _top(target: str, metric: str, some: list[Known], ask: Posterior, note: str = "") -> list[Row]:
    hits, n = sum(success(ask(k), k.found.index) for k in some), len(some)
    if n == 0:
        return []
    return [rate("context", target, metric, hits, n, float(np.mean([1 / k.size for k in some])), "measured", note)]


def _given_away(target: str, models: dict[str, WordModel], with_clues: bool) -> list[Row]:
    """Top-1 on the one attribute that each leaking template is about."""
    hits, chance, n = 0.0, 0.0, 0
    for template, meant in LEAKING:
        ((attribute, value),) = meant.items()
        for known in known_templates(((template, meant),)):
            p = clued(models, known) if with_clues else posterior(models, known, "uniform")
            values = sorted({v[attribute] for v in known.values})
            share = np.array([sum(p[i] for i, v in enumerate(known.values) if v[attribute] == x) for x in values])
            hits, chance, n = hits + success(share, values.index(value)), chance + 1 / len(values), n + 1
    if n == 0:
        return []
    metric = "top-1 on what the template is about"
    return [rate("context", target, metric, hits, n, chance / n, "measured")]


def _measure(target: str, some: list[Known], ask: Posterior, note: str = "") -> list[Row]:
    if not some:
        return []
    n, sizes = len(some), np.array([k.size for k in some], float)
    posteriors = [ask(k) for k in some]
    bits = float(np.mean([entropy_bits(p) for p in posteriors]))
    cross = float(np.mean([-np.log2(p[k.found.index]) for p, k in zip(posteriors, some, strict=True)]))
    full = float(np.log2(sizes).mean())
    return [
        *_top(target, "top-1", some, ask, note),
        Row("context", target, "posterior entropy, bits", bits, full, n, "measured"),
        Row("context", target, "effective N = 2^H", 2**bits, 2**full, n, "measured"),
        Row("context", target, "bits to name the real one", cross, full, n, "measured", "cross-entropy: a check on H"),
    ]
