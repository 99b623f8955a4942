"""What word sanitizers hide and what they leave of a prompt, beside the candidate set, against the best adversary.

    python -m runtime_tests.benchmarks.sanitizers --out sanitizers.json

For each prompt the adversary knows its candidate set and the mechanism, sees what is sent, and names the likeliest
value of an attribute: `attack_success` is how often that is right, computed from the channel. `fidelity` is how often
what is left for drawing the picture still says the real value: a sanitizer's output, or the device's own prompt where
candidates are sent. An epsilon means another thing to each sanitizer; `losses` (the largest ln P(y|x)/P(y|x') over
attribute words) can be compared.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from obclip.core.errors import InputError, PrivacyError
from obclip.core.files import atomic_write_bytes
from obclip.edge.machine import machine
from obclip.edge.oblivious import CandidateSet, candidate_set, load_policy
from runtime_tests.baselines.bigram import Bigram
from runtime_tests.baselines.cape import Cape, closeness, full_bound, size_bound
from runtime_tests.baselines.closed import Closed, Lexicon, attribute_of, build_lexicon, closed
from runtime_tests.baselines.embeddings import load_phi, mean_distance
from runtime_tests.baselines.mechanism import Float64, Mechanism, distances, privacy_loss
from runtime_tests.baselines.reconstruction import Attack, attack, attack_groups
from runtime_tests.baselines.sanitized import Reader, kept, masked, word_groups
from runtime_tests.baselines.santext import Santext, santext, santext_plus
from runtime_tests.baselines.words import Vocabulary, words_of
from runtime_tests.benchmarks.emoji_captions import Captions, load_captions

ATTRIBUTES = ("gender", "skin", "age")
WHOLE = "prompt"  # the whole member of the set, not one of its attributes
EPSILONS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
SAMPLE = 1000  # captions whose attributes make the second prior


@dataclass(frozen=True)
class Setup:
    """What every mechanism is made from. phi is scaled to a mean distance of 1 between two words; raw: as it was."""

    secrets: tuple[Closed, ...]
    priors: dict[str, tuple[Float64, ...]]
    vocabulary: Vocabulary
    phi: Float64
    raw: float
    lexicon: Lexicon
    bigram: Bigram


def choose(found: Sequence[tuple[str, CandidateSet]], count: int) -> list[str]:
    """`count` prompts that hide something, a third of them with an age as far as there are any, in the order given."""
    hiding = [(text, f) for text, f in found if f.attributes]
    ages = [text for text, f in hiding if "age" in f.attributes][: count // 3]
    return ages + [text for text, f in hiding if "age" not in f.attributes][: count - len(ages)]


def prepare(captions: Captions, count: int, seed: int, embeddings: Path | None) -> Setup:
    policy = load_policy("emoji")
    order = np.random.default_rng(seed).permutation(len(captions.texts))[: max(SAMPLE, count)]
    found = []
    for text in (captions.texts[i] for i in order):
        with suppress(PrivacyError):
            found.append((text, candidate_set(text, policy)))
    if len(found) < len(order):
        print(f"{len(order) - len(found)} of {len(order)} captions are refused and left out", file=sys.stderr)
    secrets = tuple(s for text in choose(found, count) if (s := closed(text, policy)) is not None)
    if not secrets:
        raise InputError("no prompt hides anything, so there is nothing to attack; give other captions")
    seen = Counter(frozenset(f.attributes.items()) for _, f in found)
    sentences = [words_of(text) for text in captions.texts]
    vocabulary = Vocabulary.of([*sentences, *(words for s in secrets for words in s.words)])
    phi = load_phi(vocabulary, embeddings)
    raw = mean_distance(phi)
    return Setup(
        secrets,
        {
            "uniform": tuple(np.full(len(s.words), 1 / len(s.words)) for s in secrets),
            "captions": tuple(_normal([1 + seen[frozenset(v.items())] for v in s.values]) for s in secrets),
        },
        vocabulary,
        phi / raw,
        raw,
        build_lexicon(secrets),
        Bigram.train(vocabulary, sentences),
    )


def _normal(weights: Sequence[float]) -> Float64:
    return np.asarray(weights, np.float64) / sum(weights)


def mechanisms(setup: Setup, epsilons: Sequence[float]) -> Iterator[tuple[str, float | None, Mechanism]]:
    """Name, epsilon and mechanism. "plaintext" sends the prompt as it is: the same yardstick on the other end."""
    words, phi, sensitive = setup.vocabulary, setup.phi, frozenset(setup.lexicon)
    close = closeness(phi)
    yield "plaintext", None, Santext(words, np.eye(len(words)))
    for epsilon in epsilons:
        yield "SANTEXT", epsilon, santext(words, phi, epsilon)
    for epsilon in epsilons:
        yield "SANTEXT+", epsilon, santext_plus(words, phi, epsilon, sensitive)
    for epsilon in epsilons:
        yield "CAPE", epsilon, Cape(words, close, setup.bigram, sensitive, epsilon)


def labels_of(secret: Closed) -> list[tuple[str, np.ndarray]]:
    """(label, the number of each member's value), and every member by itself as `prompt`."""
    result = []
    for label in secret.found.attributes:
        said = [v[label] for v in secret.values]
        result.append((label, np.array([sorted(set(said)).index(v) for v in said])))
    return [*result, (WHOLE, np.arange(len(secret.words)))]


class Scores:
    """Sums over prompts, by prior and attribute."""

    def __init__(self, method: str, epsilon: float | None) -> None:
        self.method, self.epsilon = method, epsilon
        self._sums: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)

    def add(self, prior: str, label: str, found: Attack, fidelity: float, nearest: float) -> None:
        values = [*asdict(found).values(), fidelity, nearest]
        self._sums[prior, attribute_of(label)].append(np.array(values))

    def rows(self) -> list[dict[str, Any]]:
        rows = []
        for (prior, attribute), values in self._sums.items():
            names = ("attack_success", "prior_success", "entropy_bits", "prior_entropy_bits", "error")
            means = dict(
                zip((*names, "fidelity", "fidelity_nearest"), np.mean(values, 0).round(6).tolist(), strict=True)
            )
            row = {"method": self.method, "epsilon": self.epsilon, "attribute": attribute, "prior": prior}
            rows.append({**row, "prompts": len(values), **means})
        return rows


