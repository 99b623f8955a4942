"""What `--provider auto` takes: what was quickest, of what is installed here and fits."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from obclip.core.errors import BundleError
from obclip.core.manifest import Component, FileEntry, Manifest, Variant
from obclip.edge import Bundle
from obclip.edge import choice as choice_module
from obclip.edge.choice import choose
from obclip.edge.providers import Provider
from obclip.edge.providers.base import Opening
from obclip.edge.providers.openvino_runtime import OpenVinoProvider
from obclip.edge.sessions import SessionOptions

pytestmark = pytest.mark.usefixtures("traces")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OBCLIP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, bool]]:
    """(provider, precision, lean) of every pass that would have been timed, each slower than the one before."""
    asked: list[tuple[str, str, bool]] = []

    def time_pass(path: Path, variant: Variant, provider: Provider, opening: Opening, runs: int) -> float:
        asked.append((provider.name, variant.precision, opening.lean))
        return float(len(asked))

    monkeypatch.setattr(choice_module, "_MEASURED_FROM_BYTES", 0)
    monkeypatch.setattr(choice_module, "time_pass", time_pass)
    return asked


def variants(target: str = "cpu", **kept: int) -> Manifest:
    """Of a bundle of 1 GB in float32: whole passes for one target, with the bytes that each precision adds."""
    unet, decoder = (Component(name, f"{name}/model.onnx", "fp32", 17, {}, {}) for name in ("unet", "vae_decoder"))
    passes = tuple(
        Variant("unet", "full", p, target, f"unet/{p}.onnx", {}, {}, {"added_bytes": size}) for p, size in kept.items()
    )
    file = FileEntry("unet/model.onnx", 1_000_000_000 + sum(kept.values()), "0" * 64)
    parts = {"unet": unet, "vae_decoder": decoder}
    return SimpleNamespace(  # type: ignore[return-value]
        files=(file,), components=tuple(parts.values()), component=parts.get, variants=passes,
        height=512, width=512, latent_downscale=8,
    )  # fmt: skip


def test_auto_opens_nothing_that_a_memory_limit_would_refuse(measured: list, tmp_path: Path):
    manifest = variants(fp32=0, int8=250_000_000)
    for limit_mb, lean in ((3000, (False, False)), (1500, (True, False))):
        del measured[:]
        options = SessionOptions(provider="auto", memory_limit=limit_mb * 10**6)
        choose(tmp_path, manifest, options)
        assert measured == [("cpu", "fp32", lean[0]), ("cpu", "int8", lean[1])]
    choose(tmp_path, manifest, SessionOptions(provider="auto", memory_limit=3 * 10**9))
    del measured[:]
    assert choose(tmp_path, manifest, SessionOptions(provider="auto", memory_limit=10**6)).provider == "cpu"
    assert measured == []


def test_auto_chooses_anew_where_the_cpu_may_not_help(measured: list, tmp_path: Path):
    for strict in (False, True, False, True):
        choose(tmp_path, variants(fp32=0, int8=250_000_000), SessionOptions(provider="auto", strict=strict))
    assert len(measured) == 4


def test_auto_on_a_small_bundle_is_the_cpu(bundle_folder: Path):
    assert Bundle.open(bundle_folder, provider="auto").options.provider == "cpu"


def test_auto_takes_the_one_way_there_is(measured: list, tmp_path: Path):
    """Bundles for OpenVINO alone, and bfloat16, which ONNX Runtime's CPU does not compute in."""
    alone = choose(tmp_path, variants("openvino", int8=250_000_000), SessionOptions(provider="auto", precision="int8"))
    assert (alone.provider, alone.precision) == ("openvino", "int8")
    if "bf16" in OpenVinoProvider().arithmetics():
        both = variants("openvino", fp32=0)
        both.variants = (*both.variants, *variants(fp32=0).variants)  # type: ignore[misc]
        found = choose(tmp_path, both, SessionOptions(provider="auto", precision="bf16"))
        assert (found.provider, found.precision) == ("openvino", "bf16")


def test_auto_takes_the_cpu_where_the_one_other_way_does_not_work_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    tried: list[str] = []

    def time_pass(path: Path, variant: Variant, provider: Provider, *_: object) -> float:
        tried.append(provider.name)
        raise BundleError("no such operator")

    monkeypatch.setattr(choice_module, "time_pass", time_pass)
    real, told = time.time, []
    options = SessionOptions(provider="auto", precision="int8")
    for days, count in ((0, 1), (6, 1), (8, 2)):
        monkeypatch.setattr(choice_module.time, "time", lambda days=days: real() + days * 86_400)
        found = choose(tmp_path, variants("openvino", int8=250_000_000), options, told.append)
        assert (found.provider, len(tried)) == ("cpu", count)
    failed = "openvino int8 does not work here and is left out for 7 days: no such operator"
    assert told == ["measuring once which is quickest here: openvino int8", failed] * 2


def test_a_choice_that_is_not_ours_is_as_if_there_were_none(measured: list, tmp_path: Path):
    options, both = SessionOptions(provider="auto"), variants(fp32=0, int8=250_000_000)
    choose(tmp_path, both, options)
    (kept,) = (tmp_path / "cache" / "choices").iterdir()
    good = json.loads(kept.read_text())
    for said in ("{not json", "[]", json.dumps(good | {"pass_s": {"cpu/fp32": "quick"}})):
        del measured[:]
        kept.write_text(said)
        choose(tmp_path, both, options)
        assert len(measured) == 2
