"""Portrait templates of our own: ten that give the subject away, ten that do not, and words to fill them with."""

from __future__ import annotations

import itertools

GENDERS = ("woman", "man")
POLITE = {"woman": "lady", "man": "gentleman"}
AGES = ("young", "middle-aged", "old")

# (template, what whoever writes it means): "{person}" is "<age> <gender>"
LEAKING: tuple[tuple[str, dict[str, str]], ...] = (
    ("close portrait of a {person} with a five o'clock shadow and a loosened tie", {"gender": "man"}),
    ("a {person} in a wedding dress with a lace veil beside a bright window", {"gender": "woman"}),
    ("studio picture of a {person} with a thick beard under a felt hat", {"gender": "man"}),
    ("a {person} with red lipstick and painted nails looking into a mirror", {"gender": "woman"}),
    ("a {person} with deep wrinkles and thin grey hair in a rocking chair", {"age": "old"}),
    ("a {person} leaning on a walking cane while feeding pigeons", {"age": "old"}),
    ("a {person} doing a trick on a skateboard with a backpack on", {"age": "young"}),
    ("headshot of a {person} in a tuxedo with a bow tie", {"gender": "man"}),
    ("a {person} in high heels carrying a small purse", {"gender": "woman"}),
    ("a {person} playing a video game in a dorm room", {"age": "young"}),
)
NEUTRAL: tuple[str, ...] = (
    "a {person} standing beside a window",
    "portrait of a {person} against a plain grey wall",
    "a {person} looking at the camera in soft light",
    "a {person} reading on a bench in the park",
    "a {person} waiting at a crossing in the rain",
    "black and white photo of a {person} near the sea",
    "a {person} with a cup of tea at a table",
    "a {person} walking along a path at dusk",
    "a {person} holding an umbrella",
    "oil painting of a {person} in front of a bookshelf",
)
# What a reader knows of such words that a few thousand captions do not show: natural log-odds given by hand
CLUES: dict[str, tuple[str, str, float]] = {
    "shadow": ("gender", "man", 3.0), "beard": ("gender", "man", 4.0), "tuxedo": ("gender", "man", 3.0),
    "tie": ("gender", "man", 2.5), "veil": ("gender", "woman", 3.5), "lipstick": ("gender", "woman", 4.0),
    "nails": ("gender", "woman", 2.0), "heels": ("gender", "woman", 3.5), "purse": ("gender", "woman", 3.0),
    "wrinkles": ("age", "old", 3.0), "cane": ("age", "old", 3.0), "dorm": ("age", "young", 3.5),
    "skateboard": ("age", "young", 3.0), "rocking": ("age", "old", 2.0),
}  # fmt: skip


def fill(template: str, age: str, gender: str) -> str:
    return template.replace("{person}", f"{age} {gender}").replace("a old", "an old")


def fallback_captions() -> list[str]:
    """Every template with every value it may be meant for; captions for a machine that has no others."""
    filled = []
    for template, meant in (*LEAKING, *((t, {}) for t in NEUTRAL)):
        for age, gender in itertools.product(AGES, GENDERS):
            if meant.items() <= {"age": age, "gender": gender}.items():
                filled += [fill(template, age, word) for word in (gender, POLITE[gender])]
                filled += [template.replace("{person}", word) for word in (gender, POLITE[gender])]
    return filled
