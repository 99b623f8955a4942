"""Order, length and seed: whether anything in a request's bytes goes with the place of the real prompt."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from obclip.core.errors import ObclipError
from obclip.edge import Bundle
from obclip.edge.job import prepare
from obclip.edge.oblivious import load_policy
from runtime_tests.baselines.word_swap import word_swap

from .row import Row
from .sets import Known, captions, examine, known_captions
from .settings import Settings
from .stats import chi_square, kolmogorov_smirnov

SIZES = (2, 6)
BYTES_CHECKED = 300


def run(settings: Settings) -> list[Row]:
    rng = np.random.default_rng(settings.seed)
    source = captions(settings.captions)[1]
    known = list(known_captions(settings.captions))
    rows = []
    for size in SIZES:
        some = [k for k in known if k.size == size]
        if some:
            counts = positions(some, size, rng)
            rows.append(_position("ours, sorted", size, counts, source, rng))
    first = [k for k in known if len(word_swap(k.prompt)) == 2]
    if first:
        counts = np.array([len(first), 0])  # the user's own prompt is what a list starts with
        rows.append(_position("naive list, real prompt first", 2, counts, source, rng))
    bundle = Bundle.open("emoji")
    picked = [known[i] for i in rng.permutation(len(known))[:BYTES_CHECKED]]
    return [*rows, *byte_rows(picked, bundle), _seeds(bundle, settings.users)]


def positions(some: list[Known], size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """How often the real prompt is at each place, int [size], when it is drawn from its own set."""
    policy, counts = load_policy("default"), np.zeros(size, np.int64)
    for known in some:
        again = examine(known.found.prompts[rng.integers(size)], policy)
        if again is None or again.found.prompts != known.found.prompts:
            raise AssertionError("a member of a set led to another set")
        counts[again.found.index] += 1
    return counts


def byte_rows(known: list[Known], bundle: Bundle) -> list[Row]:
    """Whole requests of all members under one seed, made as the device makes them: how many differ, and in length."""
    sets, different, lengths = 0, 0, 0
    for k in known:
        try:
            bodies = {
                prepare(p, bundle, policy="default", seed=7).request.encode() for p in (k.prompt, *k.found.prompts)
            }
        except ObclipError:
            continue  # too long for the embedded text encoder, as a whole set
        sets, different = sets + 1, different + (len(bodies) > 1)
        lengths += len({len(b) for b in bodies}) > 1
    note, n = "the user's own wording and every member, one seed", sets
    return [
        Row("order", "ours", "sets whose requests differ in bytes", different / max(n, 1), 0.0, n, "theorem", note),
        Row("order", "ours", "sets whose requests differ in length", lengths / max(n, 1), 0.0, n, "theorem"),
    ]  # fmt: skip


def _seeds(bundle: Bundle, users: int) -> Row:
    n = min(users, 1000) // 2
    a, b = ([float(prepare(p, bundle).request.seed) for _ in range(n)] for p in ("a man", "a woman"))
    d, p = kolmogorov_smirnov(np.array(a), np.array(b))
    metric = "drawn seeds by real index, KS p-value"
    return Row("order", "ours", metric, p, None, 2 * n, "theorem", f"D={d:.3f}; seeds come from the system's generator")


def _position(target: str, size: int, counts: NDArray[np.int64], source: str, rng: np.random.Generator) -> Row:
    statistic, p = chi_square(counts, rng)
    note = f"chi2={statistic:.1f}, counts {counts.tolist()}"
    return Row(
        "order",
        target,
        f"place of the real one, N={size}, chi2 p ({source})",
        p,
        None,
        int(counts.sum()),
        "theorem",
        note,
    )
