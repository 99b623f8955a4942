"""A device bundle on disk: manifest, tokenizer, schedule, and sessions made when first needed."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obclip.core.errors import BundleError, InputError, ModelMissingError
from obclip.core.manifest import NAME, Manifest, Variant
from obclip.core.pairs import load_pair, resolve_source, shipped_pairs
from obclip.core.schedule import Schedule, build_schedule
from obclip.core.schedule_config import ScheduleConfig
from obclip.edge.choice import choose
from obclip.edge.graph_cache import cache_folder
from obclip.edge.machine import return_freed_memory
from obclip.edge.memory import PHASED_FROM_BYTES, fit
from obclip.edge.providers import find
from obclip.edge.providers.base import Opening, Provider, Session
from obclip.edge.sessions import SessionOptions
from obclip.edge.text import Conditions, TextReader
from obclip.edge.tiling import decode_tiled
from obclip.edge.tuning import Tuned, recall
from obclip.edge.verified import verify_once


class Bundle:
    """Open with `Bundle.open`. Not safe to share between threads."""

    def __init__(self, folder: Path, manifest: Manifest, options: SessionOptions) -> None:
        self.folder, self.manifest, self.options = folder, manifest, options
        self.provider = find(options.provider)
        self._once = self.provider if self.provider.once == self.provider.name else find(self.provider.once)
        self._check_precision()
        self._sessions: dict[tuple[str, str], Session] = {}
        self._ahead: dict[tuple[str, str], Future[Session]] = {}
        self.reader = TextReader(folder, manifest)
        self._tuned = self._recall()

    @classmethod
    def open(
        cls, source: str | Path, *, verify: bool = True, note: Callable[[str], None] | None = None, **options: Any
    ) -> Bundle:
        """Open a bundle folder, or the bundle of a pair by the pair's name.

        verify: compare every file's SHA-256 with the manifest, not only its size; a large bundle's once (see
        `obclip.edge.verified`). note(text) is called before what is done once and takes a while. options: of
        `obclip.edge.sessions.SessionOptions` (provider, threads, precision, decoder, strict, lean, cache).
        ModelMissingError if there is no such bundle here, BundleError if it is damaged, InputError for a provider that
        is not installed or a precision that the bundle does not have.
        """
        folder = find_bundle(source)
        manifest = Manifest.read(folder)
        if verify:
            verify_once(folder, manifest, note)
        else:
            manifest.verify_files(folder, sizes_only=True)
        chosen = SessionOptions(**options)
        if chosen.provider == "auto":
            chosen = choose(folder, manifest, chosen, note)
        return cls(folder, manifest, fit(manifest, chosen, find(chosen.provider).target))

    def _check_precision(self) -> None:
        wanted, target = self.options.precision, self.provider.target
        if wanted == "bf16" and "bf16" not in self.provider.arithmetics():
            raise InputError(f"{self.provider.name} does not compute in bfloat16 here; choose another precision")
        graphs = wanted not in ("auto", "fp32", "bf16")
        if graphs and not any(v.precision == wanted and v.target in (target, "any") for v in self.manifest.variants):
            if wanted == "w8a16" and target != "qnn":
                raise InputError(f"w8a16 graphs are for qnn, not for {self.provider.name}; choose another precision")
            made_for = target if target in ("cpu", "openvino") and wanted != "fp16" else "any"
            raise InputError(
                f"the bundle has no {wanted} graphs for {target}; make them with `obclip export --precisions {wanted} "
                f"--targets {made_for}`"
            )
        if self.options.decoder == "tiny" and self.variant("vae_decoder", "tiny") is None:
            raise InputError("the bundle has no tiny decoder; export it again with --tiny-decoder, or leave tiny out")

    def variant(self, component: str, role: str) -> Variant | None:
        """The component's graph of this role that suits the provider and precision in use; None if there is none."""
        for precision in self.options.precisions:
            for target in (self.provider.target, "any"):
                for variant in self.manifest.variants:
                    same = (variant.component, variant.role, variant.precision, variant.target)
                    if same == (component, role, precision, target):
                        return variant
        return None

    @property
    def pass_role(self) -> str:
        """Of the graph that runs a whole pass: "full", a device graph; or "whole", optimum's, where the bundle has no
        device graphs or has that one alone in the precision that is wanted."""
        full, whole = self.variant("unet", "full"), self.variant("unet", "whole")
        if full is None or any(self.variant("unet", role) is None for role in ("time", "text")):
            return "whole"
        order = self.options.precisions
        nearer = whole is not None and order.index(whole.precision) < order.index(full.precision)
        return "whole" if nearer else "full"

    @property
    def can_be_shallow(self) -> bool:
        """Whether passes on kept features can run."""
        return self.pass_role == "full" and self.variant("unet", "shallow") is not None

    @property
    def told(self) -> str:
        """How a job runs here, in words: "openvino int8", "cpu fp32, tiny decoder, decoded in tiles, lean"."""
        o = self.options
        said = [f"{self.provider.name} {self.precision_of('unet', self.pass_role)}"]
        said += ["tiny decoder"] * (o.decoder == "tiny") + ["decoded in tiles"] * o.tiled + ["lean"] * o.lean
        said += self._tuned.told(o.threads) if self._tuned is not None else []
        return ", ".join(said)

    def session(self, component: str, role: str = "whole") -> Session:
        """The session of one graph, made on first use and kept until `release`. role: see manifest.Variant; "whole" is
        the component's own interface. BundleError if the bundle has no such graph, or it cannot be loaded."""
        key = (component, role)
        if key in self._ahead:
            self._sessions[key] = self._ahead.pop(key).result()
        if key not in self._sessions:
            self._sessions[key] = self._opener(component, role)()
        return self._sessions[key]

    def open_ahead(self, component: str, role: str = "whole") -> None:
        """Open the graph in another thread; `session` waits for it, and raises what it would have."""
        key = (component, role)
        if key not in self._sessions and key not in self._ahead:
            pool = ThreadPoolExecutor(1)
            self._ahead[key] = pool.submit(self._opener(component, role))
            pool.shutdown(wait=False)

    def opened_before(self) -> bool:
        """Whether what their provider made of all large graphs that a job's steps need is kept here."""
        roles = ("time", "text", "full", "shallow") if self.pass_role == "full" else ("whole",)
        graphs = [("unet", role) for role in roles if role == "whole" or self.variant("unet", role)]
        texts = [(c.name, "whole") for c in self.manifest.components if c.name.startswith("text_encoder")]
        places = [self._opening(*graph, self._file(*graph)).cache for graph in texts + graphs]
        kept = [place.is_dir() and any(place.iterdir()) for place in places if place is not None]
        return bool(kept) and all(kept)

    def _file(self, component: str, role: str) -> str:
        variant = self.variant(component, role)
        return self.manifest.component(component).file if variant is None else variant.file

    def _opener(self, component: str, role: str) -> Callable[[], Session]:
        variant = self.variant(component, role)
        if variant is None and role != "whole":
            raise BundleError(f"the bundle has no graph {role} of {component}; export it again with device graphs")
        file = self._file(component, role)
        return partial(self._runner(component, role).open, self.folder / file, self._opening(component, role, file))

    def _runner(self, component: str, role: str) -> Provider:
        return self._once if _runs_once(component, role) else self.provider

    @property
    def arithmetic(self) -> str:
        """What the UNet's float graphs are computed in here."""
        known = self.provider.arithmetics()
        return self.options.arithmetic if self.options.arithmetic in known else "fp32"

    def _opening(self, component: str, role: str, file: str) -> Opening:
        o = self.options
        exact = _runs_once(component, role)  # and every pass reads what it gives
        opening = Opening(o.threads, "fp32" if exact else self.arithmetic, o.strict, o.lean)
        if exact and self.phased:  # one or two runs repay no packed copy of the weights
            opening = replace(opening, lean=True)
        elif self._tuned is not None:
            opening = self._tuned.apply(opening)
        runner = self._runner(component, role)
        cache = cache_folder(self.folder, self.manifest, file, runner, opening) if o.cache else None
        return replace(opening, cache=cache)

    def _recall(self) -> Tuned | None:
        """What `obclip bench --tune` found for this bundle on this machine; None if it was not run."""
        runs = self.variant("unet", self.pass_role)
        if runs is None or self.options.lean:
            return None
        return recall(self.manifest, runs, self.provider, self.arithmetic)

    @property
    def threads(self) -> int | None:
        """Of a pass: asked for, or found by `obclip bench --tune`; None for the runtime's own choice."""
        return self._opening("unet", self.pass_role, self._file("unet", self.pass_role)).threads

    def precision_of(self, component: str, role: str = "whole") -> str:
        """What the graph's passes are computed in, as it is named in results: "int8", "bf16", "fp32"."""
        variant = self.variant(component, role)
        if variant is not None and variant.precision != "fp32":
            return variant.precision
        return self._opening(component, role, self.manifest.component(component).file).arithmetic

    def fallbacks(self) -> tuple[str, ...]:
        """A line for each open graph of which another provider than the one asked for runs a part."""
        notes = []
        for (component, role), session in self._sessions.items():
            nodes = session.nodes_per_provider()
            wanted = self._runner(component, role).full_name
            strange = {name: count for name, count in nodes.items() if name != wanted}
            if strange:
                said = ", ".join(f"{name} {count}" for name, count in strange.items())
                notes.append(f"{self.provider.name} leaves nodes of {component} ({role}) to others: {said}")
        return tuple(notes)

    def release(self, component: str | None = None, role: str | None = None) -> None:
        """Free one session, all of a component, or all."""
        for held in (self._sessions, self._ahead):
            for key in list(held):
                if component in (None, key[0]) and role in (None, key[1]):
                    del held[key]

    def schedule(self, solver: str, steps: int) -> Schedule:
        return build_schedule(ScheduleConfig.from_dict(self.manifest.schedule_config), solver, steps)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        m = self.manifest
        return m.latent_channels, m.height // m.latent_downscale, m.width // m.latent_downscale

    def tokenise(self, prompt: str) -> NDArray[np.int64]:
        """int64 [1, max_tokens], padded. InputError for a prompt that does not fit; nothing is cut off unsaid."""
        return self.reader.tokenise(prompt)

    def encode(self, prompt: str) -> Conditions:
        """What the UNet is told of a text: `encoder_hidden_states` float32 [1, max_tokens, width]; of SDXL also
        `text_embeds` [1, width2] and `time_ids` [1, 6]. InputError as `tokenise`."""
        return self.reader.encode(prompt, self.session)

    def decode(self, latents: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Latents [4, h, w] of the last step to an RGB picture, uint8 [H, W, 3]."""
        scaled = latents.astype(np.float32) / np.float32(self.manifest.latent_scale)
        if self.options.tiled:
            sample = decode_tiled(self._decode, scaled, self.manifest.latent_downscale)
        else:
            sample = self._decode(scaled)
        if not np.isfinite(sample).all():
            raise BundleError("the decoder produced numbers that are not finite; try another provider")
        pixels = (np.clip(sample, -1, 1) + 1) * 127.5
        return np.asarray(pixels.round().astype(np.uint8).transpose(1, 2, 0))

    def _decode(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        session = self.session("vae_decoder", self.decoder_role)
        return np.asarray(session.run(latent_sample=latents[None])["sample"][0], np.float32)

    @property
    def decoder_role(self) -> str:
        return "tiny" if self.options.decoder == "tiny" else "whole"

    @property
    def phased(self) -> bool:
        """Whether a job opens and releases models by phase, so that never two large ones are in memory."""
        size = sum(f.bytes for f in self.manifest.files)
        return self.options.memory_limit is not None or self.options.lean or size >= PHASED_FROM_BYTES

    def end_phase(self, *components: str) -> None:
        """Release the components' sessions, where jobs run by phase."""
        if self.phased:
            for component in components:
                self.release(component)
            gc.collect()
            return_freed_memory()


def _runs_once(component: str, role: str) -> bool:
    """Whether a job runs the graph once, and passes read what it gave."""
    return component.startswith("text_encoder") or role in ("time", "text")


def find_bundle(source: str | Path) -> Path:
    """The folder of a bundle, given it, a pair's name or a pair file. ModelMissingError if there is none."""
    if isinstance(source, str) and source in shipped_pairs():
        found = resolve_source(load_pair(source).device, "edge")
        if isinstance(found, Path):
            return found
        raise ModelMissingError(
            f"the pair {source} ships no weights; run `obclip export {found} DIR`, then pass that DIR as the bundle"
        )
    folder = Path(source)
    if folder.suffix == ".toml" and folder.is_file():
        found = resolve_source(load_pair(str(source)).device, "edge")
        if isinstance(found, Path) and (found / NAME).is_file():
            return found
        raise ModelMissingError(
            f"the pair {source} brings no bundle; name one with --bundle DIR (`obclip export {found} DIR` makes it)"
        )
    if not folder.is_dir():
        raise ModelMissingError(f"there is no bundle at {folder}; `obclip export MODEL {folder}` makes one")
    return folder
