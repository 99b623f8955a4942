"""Language models as a second opinion: tiny random ones, against scores computed one token at a time."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from obclip.core.errors import InputError, ModelMissingError
from obclip.edge.audit.language_model import LanguageModel
from obclip.edge.oblivious import Options, candidate_set, load_policy

TEXT = "a an man woman young old middle aged - his her dog and beard with red in the , . dress"
WORDS = TEXT.split()
DEFAULT = load_policy("default")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, initializer_range=0.5,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    vocabulary = {word: i for i, word in enumerate(["<s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", unk_token="<unk>")
    fast.save_pretrained(folder)
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=len(vocabulary), n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0,
        initializer_range=0.5,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_causal_models_give_the_log_likelihood(gpt2: Path):
    model = LanguageModel.load(str(gpt2))
    assert model.kind == "causal"
    texts = ["a man with a beard", "a woman"]
    for text, said in zip(texts, model.log_likelihoods(texts), strict=True):
        ids = torch.tensor([[0, *model.tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            mean_loss = model.model(input_ids=ids, labels=ids).loss
        assert said == pytest.approx(-float(mean_loss) * (ids.shape[1] - 1), abs=1e-4)


def test_masked_models_give_the_pseudo_log_likelihood_whatever_the_batch(bert: Path):
    model = LanguageModel.load(str(bert))
    assert model.kind == "masked"
    text = "an old man with his dog"
    ids = model.tokenizer(text)["input_ids"]
    expected = 0.0
    for i in range(1, len(ids) - 1):
        row = [*ids[:i], model.tokenizer.mask_token_id, *ids[i + 1 :]]
        with torch.no_grad():
            logits = model.model(input_ids=torch.tensor([row])).logits[0, i]
        expected += float(logits.log_softmax(-1)[ids[i]])
    assert model.log_likelihoods([text])[0] == pytest.approx(expected, abs=1e-4)
    assert LanguageModel.load(str(bert), batch=2).log_likelihoods([text])[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_posteriors_are_the_softmax_of_the_scores(kind: str, request: pytest.FixtureRequest):
    model = LanguageModel.load(str(request.getfixturevalue(kind)))
    found = candidate_set("an old man with his dog and a beard", DEFAULT)
    scores = model.log_likelihoods(found.prompts)
    posterior = model.posterior(found)
    expected = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    assert posterior.probabilities == pytest.approx(expected)
    men = [p for p, row in zip(posterior.probabilities, found.values, strict=True) if row["gender"] == "man"]
    assert posterior.attributes["gender"]["man"] == pytest.approx(sum(men))
    assert 1 <= posterior.effective_n <= len(found.prompts)
    assert not np.allclose(posterior.probabilities, 1 / len(found.prompts))
    for candidate in found.prompts[:2]:
        assert model.posterior(candidate_set(candidate, DEFAULT)) == posterior


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_uniform_prior_leaves_nothing_where_no_word_is_shared(kind: str, request: pytest.FixtureRequest):
    model = LanguageModel.load(str(request.getfixturevalue(kind)))
    alone = candidate_set("woman", DEFAULT)
    assert model.posterior(alone, "uniform").effective_n == pytest.approx(2)
    assert model.posterior(alone, "model").effective_n < 2
    with pytest.raises(InputError, match="model or uniform"):
        model.posterior(alone, "captions")


def test_padding_is_told_apart(gpt2: Path):
    model = LanguageModel.load(str(gpt2))
    plain, padded = (candidate_set("a man in red", DEFAULT, o) for o in (None, Options(pad=5)))
    got = sorted(model.posterior(padded).probabilities)
    assert got[:3] == [0, 0, 0]
    assert got[3:] == pytest.approx(sorted(model.posterior(plain).probabilities))


def test_texts_that_are_too_long_are_named(gpt2: Path):
    with pytest.raises(InputError, match="at most 32"):
        LanguageModel.load(str(gpt2)).log_likelihoods(["a man " * 20])


def test_missing_models_and_extras_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ModelMissingError, match="no masked or causal"):
        LanguageModel.load(str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelMissingError, match=r"obclip\[eval\]"):
        LanguageModel.load("any")
