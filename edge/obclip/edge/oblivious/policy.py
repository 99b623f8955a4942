"""Policies: which attributes are protected, and the words by which English says them."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from obclip.core.errors import InputError
from obclip.core.files import read_text
from obclip.edge.oblivious.lexicon import Lexicon, load_lexicon

_FOLDER = resources.files("obclip.edge").joinpath("policies")
CORE = ("gender", "age", "skin", "ethnicity")
ABSENT = ""  # the value of an attribute that a prompt does not say, under a policy that hides that too
_APART = {"mans": "man", "womans": "woman", "mens": "men", "womens": "women", "childrens": "children", "ladys": "lady",
          "childs": "child", "peoples": "people", "kid's": "kid", "ladie": "lady"}  # fmt: skip


@dataclass(frozen=True)
class Noun:
    """A word for a person. gender, stage: None where the word does not say.

    role: (man's, woman's) forms of what the person does, if it has two; neutral_role: one form for both. ethnicity: of
    words such as "frenchman". childlike: a role whose word says that it is a child's ("schoolboy").
    """

    gender: str | None
    stage: str | None
    plural: bool
    role: tuple[str, str] | None = None
    neutral_role: str | None = None
    ethnicity: str | None = None
    childlike: bool = False


@dataclass(frozen=True)
class Policy:
    """values: attribute -> its values, in order. refused: attributes whose words are refused, not expanded.

    absent: attributes that every person gets, said or not. forms: attribute of the user's own -> value -> its words.
    replace_names: names become "a person" for the cloud, rather than a refusal. drop_others: words for an ethnicity
    that has no value here are left out of what the cloud gets, rather than refused. beside_role: how a woman's and a
    man's gender is said before a word for what they do ("a female cook").
    """

    name: str
    values: dict[str, tuple[str, ...]]
    refused: frozenset[str]
    stages: dict[str, str]
    person_nouns: dict[str, str]
    minors: bool
    english: dict[str, Any]
    forms: dict[str, dict[str, list[str]]]
    absent: frozenset[str] = frozenset()
    replace_names: bool = False
    drop_others: bool = False
    beside_role: tuple[str, str] = ("female", "male")

    @property
    def lexicon(self) -> Lexicon:
        return load_lexicon()

    @property
    def attributes(self) -> tuple[str, ...]:
        """Core attributes, then the others, in the order in which a phrase shows them."""
        return CORE + tuple(self.forms)

    @cached_property
    def nouns(self) -> dict[str, Noun]:
        """Every form of every person word."""
        table: dict[str, Noun] = {}
        for key, forms in self.english["nouns"].items():
            gender, stage = (None if part == "any" else part for part in key.split("-"))
            for form in forms:
                for text, plural in zip(form.split("/"), (False, True), strict=True):
                    table.setdefault(text, Noun(gender, stage, plural))
        roles = self.english["roles"]
        for man, woman in roles["pairs"]:
            for gender, form in (("man", man), ("woman", woman)):
                for i, text in enumerate(form.split("/")):
                    role = (man.split("/")[i], woman.split("/")[i])
                    table[text] = Noun(gender, None, bool(i), role)
        for man, woman in roles["child_pairs"]:
            for gender, form in (("man", man), ("woman", woman)):
                for i, text in enumerate(form.split("/")):
                    table[text] = Noun(
                        gender, "child", bool(i), (man.split("/")[i], woman.split("/")[i]), childlike=True
                    )
        for word, (gender, neutral) in roles["singles"].items():
            for text, i in ((word, 0), (_plural(word), 1)):
                table[text] = Noun(gender, None, bool(i), neutral_role=neutral.split("/")[i])
        return table | {w: table[b] for w, b in (*roles["alias"].items(), *_APART.items())}

    @staticmethod
    def lacks_apostrophe(word: str) -> bool:
        """Whether `word` is a possessive written without its apostrophe ("a mans dog")."""
        return word in _APART

    @cached_property
    def adjectives(self) -> dict[str, tuple[str, str]]:
        """Adjective -> (attribute, value): stages of life for age, values for ethnicity ("other" has no value)."""
        known = set(self.values.get("ethnicity", ()))
        nations = self.lexicon.nations.items()
        table = {w: ("ethnicity", v if v in known else "other") for w, v in nations if not _person_ending(w)}
        table |= {w: ("age", stage) for stage, words in self._words("age") for w in words}
        for value, words in self._words("ethnicity"):
            table |= {w: ("ethnicity", value if value in known else "other") for w in words}
        table |= {w: ("skin", self.tones[w]) for w in self.english["skin_beside"]["words"]}
        for attribute, values in self.forms.items():
            table |= {w: (attribute, value) for value, words in values.items() for w in words}
        return table

    @cached_property
    def several_words(self) -> dict[str, tuple[str, ...]]:
        """First letters up to a space, dot or hyphen -> the known words that go on after it."""
        context = self.english["context"]
        listed = (word for kind in ("people", "things", "refused") for word in context[kind])
        return _by_start([*self.nouns, *self.adjectives, *listed])

    @cached_property
    def phrases(self) -> dict[str, tuple[str, ...]]:
        """The same of what is read whole and left alone."""
        return _by_start(self.english["context"]["phrases"], whole=True)

    @cached_property
    def public_adjectives(self) -> frozenset[str]:
        """Adjectives that say something about a person only right beside one."""
        tables = (
            self.english["age"]["public"],
            self.english["ethnicity"]["public"],
            self.english["skin_beside"]["words"],
        )
        return frozenset(word for table in tables for word in table)

    @cached_property
    def tones(self) -> dict[str, str]:
        """Each also with a hyphen, and as "honey-colored", "honey colored"."""
        table = {w: tone for tone, words in self._words("skin") for w in words}
        table |= {w.replace(" ", "-"): tone for w, tone in table.items()}
        ends = [f"{by}{colour}" for by in "- " for colour in ("colored", "coloured")]
        return table | {w + end: tone for w, tone in table.items() for end in ends}

    def gender_of_people(self, word: str) -> str | None:
        """Of "latina" and the like, which say a gender beside a people."""
        return next((g for g, words in self.english["ethnicity_gender"].items() if word in words), None)

    def _words(self, section: str) -> list[tuple[str, list[str]]]:
        return [(k, v) for k, v in self.english[section].items() if k != "public"]

    def stage_of_years(self, years: int) -> str:
        begun = [s for s, first in self.english["years"].items() if years >= first]
        return str(begun[-1])

    def age_value(self, stage: str) -> str | None:
        """The policy's age value for a stage of life; None where the stage is no value (a child, or just "adult")."""
        return self.stages.get(stage)

    def choices(self, attribute: str) -> tuple[str, ...]:
        """The values that candidates take: the policy's, and saying nothing where that is hidden too."""
        return self.values[attribute] + ((ABSENT,) if attribute in self.absent else ())

    def hiding(self, attributes: tuple[str, ...]) -> Policy:
        """This policy, with the presence of `attributes` hidden as well. InputError for one it does not expand."""
        if unknown := sorted(set(attributes) - set(self.values)):
            raise InputError(
                f"policy {self.name} has no values for {', '.join(unknown)}; it has {', '.join(self.values)}"
            )
        return replace(self, absent=self.absent | frozenset(attributes)) if attributes else self


