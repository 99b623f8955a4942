"""What a UNet is told of a text, from a bundle's own tokenizers and text encoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from obclip.core.errors import BundleError, InputError
from obclip.core.manifest import Manifest
from obclip.edge.providers.base import Session

Conditions = dict[str, NDArray[np.float32]]  # by the names of the UNet's inputs


class TextReader:
    """One tokenizer and encoder (Stable Diffusion 1.x), or two (SDXL): the hidden states of both side by side, the
    second one's pooled output, and the picture's size as six numbers (Podell et al. 2023, arXiv 2307.01952)."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest
        self._tokenizers: dict[str, Tokenizer] = {}

    def tokenise(self, prompt: str, tokenizer: str = "tokenizer") -> NDArray[np.int64]:
        """int64 [1, max_tokens], padded. InputError for a prompt that does not fit; nothing is cut off unsaid."""
        m = self._manifest
        try:
            ids = self._tokenizer(tokenizer).encode(prompt).ids
        except TypeError as error:  # lone surrogates, which bytes of another encoding become
            raise InputError("the prompt is not valid Unicode text; write it in UTF-8") from error
        if len(ids) > m.max_tokens:
            raise InputError(f"the prompt takes {len(ids)} tokens, this model reads {m.max_tokens}: shorten it")
        second = tokenizer == "tokenizer_2" and m.pad_token_id_2 is not None
        pad = m.pad_token_id_2 if second else m.pad_token_id
        return np.array([ids + [pad] * (m.max_tokens - len(ids))], np.int64)

    def encode(self, prompt: str, session: Callable[[str], Session]) -> Conditions:
        """session: gives a text encoder's, by its name."""
        m = self._manifest
        if m.family != "sdxl":
            found = session("text_encoder").run(input_ids=self.tokenise(prompt))
            return {"encoder_hidden_states": np.asarray(found["last_hidden_state"], np.float32)}
        layers, pooled = [], None
        for name in (c.name for c in m.components if c.name.startswith("text_encoder")):
            found = session(name).run(input_ids=self.tokenise(prompt, name.replace("text_encoder", "tokenizer")))
            count = sum(key.startswith("hidden_states.") for key in found)
            layers.append(found[f"hidden_states.{count - 2}"])
            pooled = found.get("text_embeds", pooled)
        if pooled is None:
            raise BundleError("the bundle's second text encoder gives no text_embeds; export it again")
        keep = np.float32(0 if m.zero_empty_prompt and not prompt else 1)
        return {
            "encoder_hidden_states": np.asarray(np.concatenate(layers, axis=-1), np.float32) * keep,
            "text_embeds": np.asarray(pooled, np.float32) * keep,
            "time_ids": np.array([[m.height, m.width, 0, 0, m.height, m.width]], np.float32),
        }

    def _tokenizer(self, name: str) -> Tokenizer:
        if name not in self._tokenizers:
            path = self._folder / name / "tokenizer.json"
            try:
                tokenizer = Tokenizer.from_file(str(path))
            except Exception as error:  # the library raises plain Exception
                raise BundleError(f"{path} cannot be read ({error}); export the bundle again") from error
            tokenizer.no_padding()
            tokenizer.no_truncation()
            self._tokenizers[name] = tokenizer
        return self._tokenizers[name]
