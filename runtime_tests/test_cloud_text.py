"""Prompts to tokens: the tokenizer in Rust against that in Python, by many threads, and no more than it takes."""

from __future__ import annotations

import subprocess
import sys
import threading
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import LIMIT_S
from transformers import CLIPTokenizer

from obclip.cloud.text import Encoder, TextEncoders, load_tokenizer
from obclip.core.errors import InputError

FOLDER = Path(str(resources.files("obclip.cloud") / "pairs" / "emoji" / "tokenizer"))
TEXTS = [
    "", " ", "a", "a woman firefighter with dark skin", "  A   WOMAN,\tin\nred  ", "it's a man's hat; they've 2 of 10!",
    "naïve café, Ångström, señora, Übergröße, façade", "женщина в красной шляпе", "γυναίκα με καπέλο", "امرأة",
    "여자", "ქალი",
    "🙂", "a 👩🏽 and 👨🏿, 🇫🇷 100%", "— “quotes” … ‹a› «b» ¿c?", "...!!!???", "#1 @home 50% (a+b)=c/d \\ ~ ^ _ | <b>",
    "e\u0301 and é", "½ ² Ⅷ ٣", "x" * 300, "ab" * 150, "supercalifragilisticexpialidocious" * 9, "1234567890" * 20,
    "<|endoftext|>", "a <|startoftext|> b", "<|ENDOFTEXT|> and 'S 'RE", "a\u00a0b\u2003c", "𝒜 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
]  # fmt: skip


def in_python(folder: Path) -> Any:
    if hasattr(CLIPTokenizer, "backend_tokenizer"):
        pytest.skip("this release of transformers has none in Python")
    return CLIPTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def fast() -> Any:
    return load_tokenizer(FOLDER)


@pytest.fixture(scope="module")
def slow() -> Any:
    return in_python(FOLDER)


@pytest.fixture(scope="module", params=["emoji", "small"])
def folder(request: pytest.FixtureRequest, large_folder: Path) -> Path:
    return FOLDER if request.param == "emoji" else large_folder / "tokenizer"


@pytest.mark.parametrize("text", TEXTS)
def test_its_ids_are_those_of_the_tokenizer_in_python(folder: Path, text: str):
    assert load_tokenizer(folder)(text).input_ids == in_python(folder)(text).input_ids


@pytest.mark.parametrize("text", ["山水画 woman", "日本のラーメン", "a 👩‍🚀 and 🏳️‍🌈", "zero\u200bwidth"])
def test_ideographs_and_joined_emoji_are_read_as_clip_reads_them(folder: Path, text: str):
    """Without ftfy, the tokenizer in Python sets ideographs apart and leaves joiners out, which CLIP's own does not."""
    slow = in_python(folder)
    slow.fix_text = lambda words: unicodedata.normalize("NFC", words)
    assert load_tokenizer(folder)(text).input_ids == slow(text).input_ids


LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZàéîõüßñçøæЖшяאבת0123456789 .,;:!?'\"-()&%🙂🎨👩 \t\n"


@settings(max_examples=300)
@given(st.text(st.sampled_from(LETTERS), max_size=120))
def test_any_mixture_of_scripts_and_signs_gives_the_same_ids(fast: Any, slow: Any, text: str):
    assert fast(text).input_ids == slow(text).input_ids


def test_what_is_padded_is_what_the_tokenizer_pads(folder: Path):
    encoder, slow = Encoder(load_tokenizer(folder), None), in_python(folder)
    prompts = ["", "a woman", "noto style emoji of a man cook"]
    wanted = slow(prompts, padding="max_length", max_length=encoder.max_tokens, return_tensors="pt").input_ids
    assert encoder.tokenise(prompts).equal(wanted)


class Slowly:
    """A tokenizer that stops at a certain prompt until told to go on, and counts those that it read."""

    model_max_length, pad_token_id = 32, 0

    def __init__(self, real: Any, at: str = "stop here") -> None:
        self.real, self.at, self.read = real, at, list[str]()
        self.there, self.go = threading.Event(), threading.Event()

    def __call__(self, prompts: Any, **options: Any) -> Any:
        self.read += [prompts] if isinstance(prompts, str) else prompts
        if prompts == self.at:
            self.there.set()
            assert self.go.wait(LIMIT_S)
        return self.real(prompts, **options)


def test_nothing_behind_a_prompt_that_is_too_long_is_read(fast: Any):
    first, second = Slowly(fast), Slowly(fast)
    text = TextEncoders((Encoder(first, None), Encoder(second, None)))
    with pytest.raises(InputError, match=r"takes \d\d+ tokens; the text encoder takes 32"):
        text.check(["a man", "cook " * 60, "a woman"])
    assert (first.read, second.read) == (["a man", "cook " * 60], ["a man"])


def test_prompts_that_are_checked_do_not_hold_up_those_that_are_encoded(fast: Any):
    slowly = Slowly(fast)
    encoder = Encoder(slowly, None)
    with ThreadPoolExecutor(1) as pool:
        checked = pool.submit(encoder.check, "stop here")
        assert slowly.there.wait(LIMIT_S)
        try:
            assert encoder.tokenise(["a man", "a woman"]).shape == (2, 32)
            assert not checked.done()
        finally:
            slowly.go.set()
        checked.result(LIMIT_S)


def test_many_threads_may_tokenise_at_once(fast: Any):
    encoder = Encoder(fast, None)
    prompts = [f"a {colour} hat number {i}" for i in range(50) for colour in ("red", "dark", "light", "medium")]
    expected = [encoder.tokenise([p]) for p in prompts]

    def both(i: int) -> bool:
        encoder.check(prompts[i])
        return encoder.tokenise([prompts[i], prompts[0]])[:1].equal(expected[i])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(both, range(len(prompts))))


SCAN = """
import gc, random, sys
from pathlib import Path
from transformers import CLIPTokenizerFast
from obclip.cloud.text import load_tokenizer

START = "".join(random.Random(1).choices("hijklmnop", k=16))

def in_memory():
    count = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, rights, *_ = line.split()
        start, stop = (int(end, 16) for end in span.split("-"))
        if rights.startswith("rw"):
            with open("/proc/self/mem", "rb") as memory:
                memory.seek(start)
                try:
                    count += memory.read(stop - start).count(START.encode())
                except OSError:
                    pass
    return count

def read_prompts(tokenizer):
    rng = random.Random(2)
    for start in [START] * 5 + [""] * 3000:  # the others overwrite what was given back
        tokenizer(start + "".join(rng.choices("abcdefgh", k=76 - len(start))), verbose=False)
    gc.collect()
    return in_memory()

folder = Path(sys.argv[1])
print(in_memory(), read_prompts(load_tokenizer(folder)), read_prompts(CLIPTokenizerFast.from_pretrained(folder)))
"""


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="memory is searched by way of /proc")
def test_no_word_of_a_prompt_stays_in_memory():
    """Of five words with a start of their own; the cache that the library has by itself shows how they are found."""
    ended = subprocess.run(
        [sys.executable, "-c", SCAN, str(FOLDER)], capture_output=True, text=True, timeout=120, check=True
    )
    before, ours, cached = (int(count) for count in ended.stdout.split())
    assert ours == before
    assert cached >= before + 5