def attack_sanitizer(setup: Setup, scores: Scores, mechanism: Mechanism, reader: Reader, seed: int) -> None:
    known: dict[Any, Attack] = {}  # many prompts differ in public words only
    for i, secret in enumerate(setup.secrets):
        groups = word_groups(secret, mechanism, setup.lexicon)
        look = tuple(_digest(g.inputs, *g.factors) for g in groups)
        labels = labels_of(secret)
        hidden = tuple(secret.found.attributes)
        survive = {
            (how, label): kept(secret, mechanism, reader, hidden if label == WHOLE else (label,), how)
            for label, _ in labels
            for how in ("says", "nearest")
        }
        for prior, distributions in setup.priors.items():
            pi = distributions[i]
            for label, numbers in labels:
                key = (look, _digest(pi, numbers))
                if key not in known:
                    known[key] = attack_groups(groups, pi, numbers, seed=seed)
                scores.add(prior, label, known[key], *(float(pi @ survive[how, label]) for how in ("says", "nearest")))


def _digest(*arrays: np.ndarray) -> bytes:
    return b"".join(blake2b(a.tobytes(), digest_size=16).digest() for a in arrays)


def set_channel(secret: Closed) -> Float64:
    """member -> the candidate set that the device sends for it, as P(set | member), float64 [N, different sets]."""
    sent = [s.prompts for s in secret.sets]
    return np.array([[float(s == other) for other in sorted(set(sent))] for s in sent])


def attack_candidates(setup: Setup, scores: Scores) -> float:
    """The same attack on what ObCLIP sends; the largest privacy loss over the prompts."""
    loss = 0.0
    for i, secret in enumerate(setup.secrets):
        channel = set_channel(secret)
        loss = max(loss, privacy_loss(channel))
        # the device goes on with the member at its secret index
        own = [float(s.prompts[s.index] == p) for s, p in zip(secret.sets, secret.found.prompts, strict=True)]
        for prior, distributions in setup.priors.items():
            for label, numbers in labels_of(secret):
                fidelity = float(distributions[i] @ np.array(own))
                scores.add(prior, label, attack(channel, distributions[i], numbers), fidelity, fidelity)
    return loss


def losses(setup: Setup, epsilons: Sequence[float]) -> list[dict[str, Any]]:
    """Over attribute words: the largest privacy loss of one word, by enumeration, and the bounds that are claimed.

    bound_nats: eps times the largest distance, or CAPE's `full_bound`; size_bound_nats: CAPE's as published.
    """
    places = [i for i, word in enumerate(setup.vocabulary.words) if word in setup.lexicon]
    reach = float(distances(setup.phi[places]).max())
    contexts = _contexts(setup)
    logits = list({found.tobytes(): found for found in (setup.bigram(*c) for c in contexts)}.values())
    rows: list[dict[str, Any]] = []
    for method, epsilon, mechanism in mechanisms(setup, epsilons):
        bounds: dict[str, float] = {}
        if isinstance(mechanism, Cape):
            how = (mechanism.epsilon, mechanism.delta, mechanism.buckets)
            us = [mechanism.utilities(found)[places] for found in logits]
            bounds = {"bound_nats": max(full_bound(u, *how) for u in us)}
            bounds["size_bound_nats"] = max(size_bound(u, *how) for u in us)
        elif epsilon is not None:
            bounds = {"bound_nats": epsilon * reach}
        channels = (mechanism.channel(*context)[places] for context in contexts)
        nats = {"loss_nats": max(privacy_loss(c) for c in channels), **bounds}
        rows.append({"method": method, "epsilon": epsilon, **{k: _rounded(v) for k, v in nats.items()}})
    return rows


