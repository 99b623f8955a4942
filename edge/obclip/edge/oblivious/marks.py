"""The user's own secrets: `[[Alice|Bob|Carol]]` marks a span and what it could be instead, the real one first."""

from __future__ import annotations

import re

from obclip.core.errors import InputError

MARK = re.compile(r"\[\[([^\[\]]*)\]\]")


def alternatives(inside: str) -> tuple[str, ...]:
    """Of the text between the brackets, real one first. InputError unless there are two or more different ones."""
    found = tuple(part.strip() for part in inside.split("|"))
    if len(found) < 2 or len(set(found)) != len(found) or not all(found):
        raise InputError(f"[[{inside}]] needs two or more different words or spans, like [[Alice|Bob|Carol]]")
    return found


def protect(prompt: str, marks: tuple[str, ...]) -> str:
    """Put each mark ("Alice|Bob|Carol") on every whole-word occurrence of its first word, whatever its case.

    InputError if the prompt does not have that word.
    """
    for mark in marks:
        real = alternatives(mark)[0]
        pattern = re.compile(rf"(?<![\w\[|]){re.escape(real)}(?![\w\]|])", re.IGNORECASE)
        prompt, n = pattern.subn(f"[[{mark}]]", prompt)
        if n == 0:
            raise InputError(f"the prompt does not have {real!r}, which is to be protected")
    return prompt


def unmark(prompt: str) -> str:
    """The prompt as the user means it: every mark replaced by its first alternative."""
    return MARK.sub(lambda m: alternatives(m[1])[0], prompt)
