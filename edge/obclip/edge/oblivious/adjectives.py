"""Adjectives, ages and skin tones: whom they describe, if anybody."""

from __future__ import annotations

import re

from obclip.core.errors import PrivacyError
from obclip.edge.oblivious.loose import Loose
from obclip.edge.oblivious.nouns import DESCRIBING, may_be_someone
from obclip.edge.oblivious.reading import DETERMINERS, GROUPS, WAYS_OUT, base
from obclip.edge.oblivious.template import Person
from obclip.edge.oblivious.tokens import STOP

_REACH = 6  # words between an adjective and the person it describes
_CROSSED = frozenset({",", "and", "or", "but", "&", "/"})
_PEOPLES_ONLY = frozenset({"elderly", "geriatric"})
_THINGS_TOO = frozenset({"old", "young", "older", "younger", "oldest", "youngest"})
_OF_ITS_PART = re.compile(r"\w*(?:haired|eyed|lipped|winged|furred|feathered|maned|clad|robed|gowned|nailed)$")
_OF_THOSE_NAMED = frozenset({"one", "ones", "me", "myself", "self", "version", "versions"})
_SHOTS = frozenset({"photo", "photograph", "photography", "shoot", "shot"})
_HOW = frozenset({"very", "rather", "quite", "extremely", "slightly", "deathly", "naturally", "really"})
_HOW_MUCH = _HOW | {"heavily", "visibly", "obviously", "noticeably", "openly", "legally", "severely", "fully"}
_DOER = re.compile(r"\w{3,}(?:ers?|ors?|ists?)$")
_COMPARED = frozenset({"older", "oldest", "elder", "eldest", "younger", "youngest"})


