"""The same secret asked about again and again: posteriors add up, and random subsets intersect.

A user has one hidden gender and M different prompts. Closed full sets tell nothing new each time; what accumulates is
the context. Random n-of-N subsets with fresh decoys are the alternative that fails.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from obclip.edge.oblivious import candidate_set, load_policy
from runtime_tests.baselines.word_swap import word_swap

from .context import trained
from .row import Covered, Row, rate
from .sets import Known, captions
from .settings import Settings

QUERIES = 20
SHOWN = (1, 2, 5, 10, 20)
CERTAIN = 50.0
Float64 = NDArray[np.float64]


def run(settings: Settings) -> list[Row]:
    rng = np.random.default_rng(settings.seed)
    models, test = trained(settings)
    model, source = models["gender"], captions(settings.captions)[1]
    some = [k for k in test if set(k.found.attributes) == {"gender"}]
    woman = np.array([k.truth("gender") == model.values[0] for k in some])
    policy = load_policy("default")
    swap = closure_odds(some, word_swap, lambda k: k.prompt.lower().strip())
    ours = closure_odds(some, lambda p: candidate_set(p, policy).prompts, lambda k: k.found.prompts[k.found.index])
    words = np.array([np.subtract(*model.log_odds(k.words)) for k in some])  # values[0] over values[1]
    toward = np.where(woman, words, -words)
    users = settings.users
    own = curve([toward[woman], toward[~woman]], users, rng)
    independent = curve([words, -words], users, rng)
    return [
        *_curve("naive word swap, no prior", curve([swap[woman], swap[~woman]], users, rng), users, "theorem", ""),
        *_curve("ours, no prior", curve([ours[woman], ours[~woman]], users, rng), users, "theorem", ""),
        *_curve(f"ours, prior from {source}", own, users, "measured", "contexts of the hidden value"),
        *_curve(f"ours, prior from {source}, control", independent, users, "measured", "contexts independent of it"),
        *subsets(30, 6, users, rng),
        *subsets(30, 30, users, rng),
    ]  # fmt: skip


def closure_odds(
    some: list[Known], candidates: Callable[[str], tuple[str, ...]], real: Callable[[Known], str]
) -> Float64:
    """For each prompt the log-odds of the real member over another one, by closure alone, float64 [M].

    0 where another member leads to the same set too, CERTAIN where only the real one does.
    """
    odds = []
    for known in some:
        prompt = real(known)
        members = candidates(prompt)
        others = [m for m in members if m != prompt and candidates(m) == members]
        odds.append(CERTAIN if len(members) > 1 and not others else 0.0)
    return np.array(odds)


def curve(toward: list[Float64], users: int, rng: np.random.Generator) -> Float64:
    """Success after 1..20 queries, float64 [20]; ties are drawn.

    toward: for each hidden value, what prompts of its people add to its log-odds.
    """
    total = np.zeros(QUERIES)
    for pool in toward:
        sums = pool[rng.integers(len(pool), size=(users // len(toward), QUERIES))].cumsum(1)
        total += ((sums > 1e-9).mean(0) + 0.5 * (np.abs(sums) <= 1e-9).mean(0)) / len(toward)
    return total


def survivors(n_all: int, n_sent: int, queries: int) -> float:
    """Expected members of every one of `queries` random subsets: 1 + (N-1) ((n-1)/(N-1))^M, the real one included."""
    return 1 + (n_all - 1) * ((n_sent - 1) / (n_all - 1)) ** queries


def simulate_subsets(n_all: int, n_sent: int, queries: int, users: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Survivors after each query, int [users, queries]: each draws n_sent-1 decoys anew beside the real one."""
    left = np.ones((users, n_all - 1), bool)
    counts = np.empty((users, queries), np.int64)
    for m in range(queries):
        ranks = rng.random((users, n_all - 1)).argsort(1).argsort(1)
        left &= ranks < n_sent - 1
        counts[:, m] = 1 + left.sum(1)
    return counts


def subsets(n_all: int, n_sent: int, users: int, rng: np.random.Generator) -> list[Row]:
    full = n_all == n_sent
    target = f"full set of {n_all}" if full else f"random subset, {n_sent} of {n_all}"
    covered: Covered = "theorem" if full else "outside"
    counts = simulate_subsets(n_all, n_sent, QUERIES, users, rng)
    rows = []
    for m in (20,) if full else (1, 2, 3, 5):
        left, formula = counts[:, m - 1], f"formula {survivors(n_all, n_sent, m):.3f}"
        mean, guess = float(left.mean()), float((1 / left).mean())
        rows.append(Row("repeats", target, f"survivors after M={m}", mean, float(n_sent), users, covered, formula))
        rows.append(Row("repeats", target, f"guess after M={m}", guess, 1 / n_sent, users, covered))
    return rows


def _curve(target: str, values: Float64, users: int, covered: Covered, note: str) -> list[Row]:
    every = "M=1..20: " + " ".join(f"{v:.2f}" for v in values)
    rows = []
    for m in SHOWN:
        said = "; ".join(filter(None, (note, every))) if m == SHOWN[-1] else ""
        metric = f"guess of one gender after M={m}"
        rows.append(rate("repeats", target, metric, values[m - 1] * users, users, 0.5, covered, said))
    return rows
