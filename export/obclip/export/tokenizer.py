"""The tokenizer as one tokenizer.json, which the device reads without transformers."""

from __future__ import annotations

import shutil
from pathlib import Path

from tokenizers import Tokenizer
from transformers import CLIPTokenizer, CLIPTokenizerFast

from obclip.core.errors import ModelMissingError, VerificationError

_LONGEST_TOKENS = 1_000_000  # transformers has 1e30 where none is given
_PROBES = (
    "",
    "a portrait photo of a young woman with medium-dark skin tone",
    "An OLD man's hat, 42 years; isn't it?",
    "naïve café 🙂 — “quotes”",  # no ideographs: CLIPTokenizer splits them apart where ftfy is not installed
    "woman woman woman woman woman woman woman woman",
)


def export_tokenizer(source: Path, out: Path) -> tuple[int, int]:
    """Copy the tokenizer's files and add tokenizer.json; returns (max tokens, pad token id).

    VerificationError unless tokenizer.json gives CLIPTokenizer's ids on text with capitals, digits and Unicode.
    """
    try:
        slow = CLIPTokenizer.from_pretrained(source)
        fast = CLIPTokenizerFast.from_pretrained(source, from_slow=True)
    except (OSError, ValueError, TypeError) as error:
        raise ModelMissingError(f"{source} holds no CLIP tokenizer: {error}") from error
    if slow.model_max_length > _LONGEST_TOKENS:
        raise ModelMissingError(
            f"{source}/tokenizer_config.json has no model_max_length; the text encoder's max_position_embeddings is it"
        )
    out.mkdir(parents=True)
    for file in sorted(source.iterdir()):
        if file.suffix in (".json", ".txt") and file.name != "tokenizer.json":
            shutil.copyfile(file, out / file.name)
    if not (out / "vocab.json").is_file():  # transformers 5 keeps tokenizer.json alone; other applications read these
        fast.backend_tokenizer.model.save(str(out))
    fast.backend_tokenizer.save(str(out / "tokenizer.json"))
    written = Tokenizer.from_file(str(out / "tokenizer.json"))
    written.no_padding()
    written.no_truncation()
    for text in _PROBES:
        if written.encode(text).ids != slow(text).input_ids:
            raise VerificationError(f"tokenizer.json and the model's tokenizer disagree on {text!r}; nothing is kept")
    return int(slow.model_max_length), int(slow.pad_token_id)
