"""The pattern by which a prompt is cut into tokens: ages as people write them, skin tones, names of several words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from obclip.edge.oblivious.marks import MARK
from obclip.edge.oblivious.policy import Policy

DECADES = {"teens": 15, "twenties": 20, "thirties": 30, "forties": 40, "fifties": 50, "sixties": 60}
DECADES |= {"seventies": 70, "eighties": 80, "nineties": 90, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50}
DECADES |= {"sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
_UNITS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
          "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")  # fmt: skip
SPELLED = {w: i + 1 for i, w in enumerate(_UNITS)} | {w: n for w, n in DECADES.items() if w.endswith("y")}
SPELLED["hundred"] = 100
_NEVER = r"(?!)"
_FRAMES = "[ -]?skinn?ed|-toned|[ -]complexioned|[ -]complected|[ -]?skin(?:[ -]?tones?)?|[ -]complexion"


@dataclass(frozen=True, eq=False)
class Hashable:
    """A policy as a cache key: policies hold dictionaries, so they are compared by identity."""

    policy: Policy

    def __hash__(self) -> int:
        return id(self.policy)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hashable) and other.policy is self.policy


@lru_cache(maxsize=256)
def token_pattern(policy: Hashable, whole: tuple[str, ...], several_words: tuple[str, ...]) -> re.Pattern[str]:
    """whole: spans that stay as they are; several_words: known words with a space, dot or hyphen. Only those that the
    text has: one pattern of all of them would take longer to compile than every prompt to read."""
    tones = _alternatives(policy.policy.tones)
    phrases, several = _alternatives(whole) or _NEVER, _alternatives(several_words) or _NEVER
    decades = "|".join(w for w in DECADES if w.endswith("s"))
    spelled = "|".join(sorted(SPELLED, key=len, reverse=True))
    spelled_out = rf"(?:(?:{spelled})[ -])?(?:{spelled})"
    decades_said = "|".join(w for w in DECADES if w.endswith("y"))
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
        rf"|{lead}(?:(?:of )?(?:{about}|over|under|below) |~ ?)?(?P<years>{number})[ -]?"
        r"(?:years?|yrs?|months?|weeks?|days?)[ -]?(?:old|of age)(?!\w)"
        rf"|(?<!\w)(?P<olds>{number})[ -]years?[ -]olds(?!\w)"
        rf"|{lead}(?P<short>\d{{1,3}}(?:-\d{{1,3}})?)[ -]?(?:yo|y/o|y\.o\.?|yrs? old|yr old|y(?=,|$))(?!\w)"
        rf"|{lead}(?:aged? ?[:=-] ?|aged? |(?:{at_age}) (?:the )?age (?:of )?)(?:of |over |under |below |(?:{about}) )?"
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


def _alternatives(words: object) -> str:
    ordered = sorted(set(words), key=lambda w: (-len(w), w))  # type: ignore[call-overload]
    return "|".join(re.escape(w) for w in ordered)
