"""What whoever runs the cloud half learns: the best adversary's success under a uniform prior, and effective N.

The adversary knows the candidate set and the method, sees what is sent, and names the likeliest candidate. Computed
from the channel, not sampled: sanitizers word by word, candidate sets as the device builds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from obclip.core.errors import InputError
from obclip.edge.oblivious import Options, load_policy
from runtime_tests.baselines.bigram import Bigram
from runtime_tests.baselines.cape import Cape, closeness
from runtime_tests.baselines.closed import Closed, Lexicon, attribute_of, build_lexicon, closed
from runtime_tests.baselines.embeddings import load_phi, mean_distance
from runtime_tests.baselines.mechanism import Float64, Mechanism
from runtime_tests.baselines.reconstruction import attack, attack_groups
from runtime_tests.baselines.sanitized import word_groups
from runtime_tests.baselines.santext import santext, santext_plus
from runtime_tests.baselines.words import Vocabulary, words_of

from ..sanitizers import set_channel
from .methods import DEVICE, MPC, OBLIVIOUS, SANITIZED, Method
from .prompts import PromptSet, flat


@dataclass
class Sanitizers:
    """The word-by-word mechanisms over the words of the sets and of `sentences`."""

    secrets: tuple[Closed, ...]
    vocabulary: Vocabulary
    phi: Float64
    lexicon: Lexicon
    bigram: Bigram
    _made: dict[str, Mechanism] = field(default_factory=dict)

    @classmethod
    def of(cls, sets: Sequence[PromptSet], policy: str, sentences: Sequence[str]) -> Sanitizers:
        """InputError if the device would make other candidates than the sets', with what they allow."""
        rules = load_policy(policy)
        secrets = tuple(s for one in sets if (s := closed(one.prompts[0], rules, Options(allow=one.allow))) is not None)
        if [s.found.prompts for s in secrets] != [one.prompts for one in sets]:
            raise InputError(f"under the policy {policy} the device makes other candidates of these prompts")
        said = [words_of(text) for text in (*sentences, *flat(sets))]
        vocabulary = Vocabulary.of([*said, *(words for s in secrets for words in s.words)])
        phi = load_phi(vocabulary, None)
        lexicon = build_lexicon(secrets)
        return cls(secrets, vocabulary, phi / mean_distance(phi), lexicon, Bigram.train(vocabulary, said))

    def mechanism(self, method: Method) -> Mechanism:
        if method.name not in self._made:
            assert method.epsilon is not None
            sensitive = frozenset(self.lexicon)
            if method.name.startswith("SANTEXT+"):
                made: Mechanism = santext_plus(self.vocabulary, self.phi, method.epsilon, sensitive)
            elif method.name.startswith("SANTEXT"):
                made = santext(self.vocabulary, self.phi, method.epsilon)
            else:
                made = Cape(self.vocabulary, closeness(self.phi), self.bigram, sensitive, method.epsilon)
            self._made[method.name] = made
        return self._made[method.name]

    def sanitize(self, method: Method, prompt: str, seed: int) -> str:
        return " ".join(self.mechanism(method).sanitize(words_of(prompt), np.random.default_rng(seed)))


def learns(method: Method, sanitizers: Sanitizers) -> dict[str, float]:
    """`attack_gender` (or of the first attribute hidden) and `attack_prompt`: how often the guess is right;
    `effective_n`: 2 to the entropy left, the mean over sets; `chance`: 1/N."""
    found: list[tuple[float, float, float, float]] = []
    for secret in sanitizers.secrets:
        n = len(secret.words)
        prior = np.full(n, 1 / n)
        label = next((a for a in secret.found.attributes if attribute_of(a) == "gender"), next(iter(secret.values[0])))
        values = [v[label] for v in secret.values]
        numbers, whole = np.array([sorted(set(values)).index(v) for v in values]), np.arange(n)
        if method.kind in (DEVICE, MPC):
            channel: Float64 | None = np.ones((n, 1))
        elif method.kind == OBLIVIOUS:
            channel = set_channel(secret)
        elif method.kind == SANITIZED:
            channel = None
        else:
            channel = np.eye(n)
        if channel is None:
            groups = word_groups(secret, sanitizers.mechanism(method), sanitizers.lexicon)
            one, all_of_it = (attack_groups(groups, prior, which, seed=0) for which in (numbers, whole))
        else:
            one, all_of_it = (attack(channel, prior, which) for which in (numbers, whole))
        found.append((one.success, all_of_it.success, 2**all_of_it.entropy_bits, 1 / n))
    names = ("attack_gender", "attack_prompt", "effective_n", "chance")
    return {name: round(float(v), 4) for name, v in zip(names, np.mean(found, 0), strict=True)}
