"""Scanning: normalised text to tokens, each word looked up in what the policy and the lexicon know."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from obclip.edge.oblivious.lexicon import MIN_TYPO, singulars, slips
from obclip.edge.oblivious.marks import alternatives
from obclip.edge.oblivious.patterns import DECADES, SPELLED, Hashable, token_pattern
from obclip.edge.oblivious.policy import Noun, Policy
from obclip.edge.oblivious.text import without_accents

_STOP_WORDS = (
    "of with in on at by for from to and or but is are was were be being has have a an the this that these those his "
    "her him he she as who whose while near under over against into through around its their they it if than then "
    "there here out up down off about after before between beside besides behind during without within along across "
    "above below next amid among onto upon per via not no nor so because although though when where which what i'm "
    "i've i'll i'd im"
)
STOP = frozenset(_STOP_WORDS.split())
PRONOUNS = {
    "he": "subject", "she": "subject", "him": "oblique", "his": "oblique", "her": "oblique", "hers": "oblique",
    "himself": "reflexive", "herself": "reflexive", "he's": "subject-is", "she's": "subject-is",
    "he'll": "subject-will", "she'll": "subject-will", "he'd": "subject-would", "she'd": "subject-would",
    "hes": "subject-is", "shes": "subject-is",
}  # fmt: skip
NEUTRAL_PRONOUNS = {"they": "subject", "they're": "subject-is", "them": "object", "their": "possessive",
                    "themselves": "reflexive", "themself": "reflexive"}  # fmt: skip
FEMALE_PRONOUNS = frozenset({"she", "her", "hers", "herself", "she's", "shes", "she'll", "she'd"})
AN_AGE = 13  # a lower number beside someone is a count as often
OF_SOMEONE = "of someone"  # of years: an age only right behind a person
_START = re.compile(r"[^\W\d_]+")
_TINY_SLIPS = frozenset(["mn", "mna", "amn", "mne", "hs", "hsi", "hr", "hre", "ehr", "gy", "wmn", "bys", "oys", "boi"])
_SHORT_SLIPS = frozenset({"wman", "womn", "gril", "gilr", "yong", "yung", "ladi", "lday"})
_LEET = (str.maketrans("013457", "oieast"), str.maketrans("013457", "oleast"))


@dataclass(frozen=True)
class Token:
    """kind: space, punct, word, number, phrase, noun, adjective, years, tone, pronoun, people, thing, name, mark or
    refused.

    value: of an adjective, a value or stage; of years, a stage; of a tone, the tone; of a refusal, its reason. frame:
    of years, "his" or "her" where they say it, or OF_SOMEONE.
    """

    kind: str
    text: str
    noun: Noun | None = None
    attribute: str = ""
    value: str = ""
    frame: str = ""
    possessive: bool = False


def scan(text: str, policy: Policy, allowed: tuple[str, ...] = ()) -> list[Token]:
    """Tokens whose texts, joined, are `text`. allowed: spans that the user lets through as they are."""
    starts = set(_START.findall(text))
    known = [span for start in starts for span in policy.phrases.get(start, ()) if span in text]
    several = tuple(sorted(word for start in starts for word in policy.several_words.get(start, ()) if word in text))
    whole = tuple(sorted([*known, *(span for span in allowed if span in text)]))
    pattern = token_pattern(Hashable(policy), whole, several)
    return [_token(m, policy) for m in pattern.finditer(text)]


def _token(m: re.Match[str], policy: Policy) -> Token:
    text = m[0]
    if m.lastgroup == "word":
        return _written(text, Hashable(policy))
    if m.lastgroup in ("space", "number", "punct"):
        return Token(m.lastgroup, text)
    if m[1] is not None:
        return Token("mark", text, value="|".join(alternatives(m[1])))
    if m["phrase"]:
        return Token("phrase", text)
    if m["tone"]:
        kind = "adjective" if m["frame"].endswith("ed") else "tone"
        return Token(kind, text, attribute="skin", value=policy.tones[m["tone"]], frame=m["frame"])
    if m["olds"]:
        return Token("noun", text, noun=Noun(None, policy.stage_of_years(_number(m["olds"])), True))
    if m["years"]:
        years = _number(m["years"]) - _is_below(text) if re.search(r"ye?a?rs?", text) else 0
        return Token("years", text, value=policy.stage_of_years(years))
    for group in (
        "short",
        "aged",
        "tens",
        "tens2",
        "tens3",
        "something",
        "plus",
        "plusword",
        "said",
        "below",
        "paren",
        "during",
        "tens4",
        "bare",
        "under",
        "about",
        "isaged",
        "older",
    ):
        if m[group]:
            stage = "child" if group == "under" else policy.stage_of_years(_number(m[group]) - _is_below(text))
            if group in ("said", "below", "paren", "during", "tens4"):
                return Token("years", text, value=stage, frame=OF_SOMEONE)
            if text.endswith("somethings"):
                return Token("noun", text, noun=Noun(None, stage, True))
            return Token("years", text, value=stage, frame=m["whose"] or "")
    if m["decade4"]:
        return Token("years", text, value=policy.stage_of_years(DECADES[m["decade4"]]), frame=OF_SOMEONE)
    for group in ("decade", "decade2", "decade3"):
        if m[group]:
            return Token("years", text, value=policy.stage_of_years(DECADES[m[group]]), frame=m["whose"] or "")
    if m["broken"]:
        return Token("refused", text, value="is an age that cannot be read; say whole years, '25-year-old'")
    if m["letter"] or m["sex"] or m["bracket"] or m["slash"] or m["lone"]:
        return Token("refused", text, value="says an age or a gender by letters; say it in words")
    if m["spelt"]:
        return Token("refused", text, value="is spelt out letter by letter; write the word")
    if m["leet"]:
        return _word(text, text, False, policy) if _is_disguised(text, policy) else Token("word", text)
    if m["several"]:
        return _word(m["several"], text, bool(m["owner"]), policy)
    return Token("punct", text)


@lru_cache(maxsize=20_000)
def _written(text: str, by: Hashable) -> Token:
    """A word as the prompt has it, accents, endings and all."""
    plain = without_accents(text)
    base = re.sub(r"'s?'?$", "", plain)
    if base != plain and text not in PRONOUNS:
        token = _word(base, text, True, by.policy)
        if token.kind in ("noun", "name", "people", "thing"):
            return token
        if token.kind in ("adjective", "pronoun", "refused"):
            return Token("refused", text, value="has an ending that its word does not take; write it without")
    return _word(plain, text, False, by.policy)


def _is_below(text: str) -> bool:
    """Of an age as it is written: whoever is "under 18" is 17 at most."""
    return re.search(r"\b(?:under|below)\b", text) is not None


def _number(text: str) -> int:
    """Of a range the lower end."""
    if (digits := re.match(r"\d+", text)) is not None:
        return int(digits[0])
    return sum(SPELLED[w] for w in re.split("[ -]", text))


def _word(word: str, text: str, possessive: bool, policy: Policy) -> Token:
    return _look_up(word, text, possessive, Hashable(policy))


@lru_cache(maxsize=20_000)
def _look_up(word: str, text: str, possessive: bool, by: Hashable) -> Token:
    policy = by.policy
    context, lexicon = policy.english["context"], policy.lexicon
    if (token := _protected(word, text, possessive, policy)) is not None:
        return token
    if word in STOP or word in context["no_people"]:
        return Token("word", text)
    if word in _TINY_SLIPS:
        return Token("refused", text, value="looks like a slip of a word for a person; write it out")
    if _is_disguised(word, policy):
        return Token("refused", text, value="hides a protected word in how it is written")
    if _is_feminine(word, policy):
        return Token("refused", text, value="says a gender that cannot be put another way")
    if word in lexicon.sure_names or (word in lexicon.names and not lexicon.is_plain_word(word)):
        return Token("name", text, possessive=possessive)
    if word in context["refused"] or word in lexicon.gendered or any(w in lexicon.gendered for w in singulars(word)):
        return Token("refused", text, value="says something about a person that cannot be put another way")
    if word in context["people"] or any(w in context["people"] for w in singulars(word)):
        return Token("people", text)
    if word in context["things"] or any(w in context["things"] for w in singulars(word)):
        return Token("thing", text)
    if lexicon.is_person(word):
        return Token("people", text)
    if lexicon.is_noun(word):
        return Token("thing", text)
    if lexicon.knows(word) or (len(word) < 3 and word.isascii()):
        return Token("word", text)
    if word in lexicon.names:
        return Token("name", text, possessive=possessive)
    if lexicon.knows_rare(word):
        return Token("word", text)
    if "-" in word and all(_harmless(part, policy) for part in word.split("-") if part):
        return Token("word", text)
    return _misspelt(word, text, possessive, policy)


def _is_feminine(word: str, policy: Policy) -> bool:
    """authoress, patroness, choirboy, ballgirls: what is no pair of the tables, but says a gender by its ending."""
    lexicon = policy.lexicon
    if (m := re.fullmatch(r"(\w{3,})(?:boy|girl|gal|lady|wife)s?", word)) is not None:
        return lexicon.knows(m[1])
    stem = re.sub(r"(?:es|s)$", "", word) if word.endswith("esses") else word
    if not stem.endswith("ess") or stem.endswith(("ness", "less")) or len(stem) < 6:
        return False
    return any(
        lexicon.is_person(w) for w in (stem[:-3], stem[:-3] + "er", stem[:-4] + "er", stem[:-4] + "or", stem[:-2] + "r")
    )


def _is_disguised(word: str, policy: Policy) -> bool:
    """m4n, w0man, woman2b: a protected word whose letters are digits, or that has digits and letters stuck to it."""
    if not any(c.isdigit() for c in word) or not word[0].isalpha():
        return False
    parts = re.findall(r"[^\W\d_]+", word) + re.findall("[a-z]+", word)  # parted by digits; by letters of elsewhere too
    readings = [word.translate(table) for table in _LEET] + parts
    return any(reading in policy.nouns or reading in policy.adjectives for reading in readings)


def _harmless(part: str, policy: Policy) -> bool:
    """Whether a part of a hyphenated word says nothing of a person ("people-watching", "all-white", "dark-haired")."""
    token = _word(part, part, False, policy)
    said = token.noun is not None and (token.noun.gender or token.noun.stage or token.noun.ethnicity)
    public = token.kind == "adjective" and part in policy.public_adjectives
    return token.kind in ("word", "thing", "people") or public or (token.kind == "noun" and not said)


def _protected(word: str, text: str, possessive: bool, policy: Policy) -> Token | None:
    if word in PRONOUNS:
        return Token("pronoun", text, value=PRONOUNS[word])
    plain_nation = word in policy.adjectives  # "ottoman", "german": no man of an "otto"
    compound = (
        None if plain_nation else nation_noun(word, policy) or compound_noun(word, policy) or _beast(word, policy)
    )
    if (noun := policy.nouns.get(word) or compound) is not None:
        return Token("noun", text, noun=noun, possessive=possessive or policy.lacks_apostrophe(word))
    for form in (word, *singulars(word)):
        if form in policy.adjectives:
            attribute, value = policy.adjectives[form]
            if form == word or attribute != "age":
                return Token(
                    "adjective",
                    text,
                    attribute=attribute,
                    value=value,
                    frame="plural" if form != word or word.endswith(("icans", "ians")) else "",
                )
    return None


def _misspelt(word: str, text: str, possessive: bool, policy: Policy) -> Token:
    """A word of no list: a slip of a protected word, then of a common one; else it may be a name, and is refused."""
    if len(word) > MIN_TYPO or word in _SHORT_SLIPS:
        for near in sorted(slips(word)):
            nation = near in policy.lexicon.nations  # a slip of one is likelier a place's name
            compound = policy.lexicon.knows(near) and compound_noun(near, policy) is not None
            if len(near) >= MIN_TYPO and not nation and (near in policy.nouns or near in policy.adjectives or compound):
                token = _protected(near, text, possessive, policy)
                assert token is not None
                return token
        if _runs_together(word, policy):
            return Token("refused", text, value="runs a protected word into another; put the space back")
        if policy.lexicon.looks_misspelt(word):
            return Token("word", text)
    return Token("name", text, possessive=possessive, value="unknown")


def _runs_together(word: str, policy: Policy) -> bool:
    """anolder, blackgirl, youngman: two words in one, one known, the other about a person."""

    def says(part: str) -> bool:
        noun = policy.nouns.get(part)
        if noun is None or not (noun.gender or noun.stage):
            return part in policy.adjectives and part not in policy.public_adjectives
        return True

    for i in range(1, len(word)):
        first, second = word[:i], word[i:]
        if first in STOP and _protected(second, second, False, policy) is not None:
            return True
        known = min(i, len(word) - i) > 2 and (policy.lexicon.knows(first) or first in policy.adjectives)
        if known and (len(second) >= MIN_TYPO or first in policy.adjectives) and says(second):
            return True
        if i >= MIN_TYPO and len(word) - i > 2 and says(first) and policy.lexicon.knows(second):
            return True
    return False


def nation_noun(word: str, policy: Policy) -> Noun | None:
    """frenchman, englishwomen, latinas: a people and a gender in one word."""
    ethnicity = policy.lexicon.nations
    known = set(policy.values.get("ethnicity", ()))
    m = re.fullmatch(r"(\w{3,}?)-?(man|men|woman|women)", word)
    if m is None:
        return None
    region = ethnicity.get(word) or ethnicity.get(m[1] + "man") or ethnicity.get(m[1])
    if region is None or word in policy.english["roles"]["not_roles"]:
        return None
    gender = "woman" if m[2].startswith("wo") else "man"
    return Noun(gender, None, m[2] in ("men", "women"), ethnicity=region if region in known else "other")


def _beast(word: str, policy: Policy) -> Noun | None:
    """catgirl, foxboys, elfgirl: half a being of another kind, half a gender."""
    m = re.fullmatch(r"([a-z]{3,}?)-?(?:girl|boy)(s?)", word)
    if m is None or not (policy.lexicon.is_animal(m[1]) or m[1] in policy.english["context"]["people"]):
        return None
    return Noun("woman" if "girl" in word else "man", None, bool(m[2]), (f"{m[1]}boy{m[2]}", f"{m[1]}girl{m[2]}"))


def compound_noun(word: str, policy: Policy) -> Noun | None:
    """fireman, policewomen, craftsman: the last part says the gender, the first one the role."""
    m = re.fullmatch(r"([a-z]{3,}?)-?(man|men|woman|women)", word)
    if m is None or word in policy.english["roles"]["not_roles"] or m[1] in policy.adjectives:
        return None
    if not policy.lexicon.knows(m[1] + "man") and (len(m[1]) < MIN_TYPO or not policy.lexicon.knows(m[1])):
        return None
    plural = m[2] in ("men", "women")
    gender = "woman" if m[2] in ("woman", "women") else "man"
    neutral = policy.english["roles"]["neutral"].get(m[1] + "m")
    if neutral is not None:
        return Noun(gender, None, plural, neutral_role=neutral.split("/")[plural])
    ending = ("men", "women") if plural else ("man", "woman")
    first = "half-" if m[1] == "half" else m[1]
    return Noun(gender, None, plural, (first + ending[0], first + ending[1]))
