"""What says something of a person and stands by no person word: tags, verbs, ages and skin tones on their own."""

from __future__ import annotations

from dataclasses import replace

from obclip.core.errors import PrivacyError
from obclip.edge.oblivious.nouns import ACTS, DESCRIBING, Nouns
from obclip.edge.oblivious.reading import GROUPS, base
from obclip.edge.oblivious.tokens import OF_SOMEONE, SPELLED, STOP

_IS = frozenset({"is", "are", "was", "were", "looks", "look", "looking", "seems", "being", "be", "feels", "am"})
# behind these a number may be an age, and before them nobody stands whose it would be
_AGING = frozenset({"looks", "look", "looking", "turns", "turning", "turned", "pushing", "nearing", "approaching"})
_LINKS = "is was are were looks look like as tone tones color colour : = of the a an very so"
_LIKENS = frozenset(_LINKS.split())  # between "skin" and what it is like
_JOINS = frozenset({"-", "/", "&"})


class Loose(Nouns):
    def _refuse_loose(self) -> None:
        """What says an age or a skin tone in a way that cannot be placed: "a man who looks 50", "20s woman", "her skin
        is dark". Ages that are one only behind a person become words elsewhere."""
        for i, token in enumerate(self.tokens):
            before, after = self._next(i, -1), self._next(i)
            one = token.text.strip(" ,").startswith("of ")  # "a woman of forty", not "women of forty nations"
            if token.frame == OF_SOMEONE and not self._is_person(before, plural=not one):
                self.tokens[i] = replace(token, kind="word", frame="")
            if token.text == "from" and self._is_person(before) and self._is_country(after):
                raise PrivacyError(
                    f"{self._text(after)!r} says where someone is from; say it by an adjective right before the person "
                    "word, leave it out, or let it through with --allow"
                )
            if token.kind == "phrase" or not (token.text.isdigit() or token.text in SPELLED):
                continue
            decade = token.text.isdigit() and len(token.text) == 2 and token.text.endswith("0")
            someone = self._next(after) if decade and after is not None and self._text(after) == "s" else None
            if self._is_person(someone) or (self._text(before) in _AGING and self._closes(i)):
                raise PrivacyError(
                    f"{token.text!r} may be someone's age and cannot be placed; say 'a 50-year-old woman', leave it "
                    "out, or let it through with --allow"
                )
        for i, token in enumerate(self.tokens):
            if token.kind in ("thing", "word") and base(token.text) in ("skin", "complexion", "complexions", "skins"):
                self._refuse_tone_after(i)

    def _is_country(self, j: int | None) -> bool:
        if self._text(j) == "the" and j is not None:
            j = self._next(j)
        if j is None or self.tokens[j].kind == "phrase":
            return False
        word, lexicon = base(self.tokens[j].text), self.policy.lexicon
        return word in self.context["origins"] or (word in lexicon.places and not lexicon.is_plain_word(word))

    def _refuse_tone_after(self, i: int) -> None:
        """ "Her skin is dark", "skin tone: dark", "skin like chocolate", not "smooth skin and dark hair"."""
        j = self._next(i)
        while j is not None:
            text, after = self.tokens[j].text, self._next(j)
            coloured = after is not None and self.tokens[after].kind in ("thing", "noun", "people")
            if text in self.policy.tones and self.tokens[j].kind != "phrase" and not coloured:
                raise PrivacyError(
                    f"{text!r} may be about somebody's skin and cannot be placed; put it right before 'skin' or "
                    "'skinned', leave it out, or let it through with --allow"
                )
            if text not in _LIKENS:
                return
            j = after

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
            return self._text(j) not in _JOINS
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
        marked = before is None or (self.tokens[before].kind == "punct" and self._text(before) not in _JOINS)
        return marked and self._closes(i)

    def _is_said_by_verb(self, i: int, near: bool) -> bool:
        """ "Is elderly", "she is black", "make her black", not "her dress is black"."""
        j = self._next(i, -1)
        if self._text(j) in _IS and not near:
            return True
        if not self._closes(i) or j is None:
            return False
        k = self._next(j, -1) if self._text(j) in _IS else j
        if k is None or (k == j and self.tokens[k].kind != "pronoun"):
            return False
        return self.tokens[k].kind == "pronoun" or self._text(k) == "who" or self._is_person(k)

    def _has_people(self) -> bool:
        return bool(self.owner) or any(t.kind == "people" for t in self.tokens)
