"""What a completion takes of memory, phase by phase, and which plan fits under a limit.

Estimates are of memory that the system cannot drop: packed weights, activations, and the interpreter. With `lean`
sessions weights stay mapped from their files and count as cache, but OpenVINO packs the UNet's all the same. The
constants were fitted on small-sd at 512 px (`python -m runtime_tests.benchmarks.device_memory`), and err on the large
side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from obclip.core.errors import InputError
from obclip.core.manifest import Manifest, Variant
from obclip.edge.sessions import SessionOptions

BASE_BYTES = 110_000_000  # interpreter, numpy, runtime
PHASED_FROM_BYTES = 500_000_000  # larger bundles open and release their models by phase
# Bytes of activations a latent's element (UNet) or a picture's pixel (decoders) at the peak of a pass
_UNET_BYTES = 95_000
_FULL_DECODER_BYTES, _TINY_DECODER_BYTES = 3_700, 1_500
_FULL_DECODER_WEIGHTS = 1.4  # of what its file has: convolutions unfolded, kept even by lean sessions
_PACKED = 1.5  # weights as they are and packed, relative to those in the file


@dataclass(frozen=True)
class Estimate:
    """Bytes at the peak of each phase."""

    text: int
    steps: int
    decode: int

    @property
    def peak(self) -> int:
        return max(self.text, self.steps, self.decode)


def fit(manifest: Manifest, options: SessionOptions, target: str) -> SessionOptions:
    """`options` as they are, if they fit under `memory_limit` bytes, or the quickest change of them that does: tiles,
    then the tiny decoder, then each with lean sessions. InputError that says what would fit, if nothing does."""
    limit = options.memory_limit
    if limit is None:
        return options
    tiny = any((v.component, v.role) == ("vae_decoder", "tiny") for v in manifest.variants)
    ways = [options, replace(options, tiled=True)]
    if tiny:
        ways.append(replace(options, decoder="tiny"))
    ways += [replace(way, lean=True) for way in ways]
    for way in ways:
        if estimate(manifest, way, target).peak <= limit:
            return way
    least = min(ways, key=lambda way: estimate(manifest, way, target).peak)
    needed = estimate(manifest, least, target)
    cpu_fits = target == "openvino" and any(estimate(manifest, way, "cpu").peak <= limit for way in ways)
    hint = " With --provider cpu it would fit." if cpu_fits else ""
    raise InputError(
        f"this bundle needs about {needed.peak / 1e6:.0f} MB at the least, the limit is {limit / 1e6:.0f} MB "
        f"(text {needed.text / 1e6:.0f}, steps {needed.steps / 1e6:.0f}, decoding {needed.decode / 1e6:.0f}).{hint}"
    )


def estimate(manifest: Manifest, options: SessionOptions, target: str) -> Estimate:
    """Of one job, with models opened and released by phase."""
    held = 0.0 if options.lean else _PACKED
    held_by_unet = _PACKED if target == "openvino" else held
    pixels = manifest.height * manifest.width
    area = pixels // manifest.latent_downscale**2
    if options.tiled:
        pixels = min(pixels, (32 * manifest.latent_downscale) ** 2)
    per_pixel = _TINY_DECODER_BYTES if options.decoder == "tiny" else _FULL_DECODER_BYTES
    text = sum(weights(manifest, part, "fp32") for part in _texts(manifest))
    unet = weights(manifest, "unet", _precision(manifest, options, target))
    decoder = 0 if options.decoder == "tiny" else weights(manifest, "vae_decoder", "fp32")
    return Estimate(
        text=int(BASE_BYTES + held * text + 30_000_000),
        steps=int(BASE_BYTES + held_by_unet * unet + _UNET_BYTES * area),
        decode=int(BASE_BYTES + max(held, _FULL_DECODER_WEIGHTS) * decoder + per_pixel * pixels),
    )


def weights(manifest: Manifest, component: str, precision: str) -> int:
    """Bytes of a component's weights at a precision: of float32, a fourth of them at int8."""
    entry = manifest.component(component)
    beside = {f"{entry.file}", f"{entry.file}_data"}
    size = sum(f.bytes for f in manifest.files if f.path in beside)
    made = [v for v in manifest.variants if v.component == component]
    added: dict[tuple[str, str], int] = {}
    for v in made:  # equal bytes of two targets lie once, so that their sum may be more than there is
        added[v.precision, v.target] = added.get((v.precision, v.target), 0) + _added(v)
    of_precision = max((count for (p, _), count in added.items() if p == precision), default=0)
    if precision == "fp32" or not of_precision:
        return max(size - max(added.values(), default=0), 0)
    return of_precision


def _added(variant: Variant) -> int:
    return int(variant.verification.get("added_bytes", 0))


def _texts(manifest: Manifest) -> list[str]:
    return [c.name for c in manifest.components if c.name.startswith("text_encoder")]


def _precision(manifest: Manifest, options: SessionOptions, target: str) -> str:
    have = {v.precision for v in manifest.variants if v.component == "unet" and v.target in (target, "any")}
    return next((p for p in options.precisions if p in have), "fp32")
