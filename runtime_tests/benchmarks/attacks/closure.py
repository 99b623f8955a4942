"""Which members of a set lead back to that set: the adversary keeps those, for the real prompt is always one.

Paper, proof of obliviousness: all of it rests on C(p') = C(p) for every p' in C(p).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from obclip.core.errors import ObclipError
from obclip.edge.oblivious import candidate_set, load_policy
from obclip.edge.oblivious.text import fix_articles
from runtime_tests.baselines.word_swap import word_swap

from .row import Row, rate
from .sets import captions
from .settings import Settings

Candidates = Callable[[str], tuple[str, ...]]
Keep = Callable[[str], bool]


def run(settings: Settings) -> list[Row]:
    texts, source = captions(settings.captions)
    policy = load_policy("default")

    @cache
    def ours(prompt: str) -> tuple[str, ...]:
        try:
            return candidate_set(prompt, policy).prompts
        except ObclipError:
            return ()

    both = [t for t in texts if len(word_swap(t)) > 1 and len(ours(t)) > 1]
    asked: list[tuple[str, Candidates, list[str]]] = [
        ("naive word swap", word_swap, [t.lower().strip() for t in both]),
        ("ours", ours, [canonical(t, ours) for t in both]),
    ]
    rows = []
    for target, candidates, prompts in asked:
        pairs = list(zip(prompts, (candidates(p) for p in prompts), strict=True))
        rows += _rows(target, source, [guess(candidates, real, s) for real, s in pairs], pairs, "by closure")
        articles = [guess(candidates, real, s, lambda p: fix_articles(p) == p) for real, s in pairs]
        rows += _rows(target, source, articles, pairs, "by closure and by a/an")[:1]
    return rows


def canonical(prompt: str, candidates: Candidates) -> str:
    """A member of the prompt's own set that stands for it; closure makes every member as good as another here."""
    return candidates(prompt)[len(prompt) % len(candidates(prompt))]


def guess(
    candidates: Candidates, real: str, members: tuple[str, ...], fits: Keep = lambda _: True
) -> tuple[float, int]:
    """The chance that a guess among the members left over is `real`, and how many are left over.

    A member is left over if its own set is this set and if it `fits`; where none is, all stay.
    """
    left = [m for m in members if candidates(m) == members and fits(m)] or list(members)
    return (1 / len(left) if real in left else 0.0), len(left)


def _rows(
    target: str, source: str, guesses: list[tuple[float, int]], pairs: list[tuple[str, tuple[str, ...]]], how: str
) -> list[Row]:
    n, note = len(pairs), "the same captions for both targets"
    chance = float(np.mean([1 / len(s) for _, s in pairs]))
    opened = [(g, 1 / len(s)) for (g, left), (_, s) in zip(guesses, pairs, strict=True) if left < len(s)]
    told = sum(g for g, _ in guesses)
    rows = [
        rate("closure", target, f"guess {how} ({source})", told, n, chance, "theorem", note),
        rate("closure", target, f"sets that are not closed ({source})", len(opened), n, 0.0, "theorem"),
    ]
    if opened:
        hits, chances = (sum(v) for v in zip(*opened, strict=True))
        metric = "guess where a set is not closed"
        rows.append(rate("closure", target, metric, hits, len(opened), chances / len(opened), "theorem"))
    return rows
