"""Which words of a prompt are names by how they are written: a capital inside a sentence, or a title before them."""

from __future__ import annotations

import re

from obclip.edge.oblivious.lexicon import Lexicon
from obclip.edge.oblivious.policy import Policy
from obclip.edge.oblivious.tokens import STOP

_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*|[.!?:;,\"]")
_SURE_TITLES = frozenset({"mr", "mrs", "ms", "mister", "dr"})  # whatever follows these is a name
_SHORTENED = frozenset({"mr", "mrs", "ms", "dr"})
_ENDS = frozenset('.!?:;"')  # behind these a capital says nothing
_MAX_CAPITALS = 0.6  # share of longer words: above it, capitals are a way of writing titles and say nothing


def names_by_writing(prompt: str, policy: Policy) -> frozenset[str]:
    """Words, in lower case, that `prompt` writes as names although they are English words too ("Rose", "Mr Bean")."""
    lexicon, context = policy.lexicon, policy.english["context"]
    words = _WORD.findall(prompt)
    longer = [w for w in words if len(w) > 3]
    capitals = sum(w[0].isupper() for w in longer)
    shouting = capitals > _MAX_CAPITALS * max(1, len(longer))
    found = set()
    for i, word in enumerate(words):
        lower, before = word.lower().removesuffix("'s"), words[i - 1].lower() if i else "."
        if not word[0].isalpha() or lower in policy.nouns or lower in policy.adjectives or lower in STOP:
            continue
        title = words[i - 2].lower() if before == "." and i > 1 else before
        if title in _SURE_TITLES and lower not in context["people"]:
            found.add(lower)
        if not word[0].isupper() or word.isupper() or lower in lexicon.places:
            continue
        known = lower in context["people"] or lower in context["titles"]
        begins = before == "." and title not in _SHORTENED  # "a doctor. Soft light"
        if title in context["titles"] and capitals < len(longer) and not known and not begins:
            found.add(lower)
        if shouting:
            continue
        inside = before not in _ENDS
        unknown = not (lexicon.knows(lower) or lexicon.knows_rare(lower) or "-" in lower)
        if (inside and (lower in lexicon.names or unknown)) or (
            not inside and lower in lexicon.names and _acts(words[i + 1 : i + 3], lexicon)
        ):
            found.add(lower)
        if i and words[i - 1][0].isupper() and before in lexicon.names and (i == 1 or words[i - 2] in _ENDS):
            found |= {words[i - 1].lower(), lower}  # "Will Smith eating spaghetti"
    return frozenset(found)


def _acts(after: list[str], lexicon: Lexicon) -> bool:
    """Whether what follows a word at the start of a sentence shows that it does something, as a person does."""
    if not after:
        return False
    word = after[0].lower()
    another = word == "and" and len(after) > 1 and after[1][0].isupper()
    return another or word in ("is", "was", "has", "wears", "holds", "sits", "stands") or word.endswith("ing")
