"""Word lists for the parser: vocabulary, nouns, people, animals, nationalities, gendered words, names, places.

Sources: WordNet 3.0 (Princeton University, WordNet licence), SCOWL's American and British lists (Kevin Atkinson and
others, permissive), the first names of the US Census of 1990 (public domain).
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from importlib import resources
from pathlib import Path

from .wordnet import WordNet

_WOMAN = r"woman|women|girl|girls|female|lady|wife|mother|grandmother|daughter|sister|nun|queen|princess|lesbian"
_MAN = r"man|men|boy|boys|male|gentleman|husband|father|grandfather|son|brother|monk|king|prince|lad"
_PERSON = r"person|adult|people|individual|member|someone|one|child|infant|youth|offspring|human"
_ARTICLE = r"(?:an?|the|your|any|informal terms? for an?|slang (?:term )?for an?)?"
_GENDERED = re.compile(rf"^(?:\([^)]*\) ?)?{_ARTICLE} ?(?:[\w'-]+ ){{0,4}}?(?P<head>{_WOMAN}|{_MAN}|{_PERSON})\b")
_AGED = re.compile(
    r"\b(?:old|elderly|aged|young|youthful|teenage|juvenile|under the age|years old|baby|infant|child)\b"
)
_SOUTH_ASIA = {"india", "pakistan", "bangladesh", "sri_lanka", "nepal", "bhutan"}
_NEAR_EAST = """
iran iraq turkey syria jordan israel lebanon saudi_arabia yemen oman kuwait qatar bahrain united_arab_emirates egypt
morocco algeria tunisia libya afghanistan near_east middle_east palestine kurdistan
"""
_MIDDLE_EAST = set(_NEAR_EAST.split())
_LATIN = {"latin_america", "south_america", "central_america", "mexico", "cuba", "west_indies", "antilles", "caribbean"}
_OFTEN = 600  # a first name among so many of a gender is a name even where it is a place too
_AFRICA, _ASIA, _EUROPE = {"africa"}, {"asia"}, {"europe"}


def build_lists(
    wordnet: WordNet, scowl: list[Path], rare: list[Path], common: Path, names: list[Path]
) -> dict[str, list[str]]:
    """File name -> sorted lines. `nations` lines are "word region", `gendered` lines are "word attribute"."""
    fix = _corrections()
    lines = [w for path in scowl for w in path.read_text("utf8").split() if not w.endswith("'s")]
    vocabulary = {w for w in lines if w.islower()}
    proper = {w.lower() for w in lines if not w.islower()} - vocabulary
    vocabulary |= fix["words"].keys() | {w for w in wordnet.other_lemmas if w in proper}
    vocabulary = {w for word in vocabulary for w in (word, _plain(word))} - fix["always_names"].keys()
    person, animal = wordnet.below("person"), wordnet.below("animal")
    lemmas = {w: s for w, s in wordnet.senses.items() if "_" not in w}
    seldom = {
        _plain(w) for path in rare for w in path.read_text("utf8").split() if w.islower() and not w.endswith("'s")
    }
    seldom -= fix["always_names"].keys()
    known = vocabulary | seldom
    people = {w for w, s in lemmas.items() if w in known and person & set(s[: _depth(s)])}
    people = ({w for w in people if lemmas[w][0] not in animal} | fix["people"].keys()) - fix["not_people"].keys()
    animals = {w for w, s in lemmas.items() if w in vocabulary and s[0] in animal and w not in people}
    spelled = vocabulary | proper
    gendered = _gendered(wordnet, {w: s for w, s in lemmas.items() if w in spelled}, person)
    gendered = {w: a for w, a in gendered.items() if w not in fix["not_gendered"]} | fix["gendered"]
    nations = {w: r for w, r in _nations(wordnet, person).items() if w not in fix["not_nations"]} | fix["nations"]
    first_names = {line.split()[0].lower() for path in names for line in path.read_text().splitlines() if line.strip()}
    places = {w for w in proper if w in lemmas and lemmas[w][0] not in person} | fix["places"].keys()
    first_names |= fix["always_names"].keys() | _famous(wordnet, person) - vocabulary
    first_names -= fix["not_names"].keys()
    frequent = {
        line.split()[0].lower() for path in names for line in path.read_text().splitlines()[:_OFTEN] if line.strip()
    }
    places -= fix["always_names"].keys()
    quick = {w for w in common.read_text("utf8").split() if w.islower() and not w.endswith("'s")}
    return {
        "common": sorted(quick & vocabulary),
        "more": sorted(vocabulary - quick),
        "rare": sorted(seldom - vocabulary - first_names),
        "nouns": sorted(w for w in lemmas if w in known and w not in people),
        "people": sorted(people - gendered.keys()),
        "animals": sorted(animals),
        "gendered": sorted(f"{w} {a}" for w, a in gendered.items() if a != "none"),
        "nations": sorted(f"{w} {r}" for w, r in nations.items()),
        "names": sorted(first_names - (places - frequent - fix["always_names"].keys())),
        "sure_names": sorted(
            (frequent | fix["always_names"].keys()) - fix["words_too"].keys() - fix["not_names"].keys()
        ),
        "places": sorted(places - nations.keys()),
    }


def _famous(wordnet: WordNet, person: frozenset[str]) -> set[str]:
    """Single names of the persons that WordNet has an entry for."""
    entries = (wordnet.synsets[o].words for o in person if wordnet.is_instance(o))
    return {w.lower() for words in entries for w in words if w[0].isupper() and w.isalpha() and len(w) > 3}


def _plain(word: str) -> str:
    """Without accents: the parser looks "café" up as "cafe"."""
    return "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c))


def _corrections() -> dict[str, dict[str, str]]:
    """Table -> word -> what it is said to be (empty in the plain lists)."""
    text = resources.files(__package__).joinpath("corrections.toml").read_text("utf8")
    return {
        k: {w: v for w, _, v in (e.partition("=") for e in words.split())} for k, words in tomllib.loads(text).items()
    }


def _depth(senses: list[str]) -> int:
    """How many senses are looked at: a word is a person word if one of its commonest senses is one."""
    return 1 if len(senses) < 3 else 2


def _gendered(wordnet: WordNet, lemmas: dict[str, list[str]], person: frozenset[str]) -> dict[str, str]:
    """Words whose first sense as a person is one gender or one stage of life by its definition."""
    found = {}
    for word, senses in lemmas.items():
        first = next((o for o in senses[: _depth(senses)] if o in person and not wordnet.is_instance(o)), None)
        if first is None:
            continue
        gloss = wordnet.synsets[first].gloss.split(";")[0]
        match = _GENDERED.match(gloss)
        if match and re.fullmatch(f"{_WOMAN}|{_MAN}", match["head"]) and " or " not in gloss[: match.end() + 10]:
            found[word] = "gender"
        elif match and _AGED.search(gloss[: match.end()]):
            found[word] = "age"
    return found


def _nations(wordnet: WordNet, person: frozenset[str]) -> dict[str, str]:
    """Words for the people of a place -> a region of the world, "other" where the place is not known."""
    found: dict[str, str] = {}
    for offset in sorted(person):
        synset = wordnet.synsets[offset]
        belongs = any(symbol == "#m" for symbol, _ in synset.pointers)
        native = re.search(
            r"native or inhabitant|inhabitant of|member of (?:an?|the|any) .*(?:people|tribe)|native of", synset.gloss
        )
        if not (belongs or native) or wordnet.is_instance(offset):
            continue
        region = _region(wordnet.regions(offset))
        for word in synset.words:
            if word[0].isupper() and "_" not in word:
                found.setdefault(word.lower(), region)
    return found


def _region(places: frozenset[str]) -> str:
    for region, names in (
        ("indian", _SOUTH_ASIA), ("middle-eastern", _MIDDLE_EAST), ("latino", _LATIN),
        ("african", _AFRICA), ("european", _EUROPE), ("asian", _ASIA),
    ):  # fmt: skip
        if names & places:
            return region
    return "other"