def _by_start(words: list[str], whole: bool = False) -> dict[str, tuple[str, ...]]:
    table: dict[str, list[str]] = {}
    for word in dict.fromkeys(words):
        start = re.split(r"[ .\-']", word, maxsplit=1)[0]
        if whole or start != word.rstrip("'"):
            table.setdefault(start, []).append(word)
    return {start: tuple(found) for start, found in table.items()}


_NO_MEN = frozenset({"german", "roman", "norman", "burman", "ottoman", "turkmen", "turcoman", "turkoman"})


def _plural(word: str) -> str:
    return word[:-3] + "men" if word.endswith("man") else word + ("es" if word.endswith("ss") else "s")


def _person_ending(word: str) -> bool:
    return re.search(r"(?:man|men|woman|women)$", word) is not None and word not in _NO_MEN


def load_policy(name_or_path: str) -> Policy:
    """A shipped policy (`default`, `emoji`, ...) or a policy file. InputError, with the reason, for anything else."""
    shipped = sorted(f.name[:-5] for f in _FOLDER.iterdir() if f.name.endswith(".toml") and f.name != "english.toml")
    if name_or_path in shipped:
        text = _FOLDER.joinpath(f"{name_or_path}.toml").read_text("utf8")
    elif Path(name_or_path).is_file():
        text = read_text(Path(name_or_path))
    else:
        raise InputError(f"no policy {name_or_path!r}; shipped are {', '.join(shipped)}, or pass a policy file's path")
    english = tomllib.loads(_FOLDER.joinpath("english.toml").read_text("utf8"))
    try:
        return _parse(Path(name_or_path).stem, tomllib.loads(text), english)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"policy {name_or_path} is not TOML: {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"policy {name_or_path} has a value of the wrong kind: {error}") from error


