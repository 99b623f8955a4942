"""Nouns for people: which words are one person, which are none, and which adjectives stand for one."""

from __future__ import annotations

from dataclasses import replace

from obclip.core.errors import PrivacyError
from obclip.edge.oblivious.naming import Naming
from obclip.edge.oblivious.policy import Noun
from obclip.edge.oblivious.reading import DETERMINERS, WAYS_OUT, base
from obclip.edge.oblivious.tokens import STOP, Token

_PLURAL = frozenset({"the", "two", "three", "some", "several", "many", "few", "both"})
_OF_THINGS_TOO = frozenset({"old", "young", "older", "younger", "youngest", "oldest"})
# what only a person does, so that an adjective right before it is one: "a young playing tennis"
_DOING = (
    "playing eating holding wearing talking kicking throwing hitting catching watching making taking using drinking"
)
ACTS = frozenset(_DOING.split())
_MOVING = "sitting standing walking running riding jumping dancing smiling sleeping posing waiting looking"
_BODILY = ACTS | frozenset(_MOVING.split())
# the lexicon counts them among things or people, too
_LOOKS = """
tall short fat small little smiling blind rich poor cool funny skinny fit calm quiet sick lovely brave drunk wise stern
grave plain kind sweet lean sharp rough tough tender evil bad good nice mean shy wild savage noble royal holy nude lame
deaf mute ill frail thick plump petite giant large great grand average idle active stoic glad jolly upset single married
homeless religious weird silly goofy fancy chic gothic smart stupid unknown mystic divine modern ancient formal wet
clean bold heroic faithful local professional amateur cold dead captive lost wounded buff innocent friendly bitter crazy
primitive simple common ordinary normal regular real perfect ideal epic
"""
DESCRIBING = frozenset(_LOOKS.split())
_HAIR = frozenset({"blond", "brunette", "redhead"})
# public elsewhere, but no colours: alone they are people
_PEOPLES = frozenset({"american", "native"})
_LINKS = "in with on at from who whose by near beside behind under is has"
_ABOUT_SOMEONE = frozenset(_LINKS.split())


