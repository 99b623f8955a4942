"""A second opinion: how likely any masked or causal language model finds each candidate. Needs the [eval] extra.

Masked models are read by pseudo-log-likelihood: the sum over tokens of each one's log probability when it alone is
masked (Salazar et al. 2020, "Masked Language Model Scoring", equation 1). Causal ones by the log-likelihood itself.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from obclip.core.errors import InputError, ModelMissingError
from obclip.edge.audit.evidence import Candidates, Slot, read_evidence, real_rows
from obclip.edge.audit.head import log_softmax
from obclip.edge.audit.model import Posterior

Float64 = NDArray[np.float64]
_NEEDS = ("torch", "transformers")


@dataclass(frozen=True)
class LanguageModel:
    """A transformers model with its tokenizer. kind: masked if the tokenizer has a mask token, else causal."""

    model: Any
    tokenizer: Any
    kind: Literal["masked", "causal"]
    batch: int

    @classmethod
    def load(cls, source: str, *, device: str = "cpu", batch: int = 32) -> LanguageModel:
        """source: a local folder or a hub id. ModelMissingError without the [eval] extra, or without such a model."""
        if missing := [name for name in _NEEDS if importlib.util.find_spec(name) is None]:
            raise ModelMissingError(
                f"a language model needs {' and '.join(missing)}; install them with: pip install 'obclip[eval]'"
            )
        from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
            masked = tokenizer.mask_token_id is not None
            model = (AutoModelForMaskedLM if masked else AutoModelForCausalLM).from_pretrained(source)
        except (OSError, ValueError) as error:
            raise ModelMissingError(
                f"{source!r} has no masked or causal language model that transformers can load: {error}"
            ) from error
        return cls(model.to(device).eval(), tokenizer, "masked" if masked else "causal", batch)

    def log_likelihoods(self, texts: Sequence[str]) -> Float64:
        """Natural log-likelihood (causal) or pseudo-log-likelihood (masked) of each text, float64 [len(texts)].

        InputError for a text that is longer than the model reads.
        """
        score = self._masked if self.kind == "masked" else self._causal
        return np.array([score(self._ids(text)) for text in texts], np.float64)

    def posterior(self, found: Candidates, prior: Literal["model", "uniform"] = "model") -> Posterior:
        """The probability of each candidate to a cloud that trusts this model.

        prior: "model" keeps what the model thinks of the hidden words by themselves; "uniform" divides that out (the
        likelihood of the slots' texts alone), which leaves, about, what the shared words add. The posterior's `words`
        are empty: a language model does not say which words it went by.
        """
        if prior not in ("model", "uniform"):
            raise InputError(f"prior is {prior!r}; choose model or uniform")
        real = real_rows(found)
        log_p = np.full(len(found.prompts), -np.inf)
        log_p[real] = self.log_likelihoods([found.prompts[i] for i in real])
        if prior == "uniform" and len(real) > 1:
            log_p[real] -= self.log_likelihoods(_slots_alone(found, len(real)))
        probabilities = np.exp(log_softmax(log_p))
        attributes: dict[str, dict[str, float]] = {label: {} for label in found.values[real[0]]}
        for row, p in zip(found.values, probabilities, strict=True):
            for label, value in row.items():
                attributes[label][value] = attributes[label].get(value, 0.0) + float(p)
        return Posterior(f"language model, {prior}", tuple(map(float, probabilities)), attributes, {}, ())

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=self.kind == "masked")["input_ids"]
        if self.kind == "causal":
            start = next((i for i in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id) if i is not None), None)
            if start is None:
                raise InputError("the model's tokenizer has no token that begins or ends a text; choose another model")
            ids = [start, *ids]
        most = getattr(self.model.config, "max_position_embeddings", None)
        if most and len(ids) > most:
            raise InputError(f"a candidate has {len(ids)} tokens; this model reads at most {most}: choose another")
        return ids

    def _causal(self, ids: list[int]) -> float:
        import torch

        with torch.inference_mode():
            row = torch.tensor([ids], device=self.model.device)
            log_p = self.model(input_ids=row).logits[0, :-1].double().log_softmax(-1)
            return float(log_p.gather(1, row[0, 1:, None]).sum())

    def _masked(self, ids: list[int]) -> float:
        import torch

        special = self.tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
        places = [i for i, is_special in enumerate(special) if not is_special]
        total = 0.0
        with torch.inference_mode():
            for some in _parts(places, self.batch):
                rows = torch.tensor([ids] * len(some), device=self.model.device)
                here = torch.arange(len(some), device=self.model.device), torch.tensor(some, device=self.model.device)
                wanted = rows[here].clone()
                rows[here] = self.tokenizer.mask_token_id
                log_p = self.model(input_ids=rows).logits[here].double().log_softmax(-1)
                total += float(log_p.gather(1, wanted[:, None]).sum())
        return total


def _slots_alone(found: Candidates, n: int) -> list[str]:
    """Of each candidate that is no padding, what it has in its slots and nothing else."""
    slots = [piece for piece in read_evidence(found).pieces if isinstance(piece, Slot)]
    return [" ".join(slot.texts[j] for slot in slots) for j in range(n)]


def _parts(values: Sequence[int], size: int) -> Iterator[list[int]]:
    for i in range(0, len(values), size):
        yield list(values[i : i + size])