def _parse(name: str, tables: dict[str, Any], english: dict[str, Any]) -> Policy:
    names = tables.pop("names", {})
    if not isinstance(names, dict):
        raise InputError(f"policy {name}: names must be a table, with action = 'refuse' or 'replace'")
    values: dict[str, tuple[str, ...]] = {}
    for attribute in (*CORE, *(t for t in tables if t not in CORE)):
        found = _values(name, attribute, tables.get(attribute, {"refuse": True}))
        if found is not None:
            values[attribute] = found
    if "gender" in values and set(values["gender"]) != {"woman", "man"}:
        raise InputError(f"policy {name}: gender's values are woman and man; other words for them are known already")
    regions = set(load_lexicon().nations.values())
    for attribute in ("skin", "ethnicity"):
        known = (set(english[attribute]) | (regions if attribute == "ethnicity" else set())) - {"public", "other"}
        if unknown := sorted(set(values.get(attribute, ())) - known):
            raise InputError(f"policy {name}: no words are known for {attribute} {', '.join(unknown)}")
    age = tables.get("age", {})
    stages = dict(age.get("stages", {}))
    if set(stages.values()) != set(values.get("age", ())):
        raise InputError(f"policy {name}: age.stages must map stages of life onto exactly age.values")
    minors = bool(age.get("minors", False))
    if not minors and "age" in values and "child" not in stages:
        raise InputError(f"policy {name}: say minors = true, so that children stay a class of their own")
    forms = {a: _forms(name, a, t, values.get(a, ()), english) for a, t in tables.items() if a not in CORE}
    refused = frozenset(a for a in (*CORE, *forms) if a not in values)
    absent = frozenset(a for a, t in tables.items() if t.get("absent"))
    nouns = dict(age.get("nouns", {}))
    replace_names, drop_others = names.get("action") == "replace", tables.get("ethnicity", {}).get("others") == "drop"
    beside_role = tuple(tables.get("gender", {}).get("beside_role", ("female", "male")))
    if len(beside_role) != 2 or not all(isinstance(word, str) for word in beside_role):
        raise InputError(f"policy {name}: gender.beside_role is two words, a woman's and a man's")
    return Policy(
        name, values, refused, stages, nouns, minors, english, forms, absent, replace_names, drop_others, beside_role
    )


def _values(name: str, attribute: str, table: Any) -> tuple[str, ...] | None:
    if not isinstance(table, dict):
        raise InputError(f"policy {name}: {attribute} must be a table with values = [...] or refuse = true")
    if table.get("refuse"):
        return None
    values = tuple(table.get("values", ()))
    if len(set(values)) + bool(table.get("absent")) < 2 or not all(isinstance(v, str) and v for v in values):
        raise InputError(f"policy {name}: {attribute} needs at least two values, or refuse = true")
    return values


def _forms(name: str, attribute: str, table: dict[str, Any], values: tuple[str, ...], english: dict[str, Any]) -> Any:
    known = english["extra"].get(attribute, {})
    forms = {**known, **table.get("forms", {})}
    if not all(isinstance(words, list) and all(isinstance(w, str) for w in words) for words in forms.values()):
        raise InputError(f"policy {name}: forms of {attribute} must be lists of words: {{ value = ['word', ...] }}")
    if not forms:
        raise InputError(
            f"policy {name}: unknown attribute {attribute}; known are {', '.join((*CORE, *english['extra']))}, "
            f"or say its words: forms = {{ value = ['word', ...] }}"
        )
    if missing := sorted(set(values) - set(forms)):
        raise InputError(f"policy {name}: no words are given for {attribute} {', '.join(missing)}; add them to forms")
    return forms
