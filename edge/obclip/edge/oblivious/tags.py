"""How people write for Stable Diffusion: counts ("1girl"), tags, a weight on one word ("(old:1.2) woman")."""

from __future__ import annotations

import re
from dataclasses import replace

from obclip.edge.oblivious.nouns import ACTS, DESCRIBING, Nouns
from obclip.edge.oblivious.reading import GROUPS
from obclip.edge.oblivious.template import Person
from obclip.edge.oblivious.tokens import AN_AGE, STOP, Token

_JOINS = frozenset({"-", "/", "&"})
_OPEN, _CLOSE = frozenset("([{"), frozenset(")]}")


def with_counts(tokens: list[Token]) -> list[Token]:
    """`tokens`, with a number that sticks to a noun as a part of it: "1girl" has "1boy" beside it, and no age.

    A number that may be an age ("25woman") stays one.
    """
    found: list[Token] = []
    for token in tokens:
        noun = token.noun
        plain = noun is not None and noun.gender and not (noun.role or noun.neutral_role)
        counted = found and found[-1].kind == "number" and int(found[-1].text) < AN_AGE
        if noun is None or not plain or not counted:
            found.append(token)
            continue
        count, young = found.pop().text, noun.stage == "child"
        names = ("boy", "girl") if young else ("men", "women") if noun.plural else ("man", "woman")
        ending = "s" if young and noun.plural else ""
        role = (f"{count}{names[0]}{ending}", f"{count}{names[1]}{ending}")
        stage = None if young else noun.stage
        found.append(replace(token, text=count + token.text, noun=replace(noun, stage=stage, role=role)))
    return found


def with_commas(tokens: list[Token]) -> list[Token]:
    """`tokens`, with the comma before an age apart where the age is of the person behind it: "photo, 25yo woman"."""
    found: list[Token] = []
    for i, token in enumerate(tokens):
        if token.kind == "years" and token.text.startswith(",") and _describes_next(tokens[i + 1 :]):
            found += [Token("punct", ","), Token("space", " ")]
            found.append(replace(token, text=token.text.lstrip(", ")))
        else:
            found.append(token)
    return found


def _describes_next(after: list[Token]) -> bool:
    for token in after:
        if token.kind in ("noun", "people"):
            return True
        plain = token.kind == "word" and token.text not in STOP and not token.text.endswith("ing")
        if not plain and token.kind not in ("space", "adjective"):
            return False
    return False


class Tags(Nouns):
    def _unwrap(self) -> None:
        """ "(old:1.2) woman", "((asian)) woman": brackets around no more than what describes a person behind them go,
        and the weight with them."""
        for i in reversed(range(len(self.tokens))):
            if self.tokens[i].kind not in ("adjective", "years"):
                continue
            start = i
            while start > 0 and self.tokens[start - 1].text in _OPEN:
                start -= 1
            end = i + 1
            while end < len(self.tokens) and (self.tokens[end].text in ":." or self.tokens[end].kind == "number"):
                end += 1
            closed = end
            while closed < len(self.tokens) and self.tokens[closed].text in _CLOSE:
                closed += 1
            if start < i and closed > end and self._is_of_someone(closed - 1):
                self.dropped |= {*range(start, i), *range(i + 1, closed)}

    def _is_of_someone(self, end: int) -> bool:
        """Whether brackets that end there are before a person, or are a tag of the one person that is counted."""
        tag = self._kind(self._next(end)) in ("", "punct")
        return self._count() is not None if tag else self._leads_to_person(end)

    def _find_people(self) -> None:
        count = self._count()
        for i, token in enumerate(self.tokens):
            if token.kind != "noun" or i in self.dropped or i in self.public:
                continue
            assert token.noun is not None
            first = self._counted(i, count)
            if first is None:
                self.people.append(Person())
            else:
                self.tokens[first] = replace(self.tokens[first], frame="apart")
            person = self.owner[i] = len(self.people) - 1 if first is None else self.owner[first]
            if token.noun.gender:
                self._set(person, "gender", token.noun.gender, i)
            if token.noun.ethnicity:
                self._set(person, "ethnicity", token.noun.ethnicity, i)
            if token.attribute:
                self._set(person, token.attribute, token.value, i)
                self.people[person].skinned |= token.attribute == "skin"
            if token.noun.stage:
                self.stages.setdefault(person, []).append("noun:" + token.noun.stage)
                self._note(i, "child" if token.noun.stage == "child" else "age", person)

    def _count(self) -> int | None:
        """Where the one person that the prompt counts stands ("1girl"); None where it counts several, or nobody."""
        counts = [k for k, t in enumerate(self.tokens) if t.kind == "noun" and t.text[0].isdigit()]
        single = len(counts) == 1 and re.match(r"1(?!\d)", self.tokens[counts[0]].text)
        return counts[0] if single else None

    def _counted(self, i: int, first: int | None) -> int | None:
        """The same, if the tag at i says more of that person: "1girl, mature female", "1girl, female focus"."""
        noun = self.tokens[i].noun
        if first is None or first >= i or noun is None or noun.plural or noun.role or not noun.gender:
            return None
        after = self._next(i)
        if after is not None and self.tokens[after].kind != "punct" and self._text(after) != "focus":
            return None
        j = self._next(i, -1)
        while j is not None and self.tokens[j].kind in ("adjective", "years", "word") and self._text(j) not in STOP:
            j = self._next(j, -1)
        return first if self._text(j) in (",", "(") else None

    def _is_person(self, j: int | None, plural: bool = True) -> bool:
        if j is None or j in self.public or self.tokens[j].kind not in ("noun", "people"):
            return False
        noun, text = self.tokens[j].noun, self.tokens[j].text
        several = noun.plural if noun is not None else text in GROUPS or text.endswith("s")
        return plural or not several

    def _closes(self, i: int) -> bool:
        """Whether no noun that the word at i could describe follows it."""
        j = self._next(i)
        if j is None or self.tokens[j].kind in ("punct", "pronoun"):
            return not self._joins(j)
        text = self.tokens[j].text
        if text in ("and", "or", "but"):
            k = self._next(j)
            text = self._text(k)
            plain = k is not None and self.tokens[k].kind == "word" and not self.policy.lexicon.is_noun(text)
            return k is None or ((plain or text in DESCRIBING) and self._closes(k))
        return text in STOP or text in ACTS

    def _is_tag(self, i: int) -> bool:
        """Whether the adjective at i stands alone between commas or brackets: "woman, black, curly hair"."""
        before = self._next(i, -1)
        marked = before is None or (self.tokens[before].kind == "punct" and not self._joins(before))
        return marked and self._closes(i)

    def _joins(self, j: int | None) -> bool:
        """Whether the mark at j joins two words; "-" and "/" between spaces do not ("a doctor - black - smiling")."""
        if j is None or self._text(j) not in _JOINS:
            return False
        beside = [self.tokens[k] for k in (j - 1, j + 1) if 0 <= k < len(self.tokens)]
        return self._text(j) == "&" or not any(t.kind == "space" or t.text == "-" for t in beside)

    def _has_people(self) -> bool:
        return bool(self.owner) or any(
            t.kind in ("people", "pronoun") or t.text in ("i", "i'm", "im", "me", "myself") for t in self.tokens
        )
