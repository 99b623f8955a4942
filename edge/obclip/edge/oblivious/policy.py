"""Policies: which attributes are protected, and the words by which English says them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from obclip.core.errors import InputError

_FOLDER = resources.files("obclip.edge").joinpath("policies")
ATTRIBUTES = ("gender", "age", "skin", "ethnicity")


@dataclass(frozen=True)
class Noun:
    """A word for a person. gender, stage: None where the word does not say. role: (man's, woman's) forms, if a role."""

    gender: str | None
    stage: str | None
    plural: bool
    role: tuple[str, str] | None = None
    neutral_role: str | None = None


@dataclass(frozen=True)
class Policy:
    """values: attribute -> its values, in order. refused: attributes whose words are refused, not expanded."""

    name: str
    values: dict[str, tuple[str, ...]]
    refused: frozenset[str]
    stages: dict[str, str]
    person_nouns: dict[str, str]
    minors: bool
    english: dict[str, Any]

    @cached_property
    def nouns(self) -> dict[str, Noun]:
        """Every form of every person word."""
        table: dict[str, Noun] = {}
        for key, forms in self.english["nouns"].items():
            gender, stage = (None if part == "any" else part for part in key.split("-"))
            for form in forms:
                for text, plural in zip(form.split("/"), (False, True), strict=True):
                    table.setdefault(text, Noun(gender, stage, plural))
        for man, woman in self.english["roles"]["pairs"]:
            for gender, form in (("man", man), ("woman", woman)):
                for i, text in enumerate(form.split("/")):
                    role = (man.split("/")[i], woman.split("/")[i])
                    table[text] = Noun(gender, None, bool(i), role)
        return table

    @cached_property
    def adjectives(self) -> dict[str, tuple[str, str]]:
        """Adjective -> (attribute, value): stages of life for age, values for ethnicity ("other" has no value)."""
        table = {w: ("age", stage) for stage, words in self._words("age") for w in words}
        table |= {w: ("ethnicity", value) for value, words in self._words("ethnicity") for w in words}
        return table

    @cached_property
    def public_adjectives(self) -> frozenset[str]:
        """Adjectives that say something about a person only right beside one."""
        return frozenset(self.english["age"]["public"]) | frozenset(self.english["ethnicity"]["public"])

    @cached_property
    def tones(self) -> dict[str, str]:
        return {w: tone for tone, words in self._words("skin") for w in words}

    def _words(self, section: str) -> list[tuple[str, list[str]]]:
        return [(k, v) for k, v in self.english[section].items() if k != "public"]

    def stage_of_years(self, years: int) -> str:
        begun = [s for s, first in self.english["years"].items() if years >= first]
        return str(begun[-1])

    def age_value(self, stage: str) -> str | None:
        """The policy's age value for a stage of life; None where the stage is no value (a child, or just "adult")."""
        return self.stages.get(stage)


def load_policy(name_or_path: str) -> Policy:
    """A shipped policy (`default`, `emoji`) or a policy file. InputError, with the reason, for anything else."""
    shipped = sorted(f.name[:-5] for f in _FOLDER.iterdir() if f.name.endswith(".toml") and f.name != "english.toml")
    if name_or_path in shipped:
        text = _FOLDER.joinpath(f"{name_or_path}.toml").read_text("utf8")
    elif Path(name_or_path).is_file():
        text = Path(name_or_path).read_text("utf8")
    else:
        raise InputError(f"no policy {name_or_path!r}; shipped are {', '.join(shipped)}, or pass a policy file's path")
    english = tomllib.loads(_FOLDER.joinpath("english.toml").read_text("utf8"))
    try:
        return _parse(Path(name_or_path).stem, tomllib.loads(text), english)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"policy {name_or_path} is not TOML: {error}") from error


def _parse(name: str, tables: dict[str, Any], english: dict[str, Any]) -> Policy:
    if unknown := sorted(tables.keys() - set(ATTRIBUTES)):
        raise InputError(f"policy {name}: unknown attributes {', '.join(unknown)}; known are {', '.join(ATTRIBUTES)}")
    values: dict[str, tuple[str, ...]] = {}
    for attribute in ATTRIBUTES:
        table = tables.get(attribute, {"refuse": True})
        if table.get("refuse"):
            continue
        values[attribute] = tuple(table.get("values", ()))
        if len(set(values[attribute])) < 2:
            raise InputError(f"policy {name}: {attribute} needs at least two values, or refuse = true")
    if "gender" in values and set(values["gender"]) != {"woman", "man"}:
        raise InputError(f"policy {name}: gender's values are woman and man; other words for them are known already")
    for attribute in ("skin", "ethnicity"):
        known = set(english[attribute]) - {"public", "other"}
        if unknown := sorted(set(values.get(attribute, ())) - known):
            raise InputError(f"policy {name}: no words are known for {attribute} {', '.join(unknown)}")
    age = tables.get("age", {})
    stages = dict(age.get("stages", {}))
    if set(stages.values()) != set(values.get("age", ())):
        raise InputError(f"policy {name}: age.stages must map stages of life onto exactly age.values")
    minors = bool(age.get("minors", False))
    if not minors and "age" in values and "child" not in stages:
        raise InputError(f"policy {name}: say minors = true, so that children stay a class of their own")
    refused = frozenset(a for a in ATTRIBUTES if a not in values)
    return Policy(name, values, refused, stages, dict(age.get("nouns", {})), minors, english)
