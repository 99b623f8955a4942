"""Candidate sets to draw: the embedded pair's emoji, portraits from ten templates, or captions of one's own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from obclip.core.errors import InputError, ObclipError
from obclip.edge.oblivious import candidate_set, load_policy

from ..server_fidelity import candidate_sets

# Ten scenes of one person each, worded so that nothing but {who} says who it is
TEMPLATES = (
    "a close-up portrait photo of {who}, looking at the camera, soft window light",
    "a black and white studio portrait of {who}, strong side light",
    "an oil painting of {who} reading by a lamp",
    "a photo of {who} on a busy street at night, neon signs in the background",
    "a watercolor painting of {who} in a garden",
    "a studio photo of {who} from the side, plain grey background",
    "a photo of {who} at work in a bakery",
    "a photo of {who} in the rain with an umbrella, shallow depth of field",
    "a pencil sketch of {who}, three quarter view",
    "a wide photo of {who} on a mountain path at dawn",
)
AGES, GENDERS = ("young", "old"), ("woman", "man")
ETHNICITIES = ("asian", "african", "caucasian", "indian")
SIZES = {2: ("gender",), 6: ("age", "gender"), 30: ("age", "ethnicity", "gender")}


@dataclass(frozen=True)
class PromptSet:
    """prompts: sorted, all of which are drawn, each as if it were the real one. shows: what each should show. allow:
    what the user lets through, so that the device makes just these candidates."""

    prompts: tuple[str, ...]
    shows: tuple[dict[str, Any], ...]
    allow: tuple[str, ...] = ()

    @property
    def differ(self) -> tuple[str, ...]:
        """Attributes in which the candidates differ."""
        return _differ(self.shows)


_NOTES = ("gender_delta", "skin_delta", "activity")


def _differ(shows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    names = dict.fromkeys(name for row in shows for name in row)
    return tuple(n for n in names if n not in _NOTES and len({str(row.get(n)) for row in shows}) > 1)


def emoji_sets(n: int, count: int, seed: int) -> list[PromptSet]:
    """As the cloud's benchmarks have them; with 2 or 6 candidates the skin tone is said in the clear."""
    return [
        PromptSet(s.prompts, s.shows, () if "skin" in _differ(s.shows) else (f"{s.shows[0]['skin']} skin tone",))
        for s in candidate_sets(n, count, seed)
    ]


def template_sets(n: int, count: int) -> list[PromptSet]:
    """Templates in turn, with the attributes that make n candidates under the default policy."""
    if n not in SIZES:
        raise InputError(f"templates make {', '.join(map(str, SIZES))} candidates, not {n}")
    people = itertools.cycle(itertools.product(AGES, ETHNICITIES, GENDERS))
    sets = []
    for template, (age, ethnicity, gender) in zip(itertools.cycle(TEMPLATES), people, strict=False):
        words = {"age": age, "ethnicity": ethnicity, "gender": gender}
        who = " ".join(words[name] for name in SIZES[n])
        article = "an" if who[0] in "aeiou" else "a"
        sets.append(_set_of(template.replace("{who}", f"{article} {who}"), "default", n))
        if len(sets) == count:
            return sets
    return sets


def caption_sets(path: Path, n: int, count: int) -> list[PromptSet]:
    """The first `count` lines of a file that have n candidates under the default policy. InputError for too few."""
    sets: list[PromptSet] = []
    for line in path.read_text(encoding="utf8").splitlines():
        try:
            sets.append(_set_of(line.strip(), "default", n))
        except ObclipError:
            continue
        if len(sets) == count:
            return sets
    raise InputError(f"{path} has {len(sets)} captions with {n} candidates, {count} were wanted")


def _set_of(prompt: str, policy: str, n: int) -> PromptSet:
    found = candidate_set(prompt, load_policy(policy))
    if len(found.prompts) != n:
        raise InputError(f"{prompt!r} has {len(found.prompts)} candidates, not {n}")
    return PromptSet(found.prompts, tuple(dict(v) for v in found.values))


def choose(kind: str, n: int, count: int, seed: int, captions: Path | None = None) -> list[PromptSet]:
    if kind == "emoji":
        return emoji_sets(n, count, seed)
    if kind == "templates":
        return template_sets(n, count)
    if captions is None:
        raise InputError("captions come from a file: give --captions")
    return caption_sets(captions, n, count)


def flat(sets: Sequence[PromptSet]) -> list[str]:
    return [prompt for s in sets for prompt in s.prompts]
