"""A bundle's UNet as the device runs it: by device graphs where the bundle has them, else by `unet/model.onnx`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from obclip.edge.bundle import Bundle
from obclip.edge.providers.base import Session
from obclip.edge.sessions import scalar
from obclip.edge.text import Conditions

Float32 = NDArray[np.float32]


class UNet(Protocol):
    """branches are texts' conditions, by a name; steps are the solver's, by number."""

    can_be_shallow: bool

    def __call__(self, branch: str, x: Float32, step: int, shallow: bool) -> Float32:
        """The output for latents x [4, h, w], float32 and of the same shape. shallow: on the features that the branch's
        last whole pass left."""
        ...


def unet_of(bundle: Bundle, texts: Mapping[str, Conditions], timesteps: Sequence[float]) -> UNet:
    """timesteps: of all steps of the schedule. What depends on them or on the texts alone is computed here, once."""
    if bundle.pass_role == "full":
        return _Graphs(bundle, texts, timesteps)
    return _Whole(bundle, texts, timesteps)


class _Whole:
    """optimum's graph: everything in every pass."""

    can_be_shallow = False

    def __init__(self, bundle: Bundle, texts: Mapping[str, Conditions], timesteps: Sequence[float]) -> None:
        self._session, self._texts = bundle.session("unet"), dict(texts)
        self._timesteps = [scalar(float(t)) for t in timesteps]

    def __call__(self, branch: str, x: Float32, step: int, shallow: bool) -> Float32:
        found = self._session.run(sample=x[None], timestep=self._timesteps[step], **self._texts[branch])
        return np.asarray(found["out_sample"][0], np.float32)


class _Graphs:
    """Time projections of all steps, and each text's keys and values, once; then passes that take them."""

    def __init__(self, bundle: Bundle, texts: Mapping[str, Conditions], timesteps: Sequence[float]) -> None:
        # Before the passes are opened, so that a large bundle's graphs are never all in memory
        time, text = bundle.session("unet", "time"), bundle.session("unet", "text")
        steps = np.asarray(timesteps, np.float32)
        self._time, self._given = {}, {}
        for branch, told in texts.items():
            self._time[branch] = time.run(timestep=steps, **_taken(told, time))
            self._given[branch] = text.run(**_taken(told, text))
        if bundle.phased:
            del time, text
            bundle.release("unet", "time")
            bundle.release("unet", "text")
        self._full = bundle.session("unet", "full")
        self.can_be_shallow = bundle.can_be_shallow
        self._shallow = bundle.session("unet", "shallow") if self.can_be_shallow else None
        self._features: dict[str, NDArray[Any]] = {}

    def __call__(self, branch: str, x: Float32, step: int, shallow: bool) -> Float32:
        session = self._shallow if shallow and self._shallow is not None else self._full
        row = {name: values[step : step + 1] for name, values in self._time[branch].items()}
        given = {"sample": x[None], **row, **self._given[branch]}
        if session is self._shallow:
            given["features"] = self._features[branch]
        out = session.run(**{name: given[name] for name in session.input_names})
        if session is self._full:
            self._features[branch] = out["features"]
        return np.asarray(out["out_sample"][0], np.float32)


def _taken(told: Conditions, session: Session) -> Conditions:
    return {name: value for name, value in told.items() if name in session.input_names}
