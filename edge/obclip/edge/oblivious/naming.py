"""Names in a prompt: makers of pictures and places pass, other names are refused or become "a person"."""

from __future__ import annotations

from dataclasses import replace

from obclip.core.errors import PrivacyError
from obclip.edge.oblivious.policy import Noun
from obclip.edge.oblivious.reading import WAYS_OUT, Reading, base
from obclip.edge.oblivious.tokens import Token

_NAME_LINKS = frozenset({".", "van", "de", "von", "da", "el", "le", "la", "der", "den", "di", "del"})

_SURE_CUES = frozenset(
    {"in", "at", "near", "from", "downtown", "outside", "visiting"}
)  # before a place named as people are


class Naming(Reading):
    def _names(self) -> None:
        """Pass artists and places; make "a person" of other names where the policy says so, or refuse."""
        i = 0
        while i < len(self.tokens):
            if self.tokens[i].kind != "name" or i in self.dropped:
                i += 1
                continue
            if self._is_place(i):
                self.tokens[i] = replace(self.tokens[i], kind="word")
            elif self._is_artist(i):
                i = self._pass_artists(i)
                continue
            elif self.policy.replace_names:
                self._name_to_person(i)
            else:
                token = self.tokens[i]
                what = "is a word that is not known: it may be a name" if token.value == "unknown" else "may be a name"
                raise PrivacyError(f"{token.text!r} {what}, and names say who someone is; {WAYS_OUT}")
            i += 1

    def _is_place(self, i: int) -> bool:
        word, before = base(self.tokens[i].text), self._text(self._next(i, -1))
        cues = _SURE_CUES if word in self.policy.lexicon.sure_names else self.context["place_cues"]
        return word in self.policy.lexicon.places and before in cues

    def _is_artist(self, i: int) -> bool:
        """ "painted by X", "in the style of X", ", by X": the picture's maker, who is public."""
        by = self._next(i, -1)
        while by is not None and (self.tokens[by].text in _NAME_LINKS or self.tokens[by].kind == "name"):
            by = self._next(by, -1)
        cue = self._next(by, -1) if by is not None else None
        if by is None or self._text(by) not in ("by", "of"):
            return False
        if self._text(by) == "of":
            return self._text(cue) == "style"
        return cue is None or self._text(cue) == "," or self._text(cue) in self.context["artist_cues"]

    def _pass_artists(self, i: int) -> int:
        """Let the run of names from i through, with commas, "and" and initials between them; where it ends."""
        j: int | None = i
        while j is not None:
            token = self.tokens[j]
            after = self._next(j)
            joins = token.text in _NAME_LINKS | {",", "and", "&"} or len(token.text) == 1
            if token.kind == "name" or (
                j > i and not joins and self.tokens[j].kind in ("word", "thing") and self._between_names(j)
            ):
                self.tokens[j] = replace(token, kind="word")
            elif not (joins and after is not None and self.tokens[after].kind == "name"):
                return j
            j = after
        return len(self.tokens)

    def _between_names(self, j: int) -> bool:
        after = self._next(j)
        return after is not None and self.tokens[after].kind == "name"

    def _name_to_person(self, i: int) -> None:
        """The name at i, with the names and initials after it and a title before it, becomes one person's noun."""
        gender = None
        before = self._next(i, -1)
        if before is not None and self.tokens[before].text == ".":
            before = self._next(before, -1)
        if before is not None and (self._text(before) in self.context["titles"] or self.tokens[before].kind == "noun"):
            noun = self.tokens[before].noun
            gender = noun.gender if noun else None
            for k in range(before, i):
                self.dropped.add(k)
        last = i
        while (
            (j := self._next(last)) is not None and self.tokens[j].kind == "name" and not self.tokens[last].possessive
        ):
            for k in range(last + 1, j + 1):
                self.dropped.add(k)
            last = j
        possessive = self.tokens[last].possessive or self.tokens[last].text.endswith("'s")
        self.tokens[i] = Token(
            "noun", self.tokens[i].text, noun=Noun(gender, None, False), possessive=possessive, frame="name"
        )
