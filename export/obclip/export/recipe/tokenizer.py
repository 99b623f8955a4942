"""A small byte-pair vocabulary in CLIP's own file format, so that CLIPTokenizer reads it."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

# CLIP's word pattern (Radford et al. 2021, simple_tokenizer.py): contractions, letters, single digits, the rest
_WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
_EXTRA = (
    "lady gentleman guy gal elderly grandmother grandfather skinned adult the and his her he she in at on young old"
)


def build_tokenizer(captions: list[str], vocab: int, max_tokens: int, folder: Path) -> CLIPTokenizer:
    """Learn merges from `captions`; every byte, in and at the end of a word, stays a token, so any text can be read."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=vocab, end_of_word_suffix="</w>", show_progress=False)
    bpe.train_from_iterator([*captions, *[_EXTRA] * 50], trainer)
    merges = [tuple(m) for m in json.loads(bpe.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = letters + [c + "</w>" for c in letters]
    known = set(tokens)
    for a, b in merges:
        if a + b not in known:
            known.add(a + b)
            tokens.append(a + b)
    tokens += _SPECIAL
    folder.mkdir(parents=True, exist_ok=True)
    vocab_file, merges_file = folder / "vocab.json", folder / "merges.txt"
    vocab_file.write_text(json.dumps({t: i for i, t in enumerate(tokens)}, ensure_ascii=False), encoding="utf8")
    merges_file.write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf8")
    return CLIPTokenizer(str(vocab_file), str(merges_file), model_max_length=max_tokens)
