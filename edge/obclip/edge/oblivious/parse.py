"""Parsing: tokens to a template with slots, and the people whose attributes the slots show.

Who a slot belongs to is decided from the order of tokens alone, never from the values in them, so every candidate of a
set parses to the same template.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from obclip.core.errors import InputError, PrivacyError
from obclip.edge.oblivious.policy import ABSENT, Noun, Policy
from obclip.edge.oblivious.referents import Mention as Named
from obclip.edge.oblivious.referents import referent
from obclip.edge.oblivious.tokens import FEMALE_PRONOUNS, STOP, Token, scan

_REACH = 6  # words between an adjective and the person it describes
_DETERMINERS = frozenset(
    [
        "a",
        "an",
        "the",
        "one",
        "two",
        "three",
        "four",
        "five",
        "several",
        "some",
        "many",
        "few",
        "both",
        "these",
        "those",
        "other",
        "another",
    ]
)
_CROSSED = frozenset({",", "and", "or", "but", "&", "/"})
_NAME_LINKS = frozenset({".", "van", "de", "von", "da", "el", "le", "la", "der", "den", "di", "del"})
_GROUPS = frozenset(
    {"people", "crowd", "family", "couple", "group", "team", "band", "choir", "audience", "class", "army"}
)
_COMPARED = frozenset({"older", "oldest", "elder", "eldest", "younger", "youngest"})
_WAYS_OUT = "put it another way, leave it out, or let it through with --allow"


@dataclass
class Person:
    """attributes: what the prompt says. minor: a child under a policy that keeps children a class of their own.

    skinned: its noun shows the skin tone ("a dark-skinned woman"), rather than words of their own.
    choices: attribute -> values, where they are not the policy's. A user's mark is a person of its own, with a "mark".
    """

    attributes: dict[str, str] = field(default_factory=dict)
    minor: bool = False
    skinned: bool = False
    choices: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Slot:
    """kind: "noun", "tone", "pronoun" or "mark"; token: its source; implicit: no noun of its own was written."""

    kind: str
    person: int
    token: Token
    implicit: bool = False


@dataclass(frozen=True)
class Mention:
    """Words of the prompt that say an attribute of a person. attribute: "child" for what makes someone a child."""

    text: str
    attribute: str
    person: int


@dataclass(frozen=True)
class Template:
    pieces: tuple[str | Slot, ...]
    people: tuple[Person, ...]
    mentions: tuple[Mention, ...] = ()
    unsent: tuple[str, ...] = ()

    @property
    def remainder(self) -> str:
        """What every candidate shares, with "_" where a slot is."""
        return "".join(piece if isinstance(piece, str) else "_" for piece in self.pieces)


def parse(text: str, policy: Policy, allowed: tuple[str, ...] = (), names: frozenset[str] = frozenset()) -> Template:
    """text: normalised. allowed: spans let through. names: words known for names by how they were written.

    PrivacyError for a protected word that cannot be placed, and for a word that may be a name.
    """
    tokens = [
        replace(t, kind="name") if _base(t.text) in names and t.kind != "phrase" else t
        for t in scan(text, policy, allowed)
    ]
    return _Parser(tokens, policy).run()


def _base(text: str) -> str:
    return text.removesuffix("'s").removesuffix("'")


class _Parser:
    def __init__(self, tokens: list[Token], policy: Policy) -> None:
        self.tokens, self.policy = tokens, policy
        self.context = policy.english["context"]
        self.people: list[Person] = []
        self.owner: dict[int, int] = {}  # token index -> person, for nouns and for role words given a slot
        self.dropped: set[int] = set()
        self.public: set[int] = set()
        self.stages: dict[int, list[str]] = {}
        self.mentions: list[tuple[int, Mention]] = []
        self.unsent: list[str] = []

    def run(self) -> Template:
        for i, token in enumerate(self.tokens):
            self._refuse_unplaceable(i, token)
        self._names()
        self._animals()
        self._merge_nouns()
        self._people_of_adjectives()
        self._find_people()
        self._attach_adjectives()
        self._resolve_ages()
        tones, pronouns = self._attach_tones(), self._attach_pronouns()
        self._hide_absence()
        marks = self._marks()
        pieces: list[str | Slot] = []
        for i, token in enumerate(self.tokens):
            if i in self.dropped:
                continue
            if i in self.owner:
                person, implicit = self.owner[i], token.kind != "noun"
                if not implicit or self._shows(self.people[person]):
                    pieces.append(Slot("noun", person, token, implicit))
                    pieces += [" ", token.text] if implicit else []
                else:
                    pieces.append(token.text)
            elif i in marks:
                pieces.append(Slot("mark", marks[i], token))
            elif i in tones:
                pieces.append(Slot("tone", tones[i], token))
            elif i in pronouns:
                pieces.append(Slot("pronoun", pronouns[i], self._pronoun_role(i)))
            else:
                pieces.append(token.text)
        mentions = tuple(m for _, m in sorted(self.mentions, key=lambda pair: pair[0]))
        return Template(tuple(pieces), tuple(self.people), mentions, tuple(self.unsent))

    # -- single tokens ------------------------------------------------------------------------------------------

    def _refuse_unplaceable(self, i: int, token: Token) -> None:
        if token.kind == "refused":
            raise PrivacyError(f"{token.text!r} {token.value}; {_WAYS_OUT}")
        if token.kind in ("word", "name") and "-" in token.text:
            for part in token.text.split("-"):
                noun = self.policy.nouns.get(part)
                adjective = part in self.policy.adjectives and part not in self.policy.public_adjectives
                if (noun and noun.gender) or adjective:
                    raise PrivacyError(f"{token.text!r} contains a protected word and cannot be placed; {_WAYS_OUT}")

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
                raise PrivacyError(f"{token.text!r} {what}, and names say who someone is; {_WAYS_OUT}")
            i += 1

    def _is_place(self, i: int) -> bool:
        before = self._text(self._next(i, -1))
        return _base(self.tokens[i].text) in self.policy.lexicon.places and before in self.context["place_cues"]

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

    # -- nouns --------------------------------------------------------------------------------------------------

    def _text(self, i: int | None) -> str:
        return "" if i is None else self.tokens[i].text

    def _next(self, i: int, step: int = 1) -> int | None:
        """Index of the nearest token that is not a space or dropped, or None."""
        j = i + step
        while 0 <= j < len(self.tokens):
            if self.tokens[j].kind != "space" and j not in self.dropped:
                return j
            j += step
        return None

    def _drop(self, i: int) -> None:
        """Leave token i out, with the space after it (or before it, at the end)."""
        self.dropped.add(i)
        if i + 1 < len(self.tokens) and self.tokens[i + 1].kind == "space":
            self.dropped.add(i + 1)
        elif i > 0 and self.tokens[i - 1].kind == "space":
            self.dropped.add(i - 1)

    def _animals(self) -> None:
        """'mother duck', 'a male lion', 'male connector', 'baby elephant': about no person, so public."""
        for i, token in enumerate(self.tokens):
            j = self._next(i)
            if token.kind not in ("noun", "adjective") or j is None:
                continue
            for _ in range(2):
                if self.tokens[j].kind in ("word", "adjective") and self.tokens[j].text not in STOP:
                    j = self._next(j) or j
            thing = _base(self.tokens[j].text)
            sexless = token.text in ("male", "female") and thing in self.context["not_sexed"]
            young = _base(token.text) in self.context["animal_people"]
            animal = young and self.tokens[j].kind == "thing" and self.policy.lexicon.is_animal(thing)
            if sexless or animal:
                self.public.add(i)

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
                clash = first.gender and second.gender and first.gender != second.gender
                if first.role or first.neutral_role or clash:
                    raise PrivacyError(f"{token.text!r} beside {self.tokens[j].text!r} cannot be placed; {_WAYS_OUT}")
                both = replace(
                    second,
                    gender=second.gender or first.gender,
                    stage=second.stage or first.stage,
                    ethnicity=second.ethnicity or first.ethnicity,
                )
                if first.stage and first.stage != "adult":
                    self._note(i, "child" if first.stage == "child" else "age", len(self.people))
                merged[j] = replace(self.tokens[j], text=f"{token.text} {self.tokens[j].text}", noun=both)
                self._drop(i)
        for j, token in merged.items():
            self.tokens[j] = token

    def _people_of_adjectives(self) -> None:
        """'the elderly', 'two asians', 'an italian walking': an adjective that stands for a person."""
        for i, token in enumerate(self.tokens):
            if token.kind != "adjective" or i in self.dropped or i in self.public:
                continue
            before, after = self._text(self._next(i, -1)), self._next(i)
            if token.frame != "plural" and (
                (before not in _DETERMINERS and not before.isdigit()) or not self._is_phrase_end(after)
            ):
                continue
            near = token.text in self.policy.public_adjectives and token.frame != "plural"
            if near or (token.attribute == "age" and token.value not in ("old", "young")):
                continue
            plural = token.frame == "plural" or before in (
                "the",
                "two",
                "three",
                "some",
                "several",
                "many",
                "few",
                "both",
            )
            if token.text in ("old", "young", "older", "younger", "youngest", "oldest") and before != "the":
                continue
            stage = token.value if token.attribute == "age" else None
            ethnicity = token.value if token.attribute == "ethnicity" else None
            if token.attribute in ("age", "ethnicity"):
                gender = "woman" if token.text in self.policy.english["ethnicity_gender"]["woman"] else None
                self.tokens[i] = Token("noun", token.text, noun=Noun(gender, stage, plural, ethnicity=ethnicity))
            else:
                noun = Token(
                    "noun", token.text, noun=Noun(None, None, plural), attribute=token.attribute, value=token.value
                )
                self.tokens[i] = noun

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

    def _find_people(self) -> None:
        for i, token in enumerate(self.tokens):
            if token.kind != "noun" or i in self.dropped or i in self.public:
                continue
            assert token.noun is not None
            self.people.append(Person())
            person = self.owner[i] = len(self.people) - 1
            if token.noun.gender:
                self._set(person, "gender", token.noun.gender, i)
            if token.noun.ethnicity:
                self._set(person, "ethnicity", token.noun.ethnicity, i)
            if token.attribute:
                self._set(person, token.attribute, token.value, i)
            if token.noun.stage:
                self.stages.setdefault(person, []).append("noun:" + token.noun.stage)
                if token.noun.stage != "adult":
                    self._note(i, "child" if token.noun.stage == "child" else "age", person)

    def _note(self, i: int, attribute: str, person: int) -> None:
        self.mentions.append((i, Mention(self.tokens[i].text.strip(" ,"), attribute, person)))

    def _set(self, person: int, attribute: str, value: str, at: int | None = None) -> None:
        if at is not None:
            self._note(at, attribute, person)
        where = "" if at is None else f" ({self.tokens[at].text.strip(' ,')!r})"
        if attribute in self.policy.refused:
            raise PrivacyError(
                f"the prompt says a person's {attribute}{where}, which policy {self.policy.name} does not hide; "
                + _WAYS_OUT
            )
        if value not in self.policy.values[attribute] and attribute == "ethnicity" and self.policy.drop_others:
            self.unsent.append(self.tokens[at].text if at is not None else value)
            return
        if value not in self.policy.values[attribute]:
            known = ", ".join(self.policy.values[attribute])
            raise PrivacyError(
                f"policy {self.policy.name} has no value for this {attribute}{where}: its values are {known}; "
                + _WAYS_OUT
            )
        known_value = self.people[person].attributes.setdefault(attribute, value)
        if known_value != value:
            raise PrivacyError(f"the prompt says two things about one person's {attribute}{where}; say one")

    # -- adjectives ---------------------------------------------------------------------------------------------

    def _attach_adjectives(self) -> None:
        for i, token in enumerate(self.tokens):
            if token.kind not in ("adjective", "years") or i in self.dropped or i in self.public:
                continue
            near = token.text in self.policy.public_adjectives
            head = self._owner_of_years(i) if token.kind == "years" else self._head_after(i, near=near)
            if head is None:
                if near or i in self.public or self._is_language(i):
                    continue
                raise PrivacyError(
                    f"{token.text.strip(' ,')!r} may be about a person but stands by no person word; "
                    "put it right before one, leave it out, or let it through with --allow"
                )
            if token.text in _COMPARED and self._is_child(head):
                continue
            person = self._person_at(head)
            if token.kind == "years" or token.attribute == "age":
                self.stages.setdefault(person, []).append(token.value)
                self._note(i, "child" if token.value == "child" else "age", person)
                if token.frame in ("his", "her"):
                    self._set(person, "gender", "woman" if token.frame == "her" else "man", i)
            else:
                self._set(person, token.attribute, token.value, i)
                self.people[person].skinned |= token.attribute == "skin"
                if token.text in self.policy.english["ethnicity_gender"]["woman"]:
                    self._set(person, "gender", "woman", i)
            self._drop(i)
            self._drop_joint(i)

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
            return None if spoken_of else self._head_after(i, near=False)
        if after is not None and self.tokens[after].kind == "thing" and self._text(self._next(i, -1)) in _DETERMINERS:
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
            if before is None or self.tokens[before].text in _DETERMINERS or self.tokens[before].kind == "punct":
                self._drop(j)

    def _is_language(self, i: int) -> bool:
        """'a sign in chinese', 'written in french'."""
        return self.tokens[i].attribute == "ethnicity" and self._text(self._next(i, -1)) in ("in", "into", "from")

    def _head_after(self, i: int, near: bool) -> int | None:
        """The person word that the adjective at i describes; marks i public if it describes a thing instead."""
        j, words, things, last = self._next(i), 0, 0, i
        while j is not None and words <= _REACH:
            token = self.tokens[j]
            if token.kind in ("noun", "people") and j not in self.public:
                return j
            if token.kind == "phrase" or j in self.public:
                things += 1
                break
            if token.text in _CROSSED:
                k = self._next(j)
                if k is not None and self.tokens[k].text in ("a", "an") and not things:
                    last, j = k, self._next(k)
                    continue
                if things or k is None or self.tokens[k].kind not in ("adjective", "word", "tone", "years"):
                    break
                if self.tokens[k].text in STOP:
                    break
            elif token.kind in ("punct", "pronoun") or token.text in STOP:
                break
            elif token.kind == "thing":
                things += 1
                if self.policy.lexicon.is_animal(_base(token.text)) or (near and token.text in self.context["things"]):
                    k = self._next(j)
                    if k is None or self.tokens[k].kind != "people":
                        break
            elif token.kind not in ("adjective", "years", "tone") and near and not things:
                words += 1
                if not self._leads_to_person(j):
                    break
            else:
                words += token.kind == "word"
            last, j = j, self._next(j)
        if things or (
            last != i and self.tokens[last].kind == "word" and self.policy.lexicon.is_noun(self.tokens[last].text)
        ):
            self.public.add(i)
        return None

    def _leads_to_person(self, j: int) -> bool:
        """'black, smiling woman', 'white bearded man': a describing word with a person right after it."""
        k = self._next(j)
        return k is not None and self.tokens[k].kind in ("noun", "people", "adjective") and k not in self.public

    def _last_noun_before(self, i: int) -> int | None:
        """The person named before i, a noun's or else a role word's."""
        owners = [j for j in self.owner if j < i]
        roles = [j for j in range(i) if self.tokens[j].kind == "people"]
        return max(owners, default=max(roles, default=None))

    def _person_at(self, head: int) -> int:
        if head not in self.owner:
            self.people.append(Person())
            self.owner[head] = len(self.people) - 1
        return self.owner[head]

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

    # -- pronouns, absence --------------------------------------------------------------------------------------

    def _attach_pronouns(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for i, token in enumerate(self.tokens):
            if token.kind != "pronoun":
                continue
            named = list(self._named())
            at = referent(self.tokens, i, named)
            if self._is_animals(i):
                continue
            if at is None:
                self.people.append(Person())
            person = len(self.people) - 1 if at is None else self._person_at(at)
            found[i] = person
            try:
                self._set(person, "gender", "woman" if token.text in FEMALE_PRONOUNS else "man", i)
            except PrivacyError as error:
                if "two things" not in str(error):
                    raise
                instead = f"the {self._who(person)}'s"
                raise PrivacyError(
                    f"it is unclear whom {token.text!r} means; say {instead!r} or leave it out"
                ) from error
        return found

    def _who(self, person: int) -> str:
        return next((self.tokens[i].text for i, p in self.owner.items() if p == person), "person")

    def _named(self) -> Iterable[Named]:
        """People that a pronoun can mean: nouns, and the words for what someone does."""
        for i, token in enumerate(self.tokens):
            if i in self.owner and token.noun is not None:
                yield Named(i, bool(token.noun.gender), token.noun.plural)
            elif i in self.owner or (
                token.kind == "people" and i not in self.dropped and self._is_last_of_its_phrase(i)
            ):
                yield Named(i, False, token.text in _GROUPS or token.text.endswith("s"))

    def _is_animals(self, i: int) -> bool:
        """Nobody is named, and an animal is: 'a mother bird and her chicks'."""
        nobody = all(j > i for j in self.owner)
        return nobody and any(self.policy.lexicon.is_animal(_base(t.text)) for t in self.tokens[:i])

    def _pronoun_role(self, i: int) -> Token:
        """Him, his and her are told apart by the word after them alone, which is the same for every candidate."""
        token, j = self.tokens[i], self._next(i)
        if token.value != "oblique":
            return Token("pronoun", "", value=token.value)
        owned = j is not None and self.tokens[j].kind not in ("punct", "pronoun") and self.tokens[j].text not in STOP
        return Token("pronoun", "", value="possessive" if owned else "object")

    def _hide_absence(self) -> None:
        """Give every person the attributes whose presence is hidden too; a role word becomes a person for it."""
        if not self.policy.absent:
            return
        if "gender" in self.policy.absent:
            self._move_to_roles()
        for i, token in enumerate(self.tokens):
            if token.kind == "people" and i not in self.dropped and self._is_last_of_its_phrase(i):
                self._person_at(i)
        for person in self.people:
            for attribute in self.policy.attributes:
                if attribute in self.policy.absent and not (attribute == "age" and person.minor):
                    person.attributes.setdefault(attribute, ABSENT)
        for i, person_index in self.owner.items():
            noun = self.tokens[i].noun
            if noun is not None and noun.role:  # a king says a gender, whatever is absent
                self.people[person_index].choices["gender"] = self.policy.values["gender"]

    def _move_to_roles(self) -> None:
        """'a woman teacher' becomes a teacher who is a woman, as 'a teacher' is one whose gender is not said."""
        for i in sorted(self.owner):
            token, j = self.tokens[i], self._next(i)
            plain = token.noun is not None and not token.noun.role and not token.noun.neutral_role
            if plain and j is not None and self.tokens[j].kind == "people" and not token.possessive:
                self.owner[j] = self.owner.pop(i)
                self._drop(i)

    def _marks(self) -> dict[int, int]:
        """One mark a set of alternatives, wherever it stands. InputError if two such name different real ones."""
        found: dict[int, int] = {}
        by_choices: dict[tuple[str, ...], int] = {}
        for i, token in enumerate(self.tokens):
            if token.kind != "mark":
                continue
            real, choices = token.value.split("|")[0], tuple(sorted(token.value.split("|")))
            if choices not in by_choices:
                self.people.append(Person({"mark": real}, choices={"mark": choices}))
                by_choices[choices] = len(self.people) - 1
            found[i] = by_choices[choices]
            if self.people[found[i]].attributes["mark"] != real:
                raise InputError(
                    f"{token.text} stands twice with different first words; use one, or other alternatives"
                )
        return found

    def _is_last_of_its_phrase(self, i: int) -> bool:
        after, before = self._next(i), self._next(i, -1)
        described = before is not None and before in self.owner and self.tokens[before].kind == "noun"
        return not described and (after is None or self.tokens[after].kind not in ("people", "noun"))

    def _shows(self, person: Person) -> bool:
        """Whether a slot before a role word ('old teacher') has anything to show."""
        return (
            person.minor
            or person.skinned
            or any(a not in ("gender", "skin", "mark") or a in self.policy.absent for a in person.attributes)
        )
