"""A second opinion on candidate sets: from the prompts alone, with word tables of its own, whether a set is closed.

It shares neither code nor tables with the parser. Prompts are aligned on the words they share; what lies between is
read with the tables here. Spans of unknown words are taken as they stand, as one slot with at most two values (the two
forms of a role).
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from obclip.core.errors import ObclipError
from obclip.core.wire import Request
from obclip.edge.oblivious import Options, Policy, candidate_set

# What a word says. number: "1", "n" or "" where it does not show. bases: what it says beside the attributes, any of
# which must be common to all candidates ("her" is an object or a possessive).
PEOPLE = "person"
_MAN_WOMAN = [("man", "woman", "1"), ("men", "women", "n")]
_CHILDREN = [("boy", "girl", "1"), ("boys", "girls", "n")]
_UNSAID = {"person": ("1", ""), "people": ("n", ""), "child": ("1", "child"), "children": ("n", "child")}
_PRONOUNS = [
    ("he", "she", "subject"), ("him", "her", "object"), ("his", "her", "possessive"), ("his", "hers", "possessive"),
    ("himself", "herself", "reflexive"), ("he'd", "she'd", "would"), ("he'll", "she'll", "will"),
]  # fmt: skip
_UNGENDERED = {"they": "subject", "them": "object", "their": "possessive", "theirs": "possessive"}
_UNGENDERED |= {"themselves": "reflexive", "themself": "reflexive"}
_ROLES = (
    "king/queen prince/princess emperor/empress duke/duchess actor/actress waiter/waitress host/hostess groom/bride "
    "father/mother dad/mom daddy/mommy husband/wife son/daughter brother/sister uncle/aunt nephew/niece monk/nun "
    "boyfriend/girlfriend grandson/granddaughter wizard/witch god/goddess hero/heroine widower/widow cowboy/cowgirl "
    "merman/mermaid landlord/landlady baron/baroness papa/mama count/countess priest/priestess "
    "businessman/businesswoman policeman/policewoman fireman/firewoman salesman/saleswoman chairman/chairwoman "
    "sportsman/sportswoman gentleman/lady guy/gal lad/lass grandfather/grandmother grandpa/grandma"
)
_AGES = {
    "young": "young", "middle-aged": "middle-aged", "old": "old", "adult": "adult", "older": "older", "child": "child",
}  # fmt: skip
_ADULT_AGES = {"young", "middle-aged", "old", "adult", "older"}
_ETHNICITIES = ("caucasian", "african", "asian", "indian", "european")
_TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
_COUNTS = {"gender": {2}, "age": {3}, "ethnicity": {5}, "skin": {5}}  # values that an attribute must be shown with
_PLURALS = {"wife": "wives", "hero": "heroes", "child": "children", "actress": "actresses"}


def listed(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words that say a gender whatever stands beside them, and that no candidate set may show outside its slots.
GENDERED = listed(
    "woman women man men lady ladies gentleman gentlemen girl girls boy boys he she him his her hers himself herself "
    "mother mothers father fathers mom moms dad dads wife wives husband husbands son sons daughter daughters sister "
    "sisters brother brothers grandmother grandmothers grandfather grandfathers grandma grandpa aunt uncle niece "
    "nephew actress waitress princess empress bride groom girlfriend boyfriend guy guys gal gals bloke dude lass "
    "cowboy cowgirl policeman policewoman fireman businessman businesswoman he's she's he'd she'd he'll she'll"
)
AGED = listed("elderly young youthful middle-aged octogenarian pensioner granny")
CHILDREN = listed(
    "girl girls boy boys child children toddler baby infant kid kids teenager teenage schoolboy schoolgirl"
)
ETHNIC = listed(
    "caucasian asian african-american chinese japanese korean hispanic latina latino nigerian kenyan pakistani "
    "mexican arab vietnamese filipino hindustani"
)


@dataclass(frozen=True)
class Word:
    """said: attribute -> value. bases: what else the word means."""

    said: tuple[tuple[str, str], ...]
    bases: frozenset[str] = frozenset()
    number: str = ""


def _table() -> dict[str, Word]:
    words: dict[str, Word] = {}
    for man, woman, number in _MAN_WOMAN:
        words[man] = Word((("gender", "man"),), frozenset({PEOPLE}), number)
        words[woman] = Word((("gender", "woman"),), frozenset({PEOPLE}), number)
    for boy, girl, number in _CHILDREN:
        words[boy] = Word((("gender", "man"), ("age", "child")), frozenset({PEOPLE}), number)
        words[girl] = Word((("gender", "woman"), ("age", "child")), frozenset({PEOPLE}), number)
    for word, (number, age) in _UNSAID.items():
        words[word] = Word((("age", age),) if age else (), frozenset({PEOPLE}), number)
    for pair in _ROLES.split():
        for gender, form in zip(("man", "woman"), pair.split("/"), strict=True):
            for text, number in ((form, "1"), (_plural(form), "n")):
                words[text] = Word((("gender", gender),), frozenset({pair}), number)
    for gender, i in (("man", 0), ("woman", 1)):
        for form in {p[i] for p in _PRONOUNS}:
            words[form] = Word((("gender", gender),), frozenset(p[2] for p in _PRONOUNS if p[i] == form))
    words |= {"male": Word((("gender", "man"),)), "female": Word((("gender", "woman"),))}
    words |= {w: Word((), frozenset({base})) for w, base in _UNGENDERED.items()}
    words |= {w: Word((("age", value),)) for w, value in _AGES.items() if w != "child"}
    words |= {w: Word((("ethnicity", w),)) for w in _ETHNICITIES}
    words |= {t: Word((("skin", t),)) for t in _TONES}
    words |= {f"{t}-skinned": Word((("skin", t),), frozenset({"skinned"})) for t in _TONES}
    return words


def _plural(word: str) -> str:
    if word.endswith("man"):
        return word[:-3] + "men"
    if word.endswith(("y",)) and word[-2] not in "aeo":
        return word[:-1] + "ies"
    return _PLURALS.get(word, word + ("es" if word.endswith(("ss", "tch")) else "s"))


WORDS = _table()
SAYS = {  # words that no candidate shows, but a user may
    **{w: Word((("gender", "woman"),)) for w in ("lady", "ladies", "gal", "female", "lass")},
    **{w: Word((("gender", "man"),)) for w in ("gentleman", "gentlemen", "guy", "male", "bloke")},
    "grandmother": Word((("gender", "woman"), ("age", "old"))),
    "grandfather": Word((("gender", "man"), ("age", "old"))),
    "schoolgirl": Word((("gender", "woman"), ("age", "child"))),
    "elderly": Word((("age", "old"),)),
    "youthful": Word((("age", "young"),)),
    "chinese": Word((("ethnicity", "asian"),)),
}
Value = tuple[str, ...]


@dataclass
class Slot:
    """What one attribute is at one place: values has one entry for each prompt, None where it is not said.

    noun: said by a word for a person, rather than by a pronoun or an adjective. Attribute "other": by unknown words.
    """

    attribute: str
    values: list[str | None]
    noun: bool = False


def problems(prompts: Sequence[str], *, mixed_ages: bool = False, tied: bool = False, marks: bool = False) -> list[str]:
    """What is wrong with `prompts` as a candidate set; nothing is said of a set of one.

    mixed_ages: children and adults may hide each other. tied: people's values move together. marks: spans of the user's
    own may take any number of values.
    """
    found = [] if list(prompts) == sorted(set(prompts)) and prompts else ["not sorted, repeated, or empty"]
    found += [f"spaces: {p!r}" for p in prompts if p != " ".join(p.split())]
    lines = [words(p) for p in prompts]
    found += [f"article: {p!r}" for p in prompts if not _articles_fit(p)]
    if len(prompts) < 2:
        return found
    slots: list[Slot] = []
    for column in _gaps(lines):
        new, wrong = _read(column, marks)
        slots += new
        found += wrong
    found += _children(slots, mixed_ages)
    return found + _product(slots, len(prompts), tied, marks)


def words(prompt: str) -> list[str]:
    """Words and marks, a for an, 's for every possessive ending."""
    parts = re.findall(r"[^\W\d_]+(?:['-][^\W\d_]+)*'?|\d+|[^\w\s]|_", prompt)
    out: list[str] = []
    for part in parts:
        stem = re.sub(r"'s?$", "", part)
        out += [stem, "'s"] if stem != part and stem else ["a" if part == "an" else part]
    return out


