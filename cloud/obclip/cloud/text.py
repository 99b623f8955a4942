"""Prompts to what the UNet is conditioned on: one CLIP text encoder, or Stable Diffusion XL's two.

Podell et al. 2023 (arXiv 2307.01952), section 2.1: the penultimate hidden states of both encoders side by side, the
second one's pooled output, and the picture's size as six numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPTokenizerFast

from obclip.core.errors import InputError

_LONGEST_TOKENS = 1_000_000  # transformers has 1e30 where none is given


def load_tokenizer(folder: Path) -> CLIPTokenizerFast:
    """CLIP's tokenizer in Rust. It keeps no words of what it reads: its cache of them has no room.

    ValueError if it does not say how many tokens the model reads.
    """
    tokenizer = CLIPTokenizerFast.from_pretrained(folder)
    if tokenizer.model_max_length > _LONGEST_TOKENS:
        raise ValueError(f"{folder}/tokenizer_config.json has no model_max_length")
    tokenizer.backend_tokenizer.model._resize_cache(0)
    return tokenizer


@dataclass(frozen=True)
class Conditioning:
    """hidden: [M, tokens, width]. pooled: [M, width2], or None for a UNet that takes none."""

    hidden: torch.Tensor
    pooled: torch.Tensor | None


@dataclass(frozen=True)
class Encoder:
    """One tokenizer and its text encoder. Any thread may tokenise: nothing here asks for padding or truncation, which
    are the only state that a fast tokenizer has."""

    tokenizer: CLIPTokenizerFast | CLIPTokenizer
    model: CLIPTextModel | CLIPTextModelWithProjection

    @property
    def max_tokens(self) -> int:
        return int(self.tokenizer.model_max_length)

    def check(self, prompt: str) -> None:
        """InputError for a prompt that does not fit; nothing is cut off unsaid."""
        self._fit(self.tokenizer(prompt, verbose=False).input_ids)

    def tokenise(self, prompts: list[str]) -> torch.Tensor:
        """int64 [M, max_tokens], padded. InputError as `check`."""
        rows, pad = self.tokenizer(prompts, verbose=False).input_ids, self.tokenizer.pad_token_id
        for ids in rows:
            self._fit(ids)
        return torch.tensor([ids + [pad] * (self.max_tokens - len(ids)) for ids in rows])

    def _fit(self, ids: list[int]) -> None:
        if len(ids) > self.max_tokens:
            raise InputError(f"a prompt takes {len(ids)} tokens; the text encoder takes {self.max_tokens}: shorten it")


@dataclass(frozen=True)
class TextEncoders:
    """encoders: one (Stable Diffusion 1.x) or two (XL). zero_empty: XL's `force_zeros_for_empty_prompt`."""

    encoders: tuple[Encoder, ...]
    zero_empty: bool = False

    @property
    def max_tokens(self) -> int:
        return min(e.max_tokens for e in self.encoders)

    def check(self, prompts: list[str]) -> None:
        """InputError for the first prompt that one of the encoders cannot read whole; those behind it are not read."""
        for prompt in prompts:
            for encoder in self.encoders:
                encoder.check(prompt)

    @torch.inference_mode()
    def encode(self, prompts: list[str], device: torch.device) -> Conditioning:
        """Hidden states and pooled output of `prompts`, in the encoders' dtype. InputError as `check`."""
        if len(self.encoders) == 1:
            (only,) = self.encoders
            return Conditioning(only.model(only.tokenise(prompts).to(device)).last_hidden_state, None)
        outputs = [e.model(e.tokenise(prompts).to(device), output_hidden_states=True) for e in self.encoders]
        hidden = torch.cat([o.hidden_states[-2] for o in outputs], dim=-1)
        pooled = outputs[-1].text_embeds
        if self.zero_empty:
            kept = torch.tensor([bool(p) for p in prompts], device=device)
            hidden = hidden * kept[:, None, None]
            pooled = pooled * kept[:, None]
        return Conditioning(hidden, pooled)
