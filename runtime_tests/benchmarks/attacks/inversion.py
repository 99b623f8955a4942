"""Prompt embeddings sent up in place of text: can the words be read back?

A Hybrid-SD-like device would send the text encoder's hidden states. The encoder is causal, so its state at place t is a
function of the tokens up to t: the adversary tries every token of the vocabulary at each place and keeps the nearest.
Ours sends text, of all candidates, so there is nothing to invert.
"""

from __future__ import annotations

import numpy as np
import torch

from obclip.cloud.text import Encoder
from obclip.edge.oblivious import load_policy

from .pictures import candidates_of, sides
from .row import Row, rate
from .settings import Settings

PROMPTS_AT_MOST = 6


def run(settings: Settings) -> list[Row]:
    encoder, policy = sides().cloud.text.encoders[0], load_policy("emoji")
    rng = np.random.default_rng(settings.seed)
    exact, right, n, hidden, chance = 0, 0, 0, 0, 0.0
    for i in range(min(settings.drawings, PROMPTS_AT_MOST)):
        prompts = candidates_of(i, policy).prompts
        real = tokens(encoder, prompts[int(rng.integers(len(prompts)))])
        shared = set.intersection(*(set(tokens(encoder, p)) for p in prompts))
        read = invert(embed(encoder, real), encoder)
        secret = [t for t in real if t not in shared]
        exact, n, chance = exact + (read == real), n + 1, chance + 1 / len(prompts)
        right, hidden = right + len(set(secret) & set(read)), hidden + len(set(secret))
    tried = encoder.model.config.vocab_size
    note = f"{tried} tokens tried a place, states rounded to float16; ours uploads the text of all N"
    target = "hybrid-sd upload of embeddings"
    return [
        rate("inversion", target, "tokens of hidden attributes read back", right, hidden, None, "outside", note),
        rate("inversion", target, "whole prompts read back", exact, n, chance / n, "outside", "chance: one of our N"),
    ]


def tokens(encoder: Encoder, prompt: str) -> list[int]:
    """Token ids of a prompt, without begin, end and padding."""
    return [int(t) for t in encoder.tokenizer(prompt, add_special_tokens=False).input_ids]


@torch.inference_mode()
def embed(encoder: Encoder, ids: list[int]) -> torch.Tensor:
    """Hidden states as an upload would carry them, padded: float16 [max_tokens, width]."""
    tokenizer = encoder.tokenizer
    row = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    row += [tokenizer.pad_token_id] * (encoder.max_tokens - len(row))
    return encoder.model(torch.tensor([row])).last_hidden_state[0].half()


@torch.inference_mode()
def invert(hidden: torch.Tensor, encoder: Encoder) -> list[int]:
    """The token ids whose states are nearest to `hidden`, float16 [tokens, width], found one after another."""
    tokenizer, limit = encoder.tokenizer, len(hidden)
    found, vocabulary = [int(tokenizer.bos_token_id)], torch.arange(encoder.model.config.vocab_size)
    while len(found) < limit:
        ids = torch.tensor(found).repeat(len(vocabulary), 1)
        states = encoder.model(torch.cat([ids, vocabulary[:, None]], 1)).last_hidden_state[:, -1]
        best = int((states - hidden[len(found)].float()).square().sum(-1).argmin())
        if best == tokenizer.eos_token_id:
            break
        found.append(best)
    return found[1:]
