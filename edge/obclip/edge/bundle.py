"""A device bundle on disk: manifest, tokenizer, schedule, and sessions made when first needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from obclip.core.errors import BundleError, InputError, ModelMissingError
from obclip.core.manifest import Manifest, Variant
from obclip.core.pairs import load_pair, resolve_source, shipped_pairs
from obclip.core.schedule import Schedule, build_schedule
from obclip.core.schedule_config import ScheduleConfig
from obclip.edge.sessions import Session, SessionOptions, target_of


class Bundle:
    """Open with `Bundle.open`. Not safe to share between threads."""

    def __init__(self, folder: Path, manifest: Manifest, options: SessionOptions) -> None:
        self.folder, self.manifest, self.options = folder, manifest, options
        self._sessions: dict[tuple[str, str], Session] = {}
        self._tokenizer: Tokenizer | None = None

    @classmethod
    def open(
        cls, source: str | Path, *, provider: str = "auto", threads: int | None = None, verify: bool = True
    ) -> Bundle:
        """Open a bundle folder, or the bundle of a pair by the pair's name.

        verify: compare every file's SHA-256 with the manifest, not only its size. ModelMissingError if there is no such
        bundle here, BundleError if it is damaged.
        """
        folder = find_bundle(source)
        manifest = Manifest.read(folder)
        manifest.verify_files(folder, sizes_only=not verify)
        return cls(folder, manifest, SessionOptions(provider, threads))

    def variant(self, component: str, role: str) -> Variant | None:
        """The component's graph of this role that suits the provider and precision in use; None if there is none."""
        target = target_of(self.options.provider)
        for wanted in (target, "any"):
            for variant in self.manifest.variants:
                same = (variant.component, variant.role, variant.target) == (component, role, wanted)
                if same and variant.precision == "fp32":
                    return variant
        return None

    def session(self, component: str, role: str = "whole") -> Session:
        """The session of one graph, made on first use and kept until `release`. role: see manifest.Variant; "whole" is
        the component's own interface. BundleError if the bundle has no such graph."""
        key = (component, role)
        if key not in self._sessions:
            variant = self.variant(component, role)
            if variant is None and role != "whole":
                raise BundleError(f"the bundle has no graph {role} of {component}; export it again with device graphs")
            file = variant.file if variant is not None else self.manifest.component(component).file
            self._sessions[key] = Session(self.folder / file, self.options)
        return self._sessions[key]

    def release(self, component: str | None = None, role: str | None = None) -> None:
        """Free one session, all of a component, or all."""
        for key in list(self._sessions):
            if component in (None, key[0]) and role in (None, key[1]):
                del self._sessions[key]

    def schedule(self, solver: str, steps: int) -> Schedule:
        return build_schedule(ScheduleConfig.from_dict(self.manifest.schedule_config), solver, steps)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        m = self.manifest
        return m.latent_channels, m.height // m.latent_downscale, m.width // m.latent_downscale

    def tokenise(self, prompt: str) -> NDArray[np.int64]:
        """int64 [1, max_tokens], padded. InputError for a prompt that does not fit; nothing is cut off unsaid."""
        if self._tokenizer is None:
            path = self.folder / "tokenizer" / "tokenizer.json"
            try:
                self._tokenizer = Tokenizer.from_file(str(path))
            except Exception as error:  # the library raises plain Exception
                raise BundleError(f"{path} cannot be read ({error}); export the bundle again") from error
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
        ids = self._tokenizer.encode(prompt).ids
        limit = self.manifest.max_tokens
        if len(ids) > limit:
            raise InputError(f"the prompt takes {len(ids)} tokens, this model reads {limit}: shorten it")
        return np.array([ids + [self.manifest.pad_token_id] * (limit - len(ids))], np.int64)

    def encode(self, prompt: str) -> NDArray[np.float32]:
        """The text encoder's hidden states, float32 [1, max_tokens, width]."""
        hidden = self.session("text_encoder").run(input_ids=self.tokenise(prompt))["last_hidden_state"]
        return np.asarray(hidden, np.float32)

    def decode(self, latents: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Latents [4, h, w] of the last step to an RGB picture, uint8 [H, W, 3]."""
        scaled = (latents.astype(np.float32) / np.float32(self.manifest.latent_scale))[None]
        sample = self.session("vae_decoder").run(latent_sample=scaled)["sample"][0]
        if not np.isfinite(sample).all():
            raise BundleError("the decoder produced numbers that are not finite; try another provider")
        pixels = (np.clip(sample, -1, 1) + 1) * 127.5
        return np.asarray(pixels.round().astype(np.uint8).transpose(1, 2, 0))


def find_bundle(source: str | Path) -> Path:
    """The folder of a bundle, given it or a pair's name. ModelMissingError if there is none."""
    if isinstance(source, str) and source in shipped_pairs():
        found = resolve_source(load_pair(source).device, "edge")
        if isinstance(found, Path):
            return found
        raise ModelMissingError(
            f"the pair {source} ships no weights; run `obclip export {found} DIR`, then pass that DIR as the bundle"
        )
    folder = Path(source)
    if not folder.is_dir():
        raise ModelMissingError(f"there is no bundle at {folder}; `obclip export MODEL {folder}` makes one")
    return folder
