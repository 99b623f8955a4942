"""Ages that no pattern places: "a man who looks 50", "20s woman", "she is 25", "her sixtieth birthday"."""

from __future__ import annotations

from dataclasses import replace

from obclip.core.errors import PrivacyError
from obclip.edge.oblivious.nouns import DESCRIBING
from obclip.edge.oblivious.patterns import SPELLED
from obclip.edge.oblivious.tags import Tags
from obclip.edge.oblivious.tokens import AN_AGE, OF_SOMEONE, STOP

IS = frozenset({"is", "are", "was", "were", "looks", "look", "looking", "seems", "being", "be", "feels", "am"})
# behind these a number may be an age, and before them nobody stands whose it would be
_AGING = frozenset({"looks", "look", "looking", "turns", "turning", "turned", "pushing", "nearing", "approaching"})
SELVES = frozenset({"i", "im", "me", "myself", "we", "us", "you", "they"})
# between someone and what is said of them: "appears to be black", "is not very black", "half black", "ethnicity black"
_SAYING = (
    "is are was were am isn't aren't wasn't weren't isnt arent be been being to not very so really quite rather half "
    "part mostly preferably also both all as appears appear appearing seems seem looks look looking identifies "
    "identify must should could would might may will who that but that's he's she's they're race ethnicity"
)
SAYS = frozenset(_SAYING.split())
_YEARS = frozenset({"year", "years", "yr", "yrs"})
_NOW = frozenset({"now", "today", "already"})
_TENS = tuple(w for w in SPELLED if w.endswith("ty"))
_SAID = SPELLED | {f"{t}-{w}": SPELLED[t] + n for t in _TENS for w, n in SPELLED.items() if n < 10}
_BIRTHDAYS = frozenset({"eighteenth", "nineteenth", "hundredth", *(f"{t[:-1]}ieth" for t in _TENS)})
NUMBERS = _BIRTHDAYS | _SAID.keys()
_NUMBERED = frozenset({"number", "no", "route", "highway"})


class Ages(Tags):
    def _settle_years(self, i: int) -> None:
        """An age that is one only behind a person, or said of a thing by a verb, becomes words; "who is 45 years old"
        goes whole. PrivacyError for "she is 25"."""
        token, before = self.tokens[i], self._next(i, -1)
        one = token.text.strip(" ,").startswith("of ")  # "a woman of forty", not "women of forty nations"
        words = token.frame == OF_SOMEONE and not self._is_person(before, plural=not one)
        if self._text(before) in IS and before is not None:
            subject = self._next(before, -1)
            if self._text(subject) == "who" and subject is not None:
                if not self._leave_clause(i, subject):
                    self._drop_clause(i, subject)
                return
            if self._is_person(subject) or self._kind(subject) == "pronoun" or self._text(subject) in SELVES:
                raise PrivacyError(
                    f"{token.text!r} is said of someone by a verb and cannot be placed; say 'a 25-year-old woman', "
                    "leave it out, or let it through with --allow"
                )
            words = True
        if words and before is None and self._closes(i) and self._has_people():
            raise PrivacyError(
                f"{token.text!r} may be someone's age and cannot be placed; say 'a 60-year-old woman', leave it "
                "out, or let it through with --allow"
            )
        if words:
            self.tokens[i] = replace(token, kind="word", frame="")

    def _leave_clause(self, i: int, who: int) -> bool:
        """Drop "who is" of "a woman who is old", and the "and" of "who is old and tired"; False for other clauses."""
        joint = self._next(i)
        if joint is None or self._text(joint) not in ("and", "or", "but", "&", "/"):
            self._drop_clause(i, who)
            return True
        after = self._next(joint)
        describing = self._text(after) in DESCRIBING or (self._kind(after) == "word" and self._text(after) not in STOP)
        if self._text(joint) != "and" or not describing:
            return False
        self._drop(joint)
        return True

    def _drop_clause(self, i: int, who: int) -> None:
        """Leave out "who is" before i, and the space before it where none is behind i."""
        spaced = i + 1 < len(self.tokens) and self.tokens[i + 1].kind == "space"
        self.dropped |= set(range(who if spaced else who - 1, i))

    def _is_loose_age(self, i: int) -> bool:
        """Whether a number, or "sixtieth" before "birthday", may be someone's age."""
        if self.tokens[i].text in _BIRTHDAYS:
            return self._text(self._next(i)) == "birthday" and self._has_people()
        return self._may_be_age(i)

    def _may_be_age(self, i: int) -> bool:
        """ "20s woman", "looks 50", "who's 60", "born in 1950", "I am 45", "woman 25", "25 year woman", "her 70th
        birthday"."""
        text, before, after = self.tokens[i].text, self._next(i, -1), self._next(i)
        if self._text(before) == "born" and len(text) == 4:
            return True
        if self._is_age_beside(i, before, after):
            return True
        decade = text.isdigit() and len(text) == 2 and text.endswith("0")
        if decade and after is not None and self._text(after) == "s" and self._is_person(self._next(after)):
            return True
        if len(text) == 4 and text.isdigit() and self._text(before) == "in" and before is not None:
            return self._text(self._next(before, -1)) == "born"
        said = self._text(before) in {*_AGING, "i'm", "im"} or (
            self._text(before).endswith("'s") and self._has_people()
        )
        return (said or self._is_by_a_person(before)) and (self._closes(i) or self._text(after) in _NOW)

    def _is_by_a_person(self, verb: int | None) -> bool:
        """Whether "is" or "must be" at `verb` says something of someone."""
        if verb is None or self._text(verb) not in {*IS, "be"} - _AGING:
            return False
        subject = self._next(verb, -1)
        if subject is not None and self._text(subject) in SAYS:  # "must"
            subject = self._next(subject, -1)
        return self._is_person(subject) or self._kind(subject) == "pronoun" or self._text(subject) in SELVES

    def _is_age_beside(self, i: int, before: int | None, after: int | None) -> bool:
        """Of a number beside someone, or beside nobody: "25 woman", "woman 25", "woman (20s)", "woman, ~70"."""
        text = self.tokens[i].text
        beyond = None if after is None else self._next(after)
        if self._text(after) == "th" and self._text(beyond) == "birthday":
            return self._has_people()
        if not AN_AGE <= (int(text) if text.isdigit() else _SAID[text]) <= 99:
            return False
        if self._text(after) in _YEARS and self._kind(beyond) == "noun" and self._is_person(beyond):
            return True
        if self._text(after) == "s" and after is not None:
            marked = self._is_person(before) or self._text(before) in ("(", "[", ",")
            return text.endswith("0") and marked and self._has_people() and self._closes(after)
        if self._text(before) == "~":
            return self._has_people() and self._closes(i)
        if self._kind(after) == "noun" and self._is_person(after, plural=False):
            counted = self._kind(beyond) in ("noun", "people", "thing")  # "a 15 man crew"
            return not counted and self._text(before) not in _NUMBERED
        last = after if after is not None and self._text(after) in _YEARS else i
        ratio = i + 1 < len(self.tokens) and self.tokens[i + 1].text in (":", "%", "/")
        someone = self._kind(before) == "noun" and self._is_person(before, plural=False)
        return someone and not ratio and self._closes(last)