def _gaps(lines: list[list[str]]) -> Iterator[list[Value]]:
    """Between the words shared by all lines: one column of spans, one span for each line. Equal columns are skipped."""
    shared = _shared(lines)
    columns: list[list[Value]] = [[] for _ in range(len(shared) + 1)]
    for line in lines:
        at = 0
        for i, anchor in enumerate(shared):
            end = line.index(anchor, at)
            columns[i].append(tuple(line[at:end]))
            at = end + 1
        columns[-1].append(tuple(line[at:]))
    yield from (column for column in columns if len(set(column)) > 1)


def _shared(lines: list[list[str]]) -> list[str]:
    """Words of all lines: those that stand equally often in each, if in one order; else what all have in common."""
    steady = {w for w in lines[0] if len({line.count(w) for line in lines}) == 1}
    kept = [[w for w in line if w in steady] for line in lines]
    if all(line == kept[0] for line in kept) and all(_anchored(line, kept[0]) for line in lines):
        return kept[0]
    shared = lines[0]
    for line in lines[1:]:
        shared = _common(shared, line)
    return shared


def _anchored(line: list[str], shared: list[str]) -> bool:
    return sum(line.count(w) for w in set(shared)) == len(shared)


def _common(a: list[str], b: list[str]) -> list[str]:
    """Longest common subsequence."""
    best = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, j in itertools.product(range(len(a) - 1, -1, -1), range(len(b) - 1, -1, -1)):
        best[i][j] = best[i + 1][j + 1] + 1 if a[i] == b[j] else max(best[i + 1][j], best[i][j + 1])
    out, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        if a[i] == b[j]:
            out.append(a[i])
            i, j = i + 1, j + 1
        elif best[i + 1][j] >= best[i][j + 1]:
            i += 1
        else:
            j += 1
    return out


