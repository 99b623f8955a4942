"""Pair files: the shipped ones, one's own, and what is refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

from obclip.core.errors import InputError, ModelMissingError
from obclip.core.pairs import ModelRef, load_pair, parse_pair, resolve_source, shipped_pairs

EMOJI = resources.files("obclip.core.pairs").joinpath("emoji.toml").read_text("utf8")


def test_shipped_pairs_load_and_differ():
    assert set(shipped_pairs()) == {"emoji", "realistic-vision", "sd14", "sd14-tiny", "sdxl", "lcm-sdxl"}
    assert len({load_pair(name).digest for name in shipped_pairs()}) == 6


@pytest.mark.parametrize(
    ("name", "shape"),
    [("emoji", (4, 16, 16)), ("sd14", (4, 64, 64)), ("sdxl", (4, 128, 128)), ("lcm-sdxl", (4, 128, 128))],
)
def test_latent_shapes(name: str, shape: tuple[int, int, int]):
    assert load_pair(name).latent_shape == shape


def test_digest_is_sha256_of_the_settings_as_canonical_json():
    values = tomllib.loads(EMOJI)
    defaults = {"timestep_shift": 0, "handoff_history": False}
    sides = {side: {"revision": None, "vae": None, "unet": None, **values[side]} for side in ("cloud", "device")}
    text = json.dumps({**defaults, **values, **sides}, sort_keys=True, separators=(",", ":"))
    assert load_pair("emoji").digest == hashlib.sha256(text.encode()).hexdigest()


def test_one_setting_changes_the_digest():
    assert parse_pair("emoji", EMOJI.replace("handoff = 10", "handoff = 11")).digest != load_pair("emoji").digest


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (("handoff = 10", "handoff = 26"), "handoff"),
        (("handoff = 10", "handof = 10"), "handof"),
        (("steps = 25", ""), "steps"),
        (('"dpm++2m"', '"pndm"'), "pndm"),
        (("height = 64", "height = 66"), "multiple"),
        (("height = 64", "height = 64.0"), "whole number"),
        (("latent_downscale = 4", "latent_downscale = 0"), "whole number"),
        (("steps = 25", "steps = 25\ndevice_steps = 0"), "whole number"),
        (("steps = 25", 'steps = 25\ndevice_solver = "heun"'), "heun"),
        (("steps = 25", "steps = 25\ntimestep_shift = 16"), "lead to step 26"),
        (("[cloud]", "[cloud"), "TOML"),
        (('[cloud]\nsource = "embedded:emoji"', "cloud = 3"), "table"),
    ],
)
def test_broken_pair_files_are_refused(change: tuple[str, str], word: str):
    with pytest.raises(InputError, match=word):
        parse_pair("mine", EMOJI.replace(*change, 1))


def test_unknown_names_list_the_known_ones():
    with pytest.raises(InputError, match="realistic-vision"):
        load_pair("emojis")


def test_a_pair_file_of_ones_own(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text(EMOJI)
    mine = load_pair(str(path))
    assert (mine.name, mine.digest) == ("mine", load_pair("emoji").digest)


def test_sources_resolve_to_a_folder_or_a_hub_id(tmp_path: Path):
    assert resolve_source(ModelRef(str(tmp_path)), "cloud") == tmp_path
    assert resolve_source(ModelRef("segmind/small-sd"), "edge") == "segmind/small-sd"
    with pytest.raises(ModelMissingError, match="nothing-like-it"):
        resolve_source(ModelRef("embedded:nothing-like-it"), "edge")


@pytest.mark.parametrize(
    "change",
    [("guidance = 2.0", 'guidance = "2"'), ("guidance = 2.0", "guidance = 2.0\npolicy = 3"),
     ('source = "embedded:emoji"', "source = 3")],
)  # fmt: skip
def test_values_of_the_wrong_kind_are_refused(change: tuple[str, str]):
    text = EMOJI.replace('policy = "emoji"\n', "")
    assert change[0] in text
    with pytest.raises(InputError, match="must be"):
        parse_pair("mine", text.replace(*change))


def test_a_pair_file_that_is_not_utf8_is_refused(tmp_path: Path):
    (tmp_path / "mine.toml").write_bytes(b"# caf\xe9")
    with pytest.raises(InputError, match="UTF-8"):
        load_pair(str(tmp_path / "mine.toml"))


def test_what_both_sides_must_agree_on_loads_numpy_and_the_wires_format_alone():
    code = (
        "import importlib, pkgutil, sys, obclip.core as core\n"
        "before = set(sys.modules)\n"
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(core.__path__, 'obclip.core.')]\n"
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert set(done.stdout.split()) - {"obclip"} == {"numpy", "safetensors"}


def test_where_a_device_with_steps_of_its_own_goes_on():
    lcm = load_pair("lcm-sdxl")
    assert [lcm.start_on_device(k, 8) for k in (2, 4, 6, 8)] == [6, 12, 18, 25]
    assert lcm.start_on_device(99, 100) == 24  # a step is left, for the latents are not finished
    whole = replace(lcm, handoff=8, timestep_shift=0)
    assert [whole.start_on_device(k, 8) for k in (4, 8)] == [4, 25]
    assert load_pair("sd14").start_on_device(3, 8) == 3
