"""What says something of a person and stands by no person word: tags, verbs and skin tones on their own."""

from __future__ import annotations

from obclip.core.errors import PrivacyError
from obclip.edge.oblivious.ages import IS, NUMBERS, SAYS, SELVES, Ages
from obclip.edge.oblivious.nouns import DESCRIBING
from obclip.edge.oblivious.reading import WAYS_OUT, base
from obclip.edge.oblivious.tokens import STOP

_LINKS = "is was are were looks look like as tone tones color colour : = the a an very so that which , warm rich deep"
_LIKENS = frozenset(_LINKS.split())  # between "skin" and what it is like
_SKIN = frozenset({"skin", "skins", "complexion", "complexions"})
_SOME = frozenset({"one", "other", "others", "each"})
_BOTH_COLOURS = frozenset({"black and white", "white and black", "black-and-white"})
_OF_A_PEOPLE = frozenset({"half", "non", "all", "american", "british", "passing", "mixed"})
_ABOUT_PLACES = frozenset({"the", "south", "north", "east", "west", "southern", "northern", "rural", "central"})
_THINGS = frozenset({"turkey", "china", "chile", "guinea", "jordan"})
_SELF_IS = frozenset({"i'm", "im", "who's", "they're", "we're", "you're"})
_ANYONE = frozenset({"someone", "somebody", "anyone", "anybody", "everyone", "everybody"})
_TONES_ALONE = frozenset({"dark", "olive", "caramel", "honey"})
_WEIGHTS = frozenset({":", "+"})