class Adjectives(Loose):
    def _attach_adjectives(self) -> None:
        self._refuse_loose()
        for i, token in enumerate(self.tokens):
            if token.kind not in ("adjective", "years") or i in self.dropped or i in self.public:
                continue
            near = token.text in self.policy.public_adjectives
            relative = self._relative(i) if i > 1 and self.tokens[i - 2].text in ("is", "are") else None
            if token.kind == "adjective" and self._is_half(i, near):
                raise PrivacyError(f"{token.text!r} is half of a person's ethnicity and cannot be placed; {WAYS_OUT}")
            if token.kind == "adjective" and relative is None and self._is_said_by_verb(i, near):
                raise PrivacyError(
                    f"{token.text!r} is said of someone by a verb and cannot be placed; put it right before the person "
                    "word, leave it out, or let it through with --allow"
                )
            head = self._owner_of_years(i) if token.kind == "years" else relative
            if head is None and token.kind == "adjective":
                head = self._head_after(i, near=near)
            if head is None and not near and self._is_tag(i):
                head = self._count()
                if head is not None and (comma := self._next(i, -1)) is not None and self._text(comma) == ",":
                    self._drop(comma)
            if head is None and near and self._is_tag(i) and self._has_people():
                raise PrivacyError(may_be_someone(token.text))
            if head is None:
                skin = token.attribute == "skin" and not near
                if near or (i in self.public and not skin) or self._is_language(i):
                    continue
                raise PrivacyError(
                    f"{token.text.strip(' ,')!r} may be about a person but stands by no person word; "
                    "put it right before one, leave it out, or let it through with --allow"
                )
            if token.text in _COMPARED and self._is_child(head):
                continue
            person = self._person_at(head)
            if token.kind == "adjective" and token.value == "child" and self.policy.minors:
                self.stages.setdefault(person, []).append("child")  # public, as it stands
                self.people[person].childlike = True
                self._note(i, "child", person)
                continue
            if token.kind == "years" or token.attribute == "age":
                self.stages.setdefault(person, []).append(token.value)
                self._note(i, "child" if token.value == "child" else "age", person)
                if token.frame in ("his", "her"):
                    self.people[person].sexed = True
                    self._set(person, "gender", "woman" if token.frame == "her" else "man", i)
            else:
                self._set(person, token.attribute, token.value, i)
                self.people[person].skinned |= token.attribute == "skin"
                gender = self.policy.gender_of_people(token.text)
                one = self.tokens[head].kind == "people" and self.tokens[head].text not in GROUPS
                if gender == "woman" or (gender and one):
                    self.people[person].sexed = True
                    self._set(person, "gender", gender, i)
            if token.kind != "years" or not self._is_tag(i):
                self.place.setdefault(head, i)
            how = self._next(i, -1)
            taken = _HOW if token.attribute == "skin" else _HOW_MUCH if token.attribute in self.policy.forms else ()
            if how is not None and self._text(how) in taken:  # no other value takes it along
                self._drop(how)
            self._drop(i)
            self._drop_joint(i)

    def _relative(self, i: int) -> int | None:
        """The person of "a woman who is old"; None where the adjective is not said so."""
        verb = self._next(i, -1)
        who = None if verb is None else self._next(verb, -1)
        head = None if who is None or self._text(who) != "who" else self._next(who, -1)
        if verb is None or who is None or head is None or not self._is_person(head):
            return None
        return head if self._closes(i) and self._leave_clause(i, who) else None

    def _is_half(self, i: int, near: bool) -> bool:
        """ "Half asian half white woman", not "half black half white dress"."""
        if self._text(self._next(i, -1)) != "half" or self.tokens[i].attribute != "ethnicity":
            return False
        j = self._next(i)
        while j is not None and (self._text(j) == "half" or self.tokens[j].kind == "adjective"):
            j = self._next(j)
        return self._has_people() and not (near and self._kind(j) == "thing")

    def _owner_of_years(self, i: int) -> int | None:
        """'a 30-year-old woman', 'a woman, aged 30', 'a 10 year old building'."""
        after, before = self._next(i), self._last_noun_before(i)
        if (
            after is not None
            and self.tokens[after].kind in ("noun", "people")
            and not self.tokens[i].text.startswith(",")
        ):
            return after
        if before is None:
            spoken_of = any(t.kind == "pronoun" for t in self.tokens[:i])
            only = [j for j, t in enumerate(self.tokens) if t.kind == "people" or j in self.owner]
            if self._is_tag(i) and len(only) == 1:  # "25yo, woman, smile"
                return only[0]
            return None if spoken_of else self._head_after(i, near=False)
        if after is not None and self.tokens[after].kind == "thing" and self._text(self._next(i, -1)) in DETERMINERS:
            self.public.add(i)
            return None
        return before

    def _is_child(self, head: int) -> bool:
        """'an older girl', beside another: children compared, under a policy that keeps children apart."""
        noun = self.tokens[head].noun
        return self.policy.minors and noun is not None and noun.stage == "child"

    def _drop_joint(self, i: int) -> None:
        """'young, smiling woman' or 'old and tired man' without the adjective is 'smiling woman', 'tired man'."""
        j = self._next(i)
        if j is not None and self.tokens[j].text in _CROSSED and self.tokens[i].kind == "adjective":
            before = self._next(i, -1)
            starts = self._text(before) in DETERMINERS or self._text(before) in STOP
            if before is None or starts or self.tokens[before].kind == "punct":
                self._drop(j)
                again = self._next(j)
                if again is not None and self._text(before) in ("a", "an") and self._text(again) in ("a", "an"):
                    self._drop(again)
                self.dropped.discard(i - 1)  # with no space behind the adjective the one before it went

    def _is_language(self, i: int) -> bool:
        """'a sign in chinese', 'written in french'."""
        return self.tokens[i].attribute == "ethnicity" and self._text(self._next(i, -1)) in ("in", "into", "from")

    def _head_after(self, i: int, near: bool) -> int | None:
        """The person word that the adjective at i describes; marks i public if it describes a thing instead.

        PrivacyError for what describes a part of someone, or stands alone beside people.
        """
        mine = self.tokens[i]
        begins = self._next(i, -1) is None and mine.text in _THINGS_TOO  # "old, rusty car", but "old, long hair"
        tag = self._is_tag(i) and self._has_people()
        j, words, things, last, animal, of_somebody = self._next(i), 0, 0, i, False, False
        while j is not None and words <= _REACH:
            token, follower = self.tokens[j], self._next(j)
            if token.kind in ("noun", "people") and j not in self.public:
                return j
            if not things and self._is_somebodys(i, j, near):
                raise PrivacyError(may_be_someone(mine.text))
            if token.kind == "phrase" or j in self.public:
                if token.kind == "phrase" and not near and re.search(r"(?:wo)?m[ae]n$", token.text):
                    raise PrivacyError(f"{mine.text!r} beside {token.text!r} cannot be placed; {WAYS_OUT}")
                things += 1
                break
            worn = token.text in self.context["coloured"] and self._kind(follower) != "people"
            if near and last == i and (_OF_ITS_PART.match(token.text) or worn):
                self.public.add(i)
                return None
            if token.text in _CROSSED:
                k = self._next(j)
                begun = self._text(self._next(i, -1)) in DETERMINERS
                if k is not None and self.tokens[k].text in ("a", "an") and not things and begun:
                    last, j = k, self._next(k)
                    continue
                if things or k is None:
                    break
                if self.tokens[k].kind not in ("adjective", "word", "tone", "years") and not self._is_by_noun(k):
                    break
                if self.tokens[k].text in STOP:
                    break
            elif token.kind in ("punct", "pronoun") or token.text in STOP:
                break
            elif token.kind == "thing":
                things += 1
                of_somebody = (
                    of_somebody or token.text in self.context["coloured"] or token.text in self.context["human"]
                )
                doing = self.tokens[last].text.endswith("ing")  # "an elderly feeding pigeons"
                animal = self.policy.lexicon.is_animal(base(token.text)) and not doing
                if animal and not self._is_before_person(j):
                    break
            elif token.kind not in ("adjective", "years", "tone") and near and not things:
                words += 1
                if not self._leads_to_person(j):
                    if _DOER.match(token.text) and not self.policy.lexicon.is_noun(token.text) and self._closes(j):
                        raise PrivacyError(may_be_someone(mine.text))
                    break
            else:
                words += token.kind == "word"
            last, j = j, self._next(j)
        if (tag and (of_somebody or not begins)) or (
            (mine.text in _PEOPLES_ONLY or (mine.value == "middle-aged" and not near)) and not animal
        ):
            return None
        if things or (
            last != i
            and self.tokens[last].kind == "word"
            and self.tokens[last].text not in DESCRIBING
            and self.policy.lexicon.is_noun(self.tokens[last].text)
        ):
            self.public.add(i)
        return None

    def _is_by_noun(self, k: int) -> bool:
        """Whether the word at k stands right before a person: "an old, punk woman"."""
        return self.tokens[k].kind in ("thing", "people") and self._kind(self._next(k)) == "noun"

    def _is_somebodys(self, i: int, j: int, near: bool) -> bool:
        """ "Old hands", "asian features", "of african descent", "a man and a young one"; of colours "black hands", not
        "black hair"."""
        words = set(self.context["human_coloured" if near and self.tokens[i].attribute != "age" else "human"])
        if self._text(j) in _OF_THOSE_NAMED:
            k = self._next(j)
            while k is not None and (self._text(k) == "of" or self._text(k) in DETERMINERS):
                k = self._next(k)
            of_a_thing = self._text(j).startswith("version") and self._kind(k) == "thing" and self._text(k) != "me"
            return self._has_people() and not of_a_thing
        if self.tokens[i].attribute == "skin":
            words |= set(self.context["human_skinned"])
        if self.tokens[i].attribute == "ethnicity" and not near:
            words |= set(self.context["human_shown"])
        if self.tokens[j].kind == "phrase" or base(self.tokens[j].text) not in words:
            return False
        after = self._next(j)
        return self._kind(after) not in ("thing", "noun", "people") or self._text(after) in _SHOTS

    def _resolve_ages(self) -> None:
        for person, found in self.stages.items():
            nouns = {s[5:] for s in found if s.startswith("noun:")}
            others = {s for s in found if not s.startswith("noun:")}
            if "child" in nouns or "child" in others:
                if (nouns | others) - {"child", "young"}:
                    raise PrivacyError("the prompt calls one person both a child and an adult; say one")
                stages = {"child"}
            else:
                stages = others | (nouns - {"adult"} if others else nouns)
            values = {self.policy.age_value(s) for s in stages}
            if stages == {"child"} and "child" not in self.policy.stages:
                if not self.policy.minors:
                    raise PrivacyError("the prompt is about a child, which this policy does not hide")
                self.people[person].minor = True
            elif values - {None}:
                for value in sorted(v for v in values if v):
                    self._set(person, "age", value)
            elif "age" in self.policy.refused and stages - {"adult"}:
                self._set(person, "age", next(iter(stages)))

    def _attach_tones(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for i, token in enumerate(self.tokens):
            if token.kind != "tone":
                continue
            before = self._next(i, -1)
            if before is not None and self.tokens[before].text in self.policy.tones:
                raise PrivacyError(
                    "the skin tone has two words; use one of light, medium-light, medium, medium-dark, dark"
                )
            head = self._last_noun_before(i)
            if head is None:
                head = min(self.owner, default=None)
            if head is None:
                self.people.append(Person())
                found[i] = len(self.people) - 1
            else:
                found[i] = self._person_at(head)
            self._set(found[i], "skin", token.value, i)
        return found
