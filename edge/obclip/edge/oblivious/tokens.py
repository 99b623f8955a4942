"""Scanning: normalised text to tokens, each word looked up in what the policy knows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from obclip.edge.oblivious.policy import Noun, Policy

_STOP_WORDS = (
    "of with in on at by for from to and or but is are was were be being has have a an the this that these those his "
    "her him he she as who whose while near under over against into through around its their"
)
STOP = frozenset(_STOP_WORDS.split())
PRONOUNS = {
    "he": "subject", "she": "subject", "him": "oblique", "his": "oblique", "her": "oblique", "hers": "oblique",
    "himself": "reflexive", "herself": "reflexive",
}  # fmt: skip
FEMALE_PRONOUNS = frozenset({"she", "her", "hers", "herself"})
_DECADES = {"teens": 15, "twenties": 20, "thirties": 30, "forties": 40, "fifties": 50, "sixties": 60}
_DECADES |= {"seventies": 70, "eighties": 80, "nineties": 90}


@dataclass(frozen=True)
class Token:
    """kind: space, punct, word, number, phrase, noun, adjective, years, tone, pronoun, people, thing or refused.

    value: noun -> stage and gender are in `noun`; adjective -> (attribute, value); years -> a stage; tone -> the tone.
    """

    kind: str
    text: str
    noun: Noun | None = None
    attribute: str = ""
    value: str = ""
    frame: str = ""
    possessive: bool = False


@lru_cache(maxsize=8)
def _patterns(name: str, policy: _Hashable) -> re.Pattern[str]:
    p = policy.policy
    tones = _alternatives(p.tones)
    phrases = _alternatives(p.english["context"]["phrases"])
    known = [*p.nouns, *p.adjectives, *p.english["context"]["people"], *p.english["context"]["things"]]
    several = _alternatives([w for w in known if " " in w or "." in w or "-" in w])
    decades = "|".join(_DECADES)
    return re.compile(
        rf"(?<![\w-])(?P<phrase>{phrases})(?![\w-])"
        rf"|(?<![\w-])(?P<tone>{tones})(?P<frame>-skinned|[ -]skin(?:[ -]tones?)?|[ -]complexion)(?!\w)"
        r"|(?:, )?(?<!\w)(?P<years>\d{1,3})[ -](?:years?|yrs?)[ -]olds?(?!\w)"
        r"|(?<!\w),? ?aged? (?P<aged>\d{1,3})(?!\w)"
        r"|(?<!\w),? ?in (?:his|her|their) (?:early |mid |late |mid-|late-)?"
        rf"(?:(?P<decade>{decades})|(?P<tens>\d0)'?s)(?!\w)"
        rf"|(?<![\w-])(?P<several>{several})(?P<owner>'s?)?(?![\w-])"
        r"|(?P<word>[^\W\d_]+(?:['-][^\W\d_]+)*'?)|(?P<number>\d+)|(?P<space> +)|(?P<punct>.)"
    )


@dataclass(frozen=True, eq=False)
class _Hashable:
    """A policy as a cache key: policies hold dictionaries, so they are compared by identity."""

    policy: Policy

    def __hash__(self) -> int:
        return id(self.policy)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashable) and other.policy is self.policy


def _alternatives(words: object) -> str:
    ordered = sorted(set(words), key=lambda w: (-len(w), w))  # type: ignore[call-overload]
    return "|".join(re.escape(w) for w in ordered)


def scan(text: str, policy: Policy) -> list[Token]:
    """Tokens whose texts, joined, are `text`."""
    return [_token(m, policy) for m in _patterns(policy.name, _Hashable(policy)).finditer(text)]


def _token(m: re.Match[str], policy: Policy) -> Token:
    text = m[0]
    if m["phrase"]:
        return Token("phrase", text)
    if m["tone"]:
        return Token("tone", text, attribute="skin", value=policy.tones[m["tone"]], frame=m["frame"])
    for group in ("years", "aged", "tens"):
        if m[group]:
            return Token("years", text, value=policy.stage_of_years(int(m[group])))
    if m["decade"]:
        return Token("years", text, value=policy.stage_of_years(_DECADES[m["decade"]]))
    if m["several"]:
        return _word(m["several"], text, bool(m["owner"]), policy)
    if m["word"]:
        base = re.sub(r"'s?$", "", text)
        if base != text and (token := _word(base, text, True, policy)).kind == "noun":
            return token
        return _word(text, text, False, policy)
    return Token(m.lastgroup or "punct", text)


def _word(word: str, text: str, possessive: bool, policy: Policy) -> Token:
    context = policy.english["context"]
    if (noun := policy.nouns.get(word) or compound_noun(word, policy)) is not None:
        return Token("noun", text, noun=noun, possessive=possessive)
    if word in policy.adjectives:
        attribute, value = policy.adjectives[word]
        return Token("adjective", text, attribute=attribute, value=value)
    if word in PRONOUNS:
        return Token("pronoun", text, value=PRONOUNS[word])
    if word in context["refused"]:
        return Token("refused", text)
    for kind in ("people", "things"):
        if word in context[kind] or (word.endswith("s") and word[:-1] in context[kind]):
            return Token("people" if kind == "people" else "thing", text)
    return Token("word", text)


def compound_noun(word: str, policy: Policy) -> Noun | None:
    """fireman, policewomen, craftsman: the last part says the gender, the first one the role."""
    m = re.fullmatch(r"([a-z]{3,}?)-?(man|men|woman|women)", word)
    if m is None or word in policy.english["roles"]["not_roles"]:
        return None
    plural = m[2] in ("men", "women")
    gender = "woman" if m[2] in ("woman", "women") else "man"
    neutral = policy.english["roles"]["neutral"].get(m[1] + "m")
    if neutral is not None:
        return Noun(gender, None, plural, neutral_role=neutral.split("/")[plural])
    ending = ("men", "women") if plural else ("man", "woman")
    return Noun(gender, None, plural, (m[1] + ending[0], m[1] + ending[1]))
