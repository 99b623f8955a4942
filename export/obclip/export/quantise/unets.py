"""A bundle's UNet as one function of latents, step and conditions, whichever graphs it is made of."""

from __future__ import annotations

import gc
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from obclip.core.noise import step_noise
from obclip.core.schedule import Schedule
from obclip.export.quantise.graph import Feed, run, session
from obclip.export.quantise.runtimes import Graph, open_graph

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Pass:
    """branch: index of the conditions. x: latents before `step`, output: the UNet's, both float32 [C, h, w]."""

    step: int
    branch: int
    x: Float32
    output: Float32


class Unet(Protocol):
    """feed: what the pass at `step` takes, complete. output: what it gives, `out_sample` [1, C, h, w] among it."""

    def feed(self, x: Float32, step: int, conditions: Feed) -> Feed: ...

    def output(self, x: Float32, step: int, conditions: Feed) -> Float32: ...


class WholeUnet:
    """`unet/model.onnx`, or a graph with its interface."""

    def __init__(self, graph: Graph, schedule: Schedule, target: str = "cpu") -> None:
        self._session = open_graph(graph, target)
        self._steps = schedule.timesteps

    def feed(self, x: Float32, step: int, conditions: Feed) -> Feed:
        return {"sample": x[None], "timestep": np.asarray(self._steps[step], np.float32), **conditions}

    def output(self, x: Float32, step: int, conditions: Feed) -> Float32:
        return np.asarray(run(self._session, self.feed(x, step, conditions))["out_sample"][0], np.float32)


class DeviceUnet:
    """Time and text graphs, run once, and a full pass. folder: of the UNet's graphs.

    shallow: the graph of the steps `cached`, on features that the last other step has left for the same conditions.
    """

    def __init__(
        self, folder: Path, full: Graph, schedule: Schedule, target: str = "cpu", shallow: Graph | None = None,
        cached: Collection[int] = (),
    ) -> None:  # fmt: skip
        self._time_path, self._text = folder / "any_fp32_time.onnx", session(folder / "any_fp32_text.onnx")
        self._steps = schedule.timesteps.astype(np.float32)
        self._full = open_graph(full, target)
        self._shallow, self._cached = None if shallow is None else open_graph(shallow, target), cached
        self._rows: dict[int, Feed] = {}
        self._texts: dict[int, Feed] = {}
        self.features: dict[int, NDArray[np.float32]] = {}

    def feed(self, x: Float32, step: int, conditions: Feed) -> Feed:
        key = id(conditions)
        if key not in self._texts:
            self._texts[key] = run(self._text, conditions)
            time = session(self._time_path)
            self._rows[key] = run(time, {"timestep": self._steps, **conditions})
            del time
            gc.collect()
        row = {name: value[step : step + 1] for name, value in self._rows[key].items()}
        kept = {"features": self.features[key]} if key in self.features else {}
        return {"sample": x[None], **row, **self._texts[key], **kept}

    def output(self, x: Float32, step: int, conditions: Feed) -> Float32:
        feed, key = self.feed(x, step, conditions), id(conditions)
        if self._shallow is not None and step in self._cached:
            return np.asarray(run(self._shallow, feed)["out_sample"][0], np.float32)
        found = run(self._full, feed)
        if "features" in found:
            self.features[key] = found["features"]
        return np.asarray(found["out_sample"][0], np.float32)


def denoise(
    unet: Unet,
    schedule: Schedule,
    x: Float32,
    start: int,
    branches: Sequence[Feed],
    guidance: float,
    x0: Float32 | None = None,
    seed: int = 0,
    seen: list[Pass] | None = None,
) -> Float32:
    """Latents [C, h, w] after the last step, from those before step `start`. branches: text, and without text.

    seed: of the noise that the solver may add. seen: gets every pass.
    """
    for step in range(start, schedule.steps):
        outputs = []
        for branch, conditions in enumerate(branches):
            outputs.append(unet.output(x, step, conditions))
            if seen is not None:
                seen.append(Pass(step, branch, x, outputs[-1]))
        output = outputs[0] if len(outputs) == 1 else outputs[1] + np.float32(guidance) * (outputs[0] - outputs[1])
        noise = step_noise(seed, step, x.shape) if schedule.needs_noise else None
        x, x0 = schedule.step(step, x, output, x0, noise)
    return x
