"""Where words lie: token embeddings of a CLIP text encoder, the embedded pair's or any other."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
from transformers import CLIPTextModel, CLIPTokenizer

from obclip.core.errors import InputError, ModelMissingError

from .mechanism import Float64, distances
from .words import Vocabulary


def load_phi(vocabulary: Vocabulary, folder: Path | None = None) -> Float64:
    """phi, float64 [V, d]: for each word the mean of its tokens' embeddings, as they enter the encoder.

    folder: a diffusers folder with text_encoder/ and tokenizer/, or one folder that holds both (a CLIP checkpoint), in
    place of the embedded pair. ModelMissingError if it holds neither; InputError for a word of no tokens.
    """
    root = Path(str(resources.files("obclip.cloud").joinpath("pairs", "emoji"))) if folder is None else folder
    encoder, tokens = (root / "text_encoder", root / "tokenizer") if (root / "text_encoder").is_dir() else (root, root)
    if not (encoder / "config.json").is_file():
        raise ModelMissingError(
            f"no CLIP text encoder in {root}; name a diffusers folder or a CLIP checkpoint's folder"
        )
    table = CLIPTextModel.from_pretrained(encoder, local_files_only=True).get_input_embeddings().weight
    weights = table.detach().double().numpy()  # [tokens, d]
    tokenizer = CLIPTokenizer.from_pretrained(tokens, local_files_only=True)
    phi = np.empty((len(vocabulary), weights.shape[1]))
    for i, word in enumerate(vocabulary.words):
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        if not ids:
            raise InputError(f"the tokenizer in {tokens} makes no token of {word!r}; leave that word out")
        phi[i] = weights[ids].mean(0)
    return phi


def mean_distance(phi: Float64) -> float:
    """Mean distance of two different words: what metric privacy's eps is measured against."""
    count = len(phi)
    return float(distances(phi).sum() / (count * (count - 1)))