def _rounded(nats: float) -> float | None:
    """None where some output rules a word out: JSON has no infinity."""
    return round(nats, 6) if math.isfinite(nats) else None


def _contexts(setup: Setup) -> list[tuple[tuple[str | None, ...], int]]:
    """Every place of an attribute word, as (public words, position)."""
    prompts = {masked(words, setup.lexicon) for secret in setup.secrets for words in secret.words}
    return [(words, i) for words in sorted(prompts, key=repr) for i, word in enumerate(words) if word is None]


def examples(setup: Setup, epsilon: float, seed: int) -> list[dict[str, Any]]:
    """Two prompts as each sanitizer would send them."""
    rng = np.random.default_rng(seed)
    rows = []
    for secret in (setup.secrets[0], setup.secrets[-1]):
        words = secret.words[secret.found.index]
        for method, eps, mechanism in mechanisms(setup, [epsilon]):
            rows.append({"method": method, "epsilon": eps, "sent": " ".join(mechanism.sanitize(words, rng))})
    return rows


def measure(setup: Setup, epsilons: Sequence[float], seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(rows, losses) of every method."""
    reader = Reader(setup.vocabulary, setup.lexicon, setup.phi)
    rows = []
    for method, epsilon, mechanism in mechanisms(setup, epsilons):
        scores = Scores(method, epsilon)
        started = time.perf_counter()
        attack_sanitizer(setup, scores, mechanism, reader, seed)
        rows += scores.rows()
        print(f"{method} {epsilon}: {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
    ours = Scores("ObCLIP", None)
    loss = attack_candidates(setup, ours)
    return rows + ours.rows(), [*losses(setup, epsilons), {"method": "ObCLIP", "epsilon": None, "loss_nats": loss}]


def show(rows: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]) -> None:
    loss = {(r["method"], r["epsilon"]): r["loss_nats"] for r in found}
    columns = (*ATTRIBUTES, WHOLE)
    for prior in dict.fromkeys(r["prior"] for r in rows):
        some = {(r["method"], r["epsilon"], r["attribute"]): r for r in rows if r["prior"] == prior}
        print(f"\n{prior} prior: attack success, and the share in which the value survives (nearest word's value)")
        print(f"{'':10}{'eps':>5}{'loss':>8}   " + "".join(f"{c:22}" for c in columns))
        alone = [next((r["prior_success"] for (_, _, a), r in some.items() if a == c), None) for c in columns]
        print(f"{'prior':10}{'':13}   " + "".join(f"{_number(v):22}" for v in alone))
        for method, epsilon in dict.fromkeys((m, e) for m, e, _ in some):
            cells = [some.get((method, epsilon, c)) for c in columns]
            text = "".join(f"{_cell(r):22}" for r in cells)
            nats = "inf" if (nat := loss[method, epsilon]) is None else f"{nat:.2f}"
            eps = "" if epsilon is None else f"{epsilon:g}"
            print(f"{method:10}{eps:>5}{nats:>8}   {text}".rstrip())
    print(
        "\nloss: the largest ln P(y|x)/P(y|x') of one attribute word, in nats."
        '\nAt eps 0 SANTEXT leaves only the number of words, which tells ages apart ("boy", "older man");'
        "\nwhat CAPE gives away there is due to its buckets alone."
    )


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    return f"{row['attack_success']:.3f}  {row['fidelity']:.2f} ({row['fidelity_nearest']:.2f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of drawings with their captions; built-in ones without any")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    parser.add_argument("--epsilons", type=float, nargs="+", default=list(EPSILONS))
    parser.add_argument("--prompts", type=int, default=150)
    parser.add_argument("--embeddings", type=Path, help="a CLIP text encoder's folder in place of the embedded pair's")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if not all(0 <= epsilon < math.inf for epsilon in args.epsilons):
        parser.error(f"--epsilons {args.epsilons}: finite numbers of at least 0 are wanted")
    if args.prompts < 1:
        parser.error(f"--prompts {args.prompts}: at least 1 is wanted")
    started = time.perf_counter()
    captions = load_captions(args.data)
    setup = prepare(captions, args.prompts, args.seed, args.embeddings)
    rows, found = measure(setup, args.epsilons, args.seed)
    versions = {name: version(name) for name in ("numpy", "torch", "transformers")}
    settings = {
        "captions": captions.source, "prompts": len(setup.secrets), "seed": args.seed, "policy": "emoji",
        "vocabulary": len(setup.vocabulary), "attribute_words": sorted(setup.lexicon), "mean_distance": setup.raw,
        "p": 0.2, "embeddings": "embedded pair" if args.embeddings is None else args.embeddings.name,
    }  # fmt: skip
    result: dict[str, Any] = {
        "machine": machine() | versions,
        "settings": settings,
        "seconds": round(time.perf_counter() - started),
        "rows": rows,
        "losses": found,
        "examples": examples(setup, 16.0, args.seed),
    }
    for name in ("machine", "settings"):
        print(f"{name}: " + ", ".join(f"{k} {v}" for k, v in result[name].items() if k != "attribute_words"))
    show(rows, found)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(args.out, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
