"""What a candidate set differs in, read off the prompts alone: groups that agree in more and more attributes."""

from __future__ import annotations

from collections.abc import Sequence

Groups = tuple[tuple[int, ...], ...]


def attribute_groups(candidates: Sequence[str]) -> list[Groups]:
    """Coarse to fine: all as one group, those that agree in the first attribute, in the first two, ..., each alone.

    Prompts are aligned word by word. A place whose words follow from another place's (he from man, an from asian) is
    no attribute of its own. Attributes with fewer values come first, so that few groups live long.
    """
    n = len(candidates)
    everyone: Groups = (tuple(range(n)),)
    single: Groups = tuple((i,) for i in range(n))
    if n == 1:
        return [single]
    chosen: list[tuple[str, ...]] = []
    for place in sorted(dict.fromkeys(_places(candidates)), key=lambda p: -len(set(p))):
        if not any(_follows(place, other) for other in chosen):
            chosen.append(place)
    chosen.sort(key=lambda p: len(set(p)))
    levels = [everyone]
    for j in range(1, len(chosen) + 1):
        keys = list(zip(*chosen[:j], strict=True))
        level = tuple(tuple(i for i in range(n) if keys[i] == key) for key in dict.fromkeys(keys))
        if level != levels[-1]:
            levels.append(level)
    return levels if levels[-1] == single else [*levels, single]


def _places(candidates: Sequence[str]) -> list[tuple[str, ...]]:
    """What stands in each place where candidates differ, one entry a candidate.

    Places are words, if all prompts have as many; otherwise what lies between the words that all have in common.
    """
    words = [c.split() for c in candidates]
    if len({len(w) for w in words}) == 1:
        columns = [tuple(column) for column in zip(*words, strict=True)]
    else:
        common = words[0]
        for other in words[1:]:
            common = _common(common, other)
        columns = [tuple(c) for c in zip(*(_between(w, common) for w in words), strict=True)]
    return [column for column in columns if len(set(column)) > 1]


def _common(a: Sequence[str], b: Sequence[str]) -> list[str]:
    """A longest common subsequence of two word lists."""
    best = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in range(len(a) - 1, -1, -1):
        for j in range(len(b) - 1, -1, -1):
            best[i][j] = 1 + best[i + 1][j + 1] if a[i] == b[j] else max(best[i + 1][j], best[i][j + 1])
    found, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        if a[i] == b[j]:
            found.append(a[i])
            i, j = i + 1, j + 1
        elif best[i + 1][j] >= best[i][j + 1]:
            i += 1
        else:
            j += 1
    return found


def _between(words: Sequence[str], anchors: Sequence[str]) -> list[str]:
    """What lies before, between and after `anchors`, found from left to right."""
    parts, start = [], 0
    for anchor in anchors:
        at = list(words).index(anchor, start)
        parts.append(" ".join(words[start:at]))
        start = at + 1
    return [*parts, " ".join(words[start:])]


def _follows(place: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether the word here is determined by the word there."""
    return len(set(zip(other, place, strict=True))) == len(set(other))