def _read(column: list[Value], marks: bool) -> tuple[list[Slot], list[str]]:
    """The slots of one column, and what is wrong with it."""
    found: list[str] = []
    said: list[dict[tuple[str, int], str]] = []
    rest: list[Value] = []
    bases: list[list[frozenset[str]]] = []
    numbers: set[str] = set()
    for span in column:
        values: dict[tuple[str, int], str] = {}
        unknown, meant, number = [], [], ""
        for text in span:
            word = WORDS.get(text)
            if word is None:
                unknown.append(text)
                continue
            for attribute, value in word.said:
                n = sum(a == attribute for a, _ in values)
                values[attribute, n] = value
            if word.bases and word.bases != {PEOPLE}:
                meant.append(word.bases)
            number = word.number or number
        numbers |= {number} - {""}  # of the last word: the "child" of "child actors" is none
        ages = {v for (a, _), v in values.items() if a == "age"}
        if "child" in ages and ages & _ADULT_AGES:
            found.append(f"a child and an adult in one place: {span}")
        said.append(values)
        rest.append(tuple(unknown))
        bases.append(meant)
        if len([w for w in span if w == "'s"]) > 1:
            found.append(f"two possessives in one place: {span}")
    if len(numbers) > 1 and not any(rest):
        found.append(f"one and many in one place: {sorted(set(column))}")
    if len(set(rest)) > 1:
        if not marks and len(set(rest)) > 2:
            found.append(f"differ in words that say nothing protected: {sorted(set(rest))}")
        for values, unknown_words in zip(said, rest, strict=True):
            values["other", 0] = " ".join(unknown_words)
    elif len({len(b) for b in bases}) > 1 or any(not frozenset.intersection(*b) for b in zip(*bases, strict=True)):
        found.append(f"differ in more than protected words: {sorted(set(column))}")
    keys = dict.fromkeys(key for values in said for key in values)
    pronouns = {p for pair in _PRONOUNS for p in pair[:2]} | set(_UNGENDERED)
    noun = not any(word in pronouns for span in column for word in span)
    slots = [Slot(a, [values.get((a, n)) for values in said], noun) for a, n in keys]
    return [s for s in slots if len(set(s.values)) > 1], found


def _children(slots: list[Slot], mixed_ages: bool) -> list[str]:
    found = []
    for slot in slots:
        ages = {v for v in slot.values if v} if slot.attribute == "age" else set()
        if "child" in ages and not mixed_ages:
            found.append(f"a child and an adult hide each other: {sorted(ages)}")
    return found