class Loose(Ages):
    def _refuse_loose(self) -> None:
        """What says something of a person in a way that cannot be placed: "a man who looks 50", "20s woman", "her skin
        is dark", "a woman from Japan". Ages that are one only behind a person become words elsewhere."""
        for i, token in enumerate(self.tokens):
            if token.kind in ("space", "punct", "noun", "adjective", "people"):
                continue
            if token.kind == "years":
                self._settle_years(i)
            elif token.kind == "phrase":
                if token.text in _BOTH_COLOURS and self._is_person(self._next(i)):
                    raise PrivacyError(f"{token.text!r} is about people here; say it of each, before a word of its own")
            elif self._is_country(i) and (self._names_people(i) or self._tells_origin(self._next(i, -1))):
                raise PrivacyError(
                    f"{token.text!r} says where someone is from; say it by an adjective right before the person "
                    "word, leave it out, or let it through with --allow"
                )
            elif token.kind == "word" and self._is_compound(token.text) and self._is_person(self._next(i)):
                raise PrivacyError(f"{token.text!r} contains a protected word and cannot be placed; {WAYS_OUT}")
            elif (token.text.isdigit() or token.text in NUMBERS) and self._is_loose_age(i):
                raise PrivacyError(
                    f"{token.text!r} may be someone's age and cannot be placed; say 'a 50-year-old woman', leave it "
                    "out, or let it through with --allow"
                )
            elif token.kind in ("thing", "word") and base(token.text) in _SKIN:
                self._refuse_tone_near(i)
            elif self._is_tone_of_someone(i):
                raise PrivacyError(_loose_tone(token.text))

    def _refuse_weights(self) -> None:
        """ "Asian:1.2 woman", "black+ woman": a weight without brackets comes between a word and its person."""
        for i, token in enumerate(self.tokens):
            if token.kind != "adjective" or i + 1 == len(self.tokens) or self.tokens[i + 1].text not in _WEIGHTS:
                continue
            if i + 1 in self.dropped:
                continue
            j = self._next(i)
            while j is not None and (self.tokens[j].kind == "number" or self._text(j) in {*_WEIGHTS, "."}):
                j = self._next(j)
            if self._is_person(j):
                raise PrivacyError(
                    f"{token.text!r} has a weight between it and the person; put both in brackets, "
                    f"'({token.text} {self._text(j)}:1.2)', or leave it out"
                )

    def _is_tone_of_someone(self, i: int) -> bool:
        """ "A dark woman", "a light brown man", not "a dark queen" or "a dark elf"."""
        j = self._next(i)
        shaded = self.tokens[i].text in ("light", "dark") and self._text(j) == "brown"
        if not shaded and self.tokens[i].text not in _TONES_ALONE:
            return False
        while j is not None and (
            self.tokens[j].kind in ("adjective", "years")
            or self._text(j) == ","
            or (self.tokens[j].kind == "word" and self._text(j) not in STOP)
            or self._text(j) in DESCRIBING
        ):
            j = self._next(j)
        noun = None if j is None else self.tokens[j].noun
        return noun is not None and noun.role is None and noun.neutral_role is None and self._is_person(j)

    def _is_country(self, i: int) -> bool:
        word, lexicon = base(self.tokens[i].text), self.policy.lexicon
        if word in self.context["origins"]:
            return True
        return word in lexicon.places and not lexicon.is_plain_word(word)

    def _names_people(self, i: int) -> bool:
        """ "A nigeria woman", not "a turkey farmer" or "a texas ranger"."""
        word = self.tokens[i].text
        return word in self.context["origins"] and word not in _THINGS and self._is_person(self._next(i))

    def _tells_origin(self, j: int | None) -> bool:
        """Whether the words up to j lead from a person to a place: "a woman from", "originally from the", "born in"."""
        while j is not None and self._text(j) in _ABOUT_PLACES:
            j = self._next(j, -1)
        link = self._text(j)
        k = None if j is None else self._next(j, -1)
        if link in ("in", "of"):
            noun = None if k is None else self.tokens[k].noun  # "the queen of england" is no more than a queen
            plain = link == "of" and noun is not None and noun.role is None and self._is_person(k)
            return self._text(k) in ("born", "raised") or plain
        if link != "from" or not self._has_people():
            return False
        someones = self._text(k) in {*self.context["coloured"], *self.context["human"], "originally", "who", *IS}
        return k is None or self._kind(k) in ("punct", "pronoun") or self._is_person(k) or someones

    def _is_compound(self, text: str) -> bool:
        """ "Half-black", "non-white", "black-american", not "black-haired"."""
        if "-" not in text:
            return False
        parts = set(text.split("-"))
        coloured = any(self.policy.adjectives.get(p, ("", ""))[0] == "ethnicity" for p in parts)
        return coloured and not parts.isdisjoint(_OF_A_PEOPLE)

    def _refuse_tone_near(self, i: int) -> None:
        """ "Her skin is dark", "skin tone: dark", "skin like chocolate", "pale freckled skin", not "smooth skin and
        dark hair"."""
        j = self._next(i)
        while j is not None:
            coloured = self._kind(self._next(j)) in ("thing", "noun", "people")
            if self._is_tone(j) and not coloured and (self._text(self._next(j, -1)) != "," or self._closes(j)):
                raise PrivacyError(_loose_tone(self.tokens[j].text))
            if self._text(j) not in _LIKENS:
                break
            j = self._next(j)
        j = self._next(i, -1)
        for kinds in (("word", "thing"), ("word",), ("word",), ("word",)):
            if j is not None and self._is_tone(j):
                raise PrivacyError(_loose_tone(self.tokens[j].text))
            text = self._text(j)
            if j is None or (text not in (",", "and") and (self.tokens[j].kind not in kinds or text in STOP)):
                return
            j = self._next(j, -1)

    def _is_tone(self, j: int) -> bool:
        return self.tokens[j].kind != "phrase" and self.tokens[j].text in self.policy.tones

    def _is_said_by_verb(self, i: int, near: bool) -> bool:
        """ "Is elderly", "she is black", "make her black", not "her dress is black"."""
        j = self._next(i, -1)
        if self._text(j) in IS and not near:
            return True
        if j is None or not self._closes(i):
            return False
        if self._text(j) == "and":
            listed = self._before_list(j)
            return listed is not None and self._is_told(listed, near)
        return self._text(j) in _SELF_IS or self._kind(j) == "pronoun" or self._is_told(j, near)

    def _before_list(self, j: int | None) -> int | None:
        """The word before what is said together up to j: "is" of "is tired and black", the doctor of "a doctor, tall
        and black"; not "is wearing pink and black"."""
        plain = True
        while j is not None and self._text(j) not in SAYS:
            word = self._kind(j) == "word" and self._text(j) not in STOP and not self._text(j).endswith("ing")
            looks = self._text(j) in ("and", ",") or self._text(j) in DESCRIBING or self._kind(j) == "adjective"
            if not (looks or word):
                break
            plain = plain and looks
            j = self._next(j, -1)
        return j if plain or self._text(j) in SAYS else None

    def _is_told(self, j: int, near: bool) -> bool:
        """Whether the word behind j is said of someone through what stands before it: "appears to be black", "a woman,
        half black", "1girl black", "two friends, one black", "ethnicity black"; not "dressed in all black"."""
        k: int | None = j
        while k is not None and self._text(k) in SAYS:
            k = self._next(k, -1)
        if self._text(k) in _SOME or (k != j and (k is None or self.tokens[k].kind == "punct")):
            return self._has_people() and not (near and self._is_of_things(j))
        someone = self._is_person(k) or self._kind(k) == "pronoun" or self._text(k) in {*SELVES, *_ANYONE}
        return someone and (k != j or near)

    def _is_of_things(self, j: int | None) -> bool:
        """Whether what was named last are things: "two dogs, one black and one white", "a shirt, all black"."""
        while j is not None and self._text(j) not in ("half", "race", "ethnicity"):
            passed = self._text(j) in {*SAYS, *_SOME, ",", "and", "the"} or self.tokens[j].kind == "adjective"
            if not passed:
                return self.tokens[j].kind == "thing"
            j = self._next(j, -1)
        return False


def _loose_tone(tone: str) -> str:
    return (
        f"{tone!r} may be about somebody's skin and cannot be placed; put it right before 'skin' or 'skinned', leave "
        "it out, or let it through with --allow"
    )
