"""Prompts for calibration: people in many settings, light and framing, as the pairs are used; our own wording."""

from __future__ import annotations

from collections.abc import Sequence

PEOPLE = (
    "a portrait photo of a woman with short grey hair, soft window light",
    "a young man laughing in a crowded street market, candid photo",
    "an elderly fisherman mending a net on a wooden pier at dawn",
    "close-up of a girl with freckles and braided hair, shallow depth of field",
    "a boy flying a red kite on a windy beach, wide shot",
    "a nurse in blue scrubs standing in a hospital corridor",
    "a chef plating dessert in a busy restaurant kitchen, warm light",
    "a firefighter covered in soot, dramatic lighting, black background",
    "a bride and groom dancing under string lights, film grain",
    "a farmer holding a lamb in a green field, overcast sky",
    "studio headshot of a businessman in a dark suit and tie",
    "a ballet dancer leaping across an empty stage, motion blur",
    "an astronaut reading a newspaper in a diner, cinematic",
    "a violinist playing in an underground station",
    "a grandmother baking bread with her grandson, cosy kitchen",
    "a woman in a yellow raincoat walking a dog in the rain",
    "a carpenter planing a plank, sawdust in the air, side light",
    "two friends sharing headphones on a night bus, neon reflections",
    "a teacher writing equations on a blackboard",
    "a surfer carrying a board at sunset, silhouette",
    "an old man with a long white beard smoking a pipe, oil painting",
    "a scientist looking into a microscope, cold blue light",
    "a mother holding a newborn baby, black and white photograph",
    "a football player kicking a ball in heavy rain, telephoto",
    "a queen in an embroidered dress, renaissance portrait",
    "a cyclist climbing a mountain pass, fog, long lens",
    "a street musician with an accordion, watercolour",
    "a woman swimming in a clear turquoise lake, seen from above",
    "a man repairing a bicycle in a small workshop",
    "a group of hikers around a campfire under the stars",
    "a barista pouring milk into a cup, macro photo",
    "a police officer directing traffic at a junction",
    "a painter in front of a huge canvas, paint on her hands",
    "a child asleep in a hammock, dappled shade",
    "a pilot in the cockpit of an old propeller plane",
    "a tailor measuring cloth, shelves of fabric behind",
    "a skateboarder in mid-air above a concrete bowl, fisheye",
    "a woman with curly red hair reading in a library, golden hour",
    "a judge in black robes behind a wooden desk",
    "a man in a hooded cloak on a snowy ridge, digital art",
)

_STYLES = ("noto", "twemoji", "fluent 3d", "blob", "emojitwo")
_TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
_WHO = ("a woman", "a man cook", "a girl", "an older man", "a woman firefighter", "a boy", "a man judge", "a person")

EMOJI = tuple(
    f"{_STYLES[(i + i // 5) % 5]} style emoji of {_WHO[i % 8]} with {_TONES[(2 * i + i // 8) % 5]} skin tone"
    for i in range(40)
)


def choose(pair_name: str, count: int) -> Sequence[str]:
    """The first `count` prompts (at most 40) for a pair."""
    return (EMOJI if pair_name == "emoji" else PEOPLE)[:count]