def _product(slots: list[Slot], n: int, tied: bool, marks: bool) -> list[str]:
    """Slots that change together are one choice; the set must be every combination of the choices, each once."""
    classes: dict[tuple[int, ...], list[Slot]] = {}
    for slot in slots:
        order = {v: i for i, v in enumerate(dict.fromkeys(slot.values))}
        classes.setdefault(tuple(order[v] for v in slot.values), []).append(slot)
    found = []
    for together in classes.values():
        by_attribute: dict[str, list[Slot]] = {}
        for slot in together:
            by_attribute.setdefault(slot.attribute, []).append(slot)
        unknown = len(by_attribute.get("other", ())) + any(s.noun for s in by_attribute.get("gender", ()))
        if "other" in by_attribute and unknown > 1 and not (tied or marks):
            found.append(f"unknown words change with others: {[slot.values for slot in together]}")
        if len([a for a in by_attribute if a != "other"]) > 1:
            found.append(f"two attributes always change together: {sorted(by_attribute)}")
        for attribute, same in by_attribute.items():
            shown = set(same[0].values)
            wanted = _COUNTS.get(attribute)
            if wanted and len(shown - {None}) not in wanted:
                found.append(f"not every value of {attribute}: {sorted(v or '-' for v in shown)}")
            if attribute != "other" and not tied and any(slot.values != same[0].values for slot in same):
                found.append(f"one person has two values of {attribute}: {[slot.values for slot in same]}")
    rows = set(zip(*(together[0].values for together in classes.values()), strict=True)) if classes else set()
    size = 1
    for pattern in classes:
        size *= len(set(pattern))
    if len(rows) != n or size != n:
        found.append(f"no full cross product: {n} prompts, {len(rows)} different, {size} combinations")
    return found


def _articles_fit(prompt: str) -> bool:
    """Judged before words of the tables alone, whose first letter is how they sound, all but one."""
    said = re.findall(r"\b(an?) ([\w-]+)", prompt.lower())
    return not any((a == "an") != (w[0] in "aeiou" and w != "european") for a, w in said if w in WORDS)


def loose(text: str, *tables: frozenset[str]) -> set[str]:
    """Words of `text` that say something about a person by `tables`; all but letters part words."""
    known = frozenset().union(*(tables or (GENDERED,)))
    lower = text.lower()
    return {w for w in (*re.findall(r"[a-z]+(?:-[a-z]+)*", lower), *re.findall("[a-z]+", lower)) if w in known}


def meaning(text: str) -> set[tuple[str, str]]:
    """What the words of `text` that are known here say, as (attribute, value)."""
    known = (SAYS.get(w) or WORDS.get(w) for w in words(text.lower()))
    return {pair for word in known if word for pair in word.said}


# -- bytes --------------------------------------------------------------------------------------------------------


def request_digest(prompt: str, policy: Policy, options: Options | None = None) -> str:
    """SHA-256 of all that the cloud is sent for `prompt`, or the name of the error that refuses it."""
    try:
        return _digest(candidate_set(prompt, policy, options).prompts)
    except ObclipError as error:
        return type(error).__name__


def spellings(prompt: str) -> list[str]:
    """Ways to write `prompt` that must not matter: case, spaces, articles, quotes."""
    swapped = re.sub(r"\b(an?) ", lambda m: "an " if m[1] == "a" else "a ", prompt)
    spaced = "  " + prompt.replace(" ", "   ") + "\t\n"
    return [prompt.upper(), spaced, swapped, prompt.replace("'", "’"), re.sub(r"\ba ", "A ", prompt)]


SYNONYMS = {"woman": "Lady", "man": "GENTLEMAN", "women": "ladies", "men": "Gentlemen"}


def synonyms(prompt: str) -> list[str]:
    """`prompt` with one kind of word said another way; where it is understood, the set must not change."""
    return [
        re.sub(rf"(?<![\w-]){word}(?![\w-])", other, prompt)
        for word, other in SYNONYMS.items()
        if re.search(rf"(?<![\w-]){word}(?![\w-])", prompt)
    ]


def byte_problems(
    prompts: Sequence[str],
    policy: Policy,
    options: Options | None = None,
    most: int = 64,
    sources: Sequence[str] | None = None,
) -> list[str]:
    """Of `sources` (by default the prompts), at most `most` spread over the set, those that lead to other bytes."""
    wanted = _digest(tuple(prompts))
    sources = sources or prompts
    n = min(most, len(sources))
    chosen = [sources[i * len(sources) // n] for i in range(n)]
    return [f"other bytes from {p!r}" for p in chosen if request_digest(p, policy, options) != wanted]


def _digest(prompts: tuple[str, ...]) -> str:
    return hashlib.sha256(Request("0" * 64, prompts, "", 7, 64, 64, 25, 10, 3.5, "dpm++2m").encode()).hexdigest()
