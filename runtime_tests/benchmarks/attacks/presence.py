"""Which attributes a prompt mentions can be read off its set: a documented leak, and what padding does to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from obclip.core.errors import ObclipError
from obclip.edge.oblivious import CandidateSet, Options, Policy, candidate_set, load_policy

from .row import Row, rate
from .sets import captions
from .settings import Settings

Pattern = tuple[str, ...]
Pair = tuple[Pattern, CandidateSet]
CAPTIONS = 2000


def run(settings: Settings) -> list[Row]:
    texts, source = captions(settings.captions)
    policy, rows = load_policy("default"), []
    for name, options in fixed_size_options().items():
        pairs = [p for t in texts[:CAPTIONS] if (p := asked(t, policy, options)) is not None]
        share = f"{len(pairs)} of {min(len(texts), CAPTIONS)} captions take it"
        sizes = sorted({len(s.prompts) for _, s in pairs})
        note = f"{share}; N is {sizes[0]}" + (f"..{sizes[-1]}" if len(sizes) > 1 else "")
        rows += [
            _row(name, f"attributes mentioned, from N ({source})", pairs, lambda s: len(s.prompts), note),
            _row(name, f"attributes mentioned, from the set ({source})", pairs, labels),
        ]
    return rows


def fixed_size_options() -> dict[str, Options]:
    """The ways a device can send sets whose size says less, to be extended as there are more of them."""
    return {
        "ours": Options(),
        "ours, padded to 30": Options(pad=30),
        "ours, gender and age always": Options(hide=("gender", "age")),
    }


def asked(prompt: str, policy: Policy, options: Options) -> Pair | None:
    """What the user's own words mention, and the set that goes out under `options`; None if it is refused."""
    try:
        mentioned = labels(candidate_set(prompt, policy))
        return (mentioned, candidate_set(prompt, policy, options)) if mentioned else None
    except ObclipError:
        return None


def labels(found: CandidateSet) -> Pattern:
    """The labels in which the candidates differ. The cloud has them too: the candidate function is public, padding is
    told by its commas, and every member leads to the same labels."""
    return tuple(sorted(found.attributes))


def _row(target: str, metric: str, pairs: list[Pair], read: Callable[[CandidateSet], object], note: str = "") -> Row:
    """Success of the most frequent answer for each reading; chance: of the most frequent answer of all."""
    answers: dict[object, Counter[Pattern]] = {}
    for mentioned, found in pairs:
        answers.setdefault(read(found), Counter())[mentioned] += 1
    n = len(pairs)
    hits = sum(c.most_common(1)[0][1] for c in answers.values())
    always = Counter(mentioned for mentioned, _ in pairs).most_common(1)[0][1]
    return rate("presence", target, metric, hits, n, always / n, "outside", note)
