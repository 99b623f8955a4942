"""Scanning: normalised text to tokens, each word looked up in what the policy and the lexicon know."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from obclip.edge.oblivious.lexicon import MIN_TYPO, singulars, slips
from obclip.edge.oblivious.marks import MARK, alternatives
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
_DECADES = {"teens": 15, "twenties": 20, "thirties": 30, "forties": 40, "fifties": 50, "sixties": 60}
_DECADES |= {"seventies": 70, "eighties": 80, "nineties": 90, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50}
_DECADES |= {"sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
_UNITS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
          "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")  # fmt: skip
SPELLED = {w: i + 1 for i, w in enumerate(_UNITS)} | {w: n for w, n in _DECADES.items() if w.endswith("y")}
SPELLED["hundred"] = 100
OF_SOMEONE = "of someone"  # of years: an age only right behind a person


_NEVER = r"(?!)"
_START = re.compile(r"[^\W\d_]+")
_TINY_SLIPS = frozenset(["mn", "mna", "amn", "mne", "hs", "hsi", "hr", "hre", "ehr", "gy", "wmn", "bys", "oys", "boi"])
_SHORT_SLIPS = frozenset({"wman", "womn", "gril", "gilr", "yong", "yung", "ladi", "lday"})


_FRAMES = "[ -]?skinn?ed|-toned|[ -]complexioned|[ -]complected|[ -]?skin(?:[ -]?tones?)?|[ -]complexion"
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


@lru_cache(maxsize=256)
def _patterns(policy: _Hashable, whole: tuple[str, ...], several_words: tuple[str, ...]) -> re.Pattern[str]:
    """whole: spans that stay as they are; several_words: known words with a space, dot or hyphen. Only those that the
    text has: one pattern of all of them would take longer to compile than every prompt to read."""
    tones = _alternatives(policy.policy.tones)
    phrases, several = _alternatives(whole) or _NEVER, _alternatives(several_words) or _NEVER
    decades = "|".join(w for w in _DECADES if w.endswith("s"))
    spelled = "|".join(sorted(SPELLED, key=len, reverse=True))
    spelled_out = rf"(?:(?:{spelled})[ -])?(?:{spelled})"
    decades_said = "|".join(w for w in _DECADES if w.endswith("y"))
    adult = rf"(?:1[6-9]|[2-9]\d|(?:{decades_said})(?:[ -](?:{'|'.join(_UNITS[:9])}))?)"
    number = rf"(?:\d{{1,3}}(?: ?(?:-|to|or|and) ?\d{{1,3}}|-odd)?|hundred|(?:(?:{spelled})[ -])?(?:{spelled}))"
    about = r"between|around|about|roughly|approximately|approx\.?|circa|nearly|almost|at least|barely"
    broken = r"\d+(?:[./]\d+|,\d\d?(?!\d))|\d+ \d/\d+|\d \d"
    at_age = "at|over|under|above|below|past|around|about"
    passing = "of|at|over|above|past|pushing|nearing|approaching"
    how = "very|rather|quite|deathly|deeply|extremely|slightly|naturally|lightly"
    lead = r"(?:, ?|(?<!\w))"
    last = rf"(?:, ?(?=(?:early|mid|late)[ -](?:\d0'?s|{decades})(?: ?[,.;)]|$))|(?<!\w))"
    more = r"(?:(?:-| - | or | to )(?:early |mid |late )?\d0'?s)?"
    follows = r"(?= ?[,.;)]|$| (?:in|on|at|with|and|by|who|from|\w+ing)\b)"
    return re.compile(
        rf"{MARK.pattern}|(?<![\w-])(?P<phrase>{phrases})(?![\w-])"
        rf"|(?<![\w-])(?:(?:{how}) )?(?P<tone>{tones})(?P<frame>{_FRAMES})(?!\w)"
        rf"|(?<![\w.,/])(?P<broken>(?:{broken})[ -]?(?:(?:years?|yrs?)[ -]?(?:old|of age)|yo|y/o|y\.o)(?!\w))"
        rf"|{lead}(?:(?:of )?(?:{about}|over|under) |~ ?)?(?P<years>{number})[ -]?(?:years?|yrs?|months?|weeks?|days?)"
        r"[ -]?(?:old|of age)(?!\w)"
        rf"|(?<!\w)(?P<olds>{number})[ -]years?[ -]olds(?!\w)"
        rf"|{lead}(?P<short>\d{{1,3}}(?:-\d{{1,3}})?)[ -]?(?:yo|y/o|y\.o\.?|yrs? old|yr old|y(?=,|$))(?!\w)"
        rf"|{lead}(?:aged? ?[:=-] ?|aged? |(?:{at_age}) (?:the )?age (?:of )?)(?:of |over |under |(?:{about}) )?"
        rf"(?P<aged>{number})"
        r"(?: years?)?(?: old)?\+?(?!\w)"
        rf"|{lead}in (?P<whose>his|her|their) (?:early[ -]|mid[ -]|middle |late[ -])?"
        rf"(?:(?P<decade>{decades})|(?P<tens>\d0)'?s{more})(?!\w)"
        rf"|{lead}in (?:early |mid |late )?(?:(?P<decade4>{decades})|(?P<tens4>[2-9]0)'?s){follows}"
        rf"|{last}(?:early|mid|late)[ -](?:(?P<decade2>{decades})|(?P<tens2>\d0)'?s{more})(?!\w)"
        rf"|, (?:(?P<tens3>[2-9]0)'?s|(?P<decade3>{decades}))(?=,|$)"
        rf"|{lead}(?P<something>{'|'.join(SPELLED)}|\d\d)[ -]?(?:somethings?|ish)(?!\w)"
        r"|(?<!\w)(?P<plus>\d\d)(?:\+|[ -]plus)(?!\w)"
        rf"|(?<!\w)(?P<plusword>{decades_said})[ -]plus(?!\w)"
        rf"|{lead}(?:(?:just|well|way|far|now) )?(?:{passing}) (?P<said>{adult})(?: years)?{follows}"
        rf"|{lead}(?:under|below) (?P<below>{adult}){follows}|(?<!\w)(?P<during>{adult}) years?{follows}"
        rf"|[(\[](?P<paren>{adult})[)\]]"
        r"|(?:(?<=^)|(?<=, )|(?<=\ba ))(?P<letter>[1-9]\d ?[fm])(?= ?,|$| (?:in|on|with|at)\b)"
        r"|(?P<bracket>[(\[](?:[1-9]\d ?/?[fm]|[fm] ?/?(?:[1-9]\d)?)[)\]])"
        r"|(?<!\w)(?P<slash>[1-9]\d ?/ ?[fm])(?!\w| ?\d)"
        r"|^(?P<lone>[fm])(?= ?,)"
        r"|(?<!\w)(?P<sex>(?:sex|gender) ?[:=] ?[fm])(?!\w)"
        rf"|, (?P<bare>\d\d(?:-\d\d)?|{spelled_out})(?: (?:years?|yrs?))?(?=,|$)|(?<!\w)under-(?P<under>\d\d?)s?(?!\w)"
        rf"|{lead}(?:of )?(?:{about}) (?P<about>\d\d|{spelled_out})(?: years?)?(?= ?[,.;]|$)"
        rf"|(?<=is )(?P<isaged>\d\d?|{spelled_out})(?= (?:and|but)\b|[,.;]|$)"
        rf"|(?<!\w)(?:over|past) (?P<older>{decades_said})(?= (?:on|in|at|with|and|by)\b|[,.;]|$)"
        rf"|(?<![\w-])(?P<several>{several})(?P<owner>'s?)?(?![\w-])"
        r"|(?<!\w)(?P<spelt>[^\W\d_](?:[ .\-_][^\W\d_]){3,})(?!\w)|(?P<leet>[^\W\d_]+\d+[^\W\d_]+)(?!\w)"
        r"|(?P<word>[^\W\d_]+(?:['-][^\W\d_]+)*(?:(?<=s)')?)|(?P<number>\d+)|(?P<space> +)|(?P<punct>.)"
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


def scan(text: str, policy: Policy, allowed: tuple[str, ...] = ()) -> list[Token]:
    """Tokens whose texts, joined, are `text`. allowed: spans that the user lets through as they are."""
    starts = set(_START.findall(text))
    known = [span for start in starts for span in policy.phrases.get(start, ()) if span in text]
    several = tuple(sorted(word for start in starts for word in policy.several_words.get(start, ()) if word in text))
    whole = tuple(sorted([*known, *(span for span in allowed if span in text)]))
    pattern = _patterns(_Hashable(policy), whole, several)
    return [_token(m, policy) for m in pattern.finditer(text)]


def _token(m: re.Match[str], policy: Policy) -> Token:
    text = m[0]
    if m.lastgroup == "word":
        return _written(text, _Hashable(policy))
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
        years = _number(m["years"]) if re.search(r"ye?a?rs?", text) else 0
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
            stage = "child" if group == "under" else policy.stage_of_years(_number(m[group]) - (group == "below"))
            if group in ("said", "below", "paren", "during", "tens4"):
                return Token("years", text, value=stage, frame=OF_SOMEONE)
            if text.endswith("somethings"):
                return Token("noun", text, noun=Noun(None, stage, True))
            return Token("years", text, value=stage, frame=m["whose"] or "")
    if m["decade4"]:
        return Token("years", text, value=policy.stage_of_years(_DECADES[m["decade4"]]), frame=OF_SOMEONE)
    for group in ("decade", "decade2", "decade3"):
        if m[group]:
            return Token("years", text, value=policy.stage_of_years(_DECADES[m[group]]), frame=m["whose"] or "")
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
def _written(text: str, by: _Hashable) -> Token:
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


def _number(text: str) -> int:
    """Of a range the lower end."""
    if (digits := re.match(r"\d+", text)) is not None:
        return int(digits[0])
    return sum(SPELLED[w] for w in re.split("[ -]", text))


def _word(word: str, text: str, possessive: bool, policy: Policy) -> Token:
    return _look_up(word, text, possessive, _Hashable(policy))


@lru_cache(maxsize=20_000)
def _look_up(word: str, text: str, possessive: bool, by: _Hashable) -> Token:
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
