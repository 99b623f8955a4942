"""Text as the parser sees it: one spelling of what looks the same, and articles that fit the next word."""

from __future__ import annotations

import re
import unicodedata

from obclip.core.errors import InputError, PrivacyError
from obclip.core.wire import MAX_PROMPT_CHARS

# people and parts of them, families, gender signs, skin tone modifiers, flags of countries among the emoji
_PERSON_SYMBOLS = re.compile(
    "[\u2640\u2642\u26a7\U0001f1e6-\U0001f1ff\U0001f385\U0001f3c2-\U0001f3cc\U0001f3fb-\U0001f3ff\U0001f442-\U0001f450\U0001f464-\U0001f478\U0001f47c\U0001f481-\U0001f487\U0001f48f\U0001f491\U0001f4aa\U0001f574-\U0001f57a\U0001f645-\U0001f64f\U0001f6a3\U0001f6b4-\U0001f6b6\U0001f6b9-\U0001f6bc\U0001f6c0\U0001f6cc\U0001f90c-\U0001f93e\U0001f977\U0001f9b0-\U0001f9bb\U0001f9cd-\U0001f9e0\U0001fac3-\U0001fac5\U0001faf0-\U0001faf8]"
)
_QUOTES = str.maketrans({"’": "'", "‘": "'", "`": "'", "´": "'", "‐": "-", "‑": "-", "–": "-", "—": "-"})
# and letters read one by one: "an fbi agent", "a ufo"
_AN_EXCEPTIONS = re.compile(
    r"(?:hour|honest|honou?r|heir|(?:fbi|fps|hdr|html|lcd|led|mp3|mri|nba|nfl|ngo|nhl|rpg|suv)s?\b)"
)
_A_EXCEPTIONS = re.compile(
    r"(?:uni(?!n|d|mp|ma|mo)|ugan|ukr|uru|eu|one\b|once|use|usu|ute|ubi|u-|ufo|(?:uk|us|usa|usb)\b|uti|utop)"
)


def normalise(prompt: str) -> str:
    """Lower case, composed Unicode, single spaces (for underscores between words too), plain quotes and hyphens, commas
    between lines; "blond" in either spelling, for one is a woman's.

    Text encoders of the supported families read lower case themselves. InputError for empty or over-long text and for
    invisible characters; PrivacyError for a tag such as <lora:name:1>, a symbol of a person, and a word of mixed
    scripts, which could hide a protected one.
    """
    if not prompt.strip():
        raise InputError("the prompt is empty; describe the picture in a few words")
    if len(prompt) > MAX_PROMPT_CHARS:
        raise InputError(f"the prompt has {len(prompt)} characters; at most {MAX_PROMPT_CHARS} are taken: shorten it")
    for character in dict.fromkeys(prompt):
        if unicodedata.category(character) in ("Cc", "Cf", "Co", "Cs", "Cn") and character not in "\t\n\r":
            raise InputError(f"the prompt has the invisible character U+{ord(character):04X}; remove it")
    if re.search(r"<\w+:", prompt):
        raise PrivacyError("the prompt has a tag in <...>, whose name cannot be hidden; leave the tag out")
    if _PERSON_SYMBOLS.search(prompt):
        raise PrivacyError("the prompt has a symbol of a person, which shows what words could hide; say it in words")
    # A line, as the keyword BREAK, ends what stands before it
    keyword = any(c.islower() for c in prompt)
    parted = re.sub(r"\s*,?\s*\bBREAK\b\s*,?\s*", ", ", prompt) if keyword else prompt
    parted = re.sub(r"(?<=[^\s,.;:!?])[ \t]*[\r\n]+\s*(?=\S)", ", ", parted)
    text = unicodedata.normalize("NFKC", parted).translate(_QUOTES).lower()
    text = unicodedata.normalize("NFC", text)
    for word in () if text.isascii() else re.findall(r"[^\W\d_]+", text):
        if re.search(r"[a-z]", word) and any(ord(c) > 0x24F for c in word):
            raise PrivacyError("the prompt has a word that mixes alphabets; write it in one, so that it can be checked")
    text = re.sub(r"\bblonde(?=s?\b)", "blond", re.sub(r"(?<=\w)_+(?=\w)", " ", text))
    return re.sub(r"\s+", " ", text).strip()


def without_accents(word: str) -> str:
    """Letters alone: "café" is looked up as "cafe", "wómán" as "woman"."""
    return "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c))


def fix_articles(text: str) -> str:
    """Make every a/an fit the word after it, be it behind brackets or quotes. Applied to every candidate, so it is the
    same function for all."""
    return re.sub(r"\b(an?) (?=[^\w.;:!?]*([^\W_][\w-]*))", lambda m: "an " if _takes_an(m[2]) else "a ", text)


def _takes_an(word: str) -> bool:
    if _AN_EXCEPTIONS.match(word):
        return True
    if _A_EXCEPTIONS.match(word):
        return False
    if (digits := re.match(r"\d+", word)) is not None:  # eight..., eleven, eighteen, eleven and eighteen hundred
        said = digits[0]
        return said[0] == "8" or said in ("11", "18") or (len(said) == 4 and said[:2] in ("11", "18"))
    return word[0] in "aeiou"