class Nouns(Naming):
    def _refuse_unplaceable(self, i: int, token: Token) -> None:
        if token.kind == "refused":
            raise PrivacyError(f"{token.text!r} {token.value}; {WAYS_OUT}")
        if token.kind in ("word", "name") and "-" in token.text:
            for part in token.text.split("-"):
                noun = self.policy.nouns.get(part)
                adjective = part in self.policy.adjectives and part not in self.policy.public_adjectives
                if (noun and noun.gender) or adjective:
                    raise PrivacyError(f"{token.text!r} contains a protected word and cannot be placed; {WAYS_OUT}")

    def _describing(self) -> None:
        """ "Smiling", "rich" and the like before a person or an adjective are words that describe, no things."""
        for i, token in reversed(list(enumerate(self.tokens))):
            if token.text in _HAIR and self._is_hair(i):
                self.tokens[i] = replace(token, kind="word")
            if token.text not in DESCRIBING or token.kind not in ("thing", "people"):
                continue
            j, kinds = self._next(i), {"noun", "people", "adjective", "years"}
            if j is not None and self._text(j) in (",", "and"):
                j, kinds = self._next(j), kinds | {"word"}
            if j is not None and self.tokens[j].kind in kinds:
                self.tokens[i] = replace(token, kind="word")

    def _is_hair(self, i: int) -> bool:
        """ "Blond hair", "long blond curls": no person."""
        j = self._next(i)
        return j is not None and self.tokens[j].kind == "thing"

    def _animals(self) -> None:
        """'mother duck', 'a male lion', 'male connector', 'baby elephant': about no person, so public."""
        for i, token in enumerate(self.tokens):
            j = self._next(i)
            if token.kind not in ("noun", "adjective") or j is None:
                continue
            for _ in range(2):
                word = self.tokens[j].text
                if self.tokens[j].kind in ("word", "adjective") and word not in STOP and not word.endswith("ing"):
                    j = self._next(j) or j
            thing = base(self.tokens[j].text)
            sexless = token.text in ("male", "female") and thing in self.context["not_sexed"]
            young = base(token.text) in self.context["animal_people"]
            animal = young and self.tokens[j].kind == "thing" and self.policy.lexicon.is_animal(thing)
            if (sexless or animal) and not self._is_before_person(j):
                self.public.add(i)

    def _is_before_person(self, j: int) -> bool:
        """Whether the thing at j is what a person is of: "cat lady", "fish market vendor"."""
        k = self._next(j)
        while k is not None and self.tokens[k].kind == "thing":
            k = self._next(k)
        return k is not None and self.tokens[k].kind in ("noun", "people")

    def _merge_nouns(self) -> None:
        """'female teenager', 'child actress', 'boy king': one person, described by the last noun."""
        merged: dict[int, Token] = {}
        for i, token in enumerate(self.tokens):
            j = self._next(i)
            if token.kind != "noun" or j is None or i in self.public or i in self.dropped:
                continue
            if self.tokens[j].kind == "noun" and j not in self.public and not token.possessive:
                first, second = merged.get(i, token).noun, self.tokens[j].noun
                assert first is not None
                assert second is not None
                plain = first.stage is None and bool(second.role or second.neutral_role)  # "a female hero" is a heroine
                clash = first.gender and second.gender and first.gender != second.gender and not plain
                if first.role or first.neutral_role or clash:
                    raise PrivacyError(f"{token.text!r} beside {self.tokens[j].text!r} cannot be placed; {WAYS_OUT}")
                both = replace(
                    second,
                    gender=(plain and first.gender) or second.gender or first.gender,
                    stage=second.stage or first.stage,
                    ethnicity=second.ethnicity or first.ethnicity,
                )
                if first.stage and second.stage:
                    self._note(i, "child" if first.stage == "child" else "age", len(self.people))
                merged[j] = replace(self.tokens[j], text=f"{token.text} {self.tokens[j].text}", noun=both)
                self._drop(i)
        for j, token in merged.items():
            self.tokens[j] = token

    def _people_of_adjectives(self) -> None:
        """'the elderly', 'two asians', 'an italian walking': an adjective that stands for a person."""
        for i, token in enumerate(self.tokens):
            if token.kind != "adjective" or i in self.dropped or i in self.public or not self._stands_alone(i):
                continue
            before = self._text(self._next(i, -1))
            noun = Noun(None, None, plural=token.frame == "plural" or before in _PLURAL)
            if token.attribute == "age":
                self.tokens[i] = Token("noun", token.text, noun=replace(noun, stage=token.value))
            elif token.attribute == "ethnicity":
                gender = self.policy.gender_of_people(token.text)
                self.tokens[i] = Token("noun", token.text, noun=replace(noun, gender=gender, ethnicity=token.value))
            else:
                self.tokens[i] = Token(
                    "noun", token.text, noun=noun, attribute=token.attribute, value=token.value, frame=token.frame
                )

    def _stands_alone(self, i: int) -> bool:
        """Whether the adjective at i is a noun for a person: "asians", "the elderly", "an asian", "a young playing"."""
        token, before, after = self.tokens[i], self._text(self._next(i, -1)), self._next(i)
        if token.frame == "plural":
            return True
        if self._leads_to_person(i):  # "an asian, tired, elegant trucker"
            return False
        if before not in DETERMINERS and not before.isdigit():
            return self._is_colour_of_someone(i, self._determiner(i), after)
        if self._text(after) in ACTS and token.value != "adult":
            return True
        if not self._is_phrase_end(after):
            return self._is_colour_of_someone(i, before, after)
        if token.text in self.policy.public_adjectives and token.text not in _PEOPLES:
            return self._is_colour_of_someone(i, before, after)
        if token.attribute == "age":
            return token.value in ("old", "young") and (token.text not in _OF_THINGS_TOO or before == "the")
        return True

    def _is_colour_of_someone(self, i: int, before: str, after: int | None) -> bool:
        """Whether a colour stands for a person, by what follows: "a white walking a dog", not "the white of an egg" or
        "a white on black". PrivacyError for what may be one: "a black in a hat", "white eating lunch"."""
        token = self.tokens[i]
        if token.text not in self.policy.public_adjectives or token.attribute not in ("ethnicity", "skin"):
            return False
        if before == "":
            return self._begins_with_someone(token.text, after)
        if before in ("the", "these", "those", "both") or not (before in DETERMINERS or before.isdigit()):
            return False
        if self._leads_to_person(i):
            return False
        if self._text(after) == "," and after is not None:
            after = self._next(after)
        beyond, word = None if after is None else self._next(after), self._text(after)
        if word in ACTS or (word == "smiling" and self._is_phrase_end(beyond)):
            return True
        if word.endswith("ing") and (self._is_phrase_end(after) or self._text(beyond) in DETERMINERS):
            return True
        coloured = beyond is not None and self.tokens[beyond].kind == "adjective"
        if word in _ABOUT_SOMEONE and not coloured:
            raise PrivacyError(may_be_someone(token.text))
        return False

    def _leads_to_person(self, j: int) -> bool:
        """'black, smiling woman', 'white bearded man', 'black, tired, elegant woman': describing words with a person
        behind them."""
        k = self._next(j)
        for _ in range(6):
            if k is None or k in self.public:
                return False
            token = self.tokens[k]
            if token.kind in ("noun", "people", "adjective"):
                return True
            if token.text not in (",", "and") and (token.kind != "word" or token.text in STOP):
                return False
            k = self._next(k)
        return False

    def _begins_with_someone(self, colour: str, after: int | None) -> bool:
        """The same of a prompt's first word: "white sitting on a bench", not "white running shoes"."""
        beyond, word = None if after is None else self._next(after), self._text(after)
        if word not in _BODILY:
            return False
        if self._text(beyond) in DETERMINERS or self._is_phrase_end(beyond):
            return True
        if word in ACTS:
            raise PrivacyError(may_be_someone(colour))
        return False

    def _determiner(self, i: int) -> str:
        """What begins the phrase of the adjective at i, past one or two words that describe it ("a tall black")."""
        j = self._next(i, -1)
        for _ in range(2):
            if j is None or self.tokens[j].text in STOP:
                break
            if self.tokens[j].kind != "word" and self.tokens[j].text not in DESCRIBING:
                break
            j = self._next(j, -1)
        return self._text(j)

    def _is_phrase_end(self, j: int | None) -> bool:
        """Whether no noun can follow: the end, a mark, a small word, or a verb in -ing, is, -s."""
        if j is None or self.tokens[j].kind in ("punct", "pronoun"):
            return self._text(j) not in (",", "-", "/")
        word = self.tokens[j].text
        if self.tokens[j].kind == "word" and (word in STOP - {"and", "or"} or word.endswith(("ing", "ed"))):
            after = self._next(j)
            chain = after is not None and self.tokens[after].kind in ("thing", "people", "noun") and word not in STOP
            return not chain
        return (
            word in ("and", "or")
            and (k := self._next(j)) is not None
            and self.tokens[k].kind not in ("adjective", "word")
        )


def may_be_someone(word: str) -> str:
    return (
        f"{word!r} may be about a person but stands by no person word; put one right behind it, leave it out, "
        "or let it through with --allow"
    )
