"""Prompts to what the UNet is conditioned on: one CLIP text encoder, or Stable Diffusion XL's two.

Podell et al. 2023 (arXiv 2307.01952), section 2.1: the penultimate hidden states of both encoders side by side, the
second one's pooled output, and the picture's size as six numbers.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from obclip.core.errors import InputError


@dataclass(frozen=True)
class Conditioning:
    """hidden: [M, tokens, width]. pooled: [M, width2], or None for a UNet that takes none."""

    hidden: torch.Tensor
    pooled: torch.Tensor | None


@dataclass(frozen=True)
class Encoder:
    """One tokenizer and its text encoder. The lock: requests are checked beside the thread that runs them."""

    tokenizer: CLIPTokenizer
    model: CLIPTextModel | CLIPTextModelWithProjection
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def max_tokens(self) -> int:
        return int(self.tokenizer.model_max_length)

    def tokenise(self, prompts: list[str]) -> torch.Tensor:
        """int64 [M, max_tokens], padded. InputError for a prompt that does not fit; nothing is cut off unsaid."""
        with self.lock:
            longest = max(len(ids) for ids in self.tokenizer(prompts, truncation=False).input_ids)
            if longest > self.max_tokens:
                raise InputError(
                    f"a prompt takes {longest} tokens; the text encoder takes {self.max_tokens}: shorten it"
                )
            batch = self.tokenizer(prompts, padding="max_length", max_length=self.max_tokens, return_tensors="pt")
        return batch.input_ids


@dataclass(frozen=True)
class TextEncoders:
    """encoders: one (Stable Diffusion 1.x) or two (XL). zero_empty: XL's `force_zeros_for_empty_prompt`."""

    encoders: tuple[Encoder, ...]
    zero_empty: bool = False

    @property
    def max_tokens(self) -> int:
        return min(e.max_tokens for e in self.encoders)

    def check(self, prompts: list[str]) -> None:
        """InputError for a prompt that one of the encoders cannot read whole."""
        for encoder in self.encoders:
            encoder.tokenise(prompts)

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
