"""From operations to a whole UNet: lower bounds for homomorphic encryption, fits of what two parties take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..layers import Layer

# bits a second and seconds of a round trip, as the literature on two-party inference takes them
NETWORKS = {"LAN": (3e9, 0.8e-3), "WAN": (1e8, 80e-3)}
FITTED = ("conv 1x1", "conv 3x3", "linear", "attention", "group_norm", "layer_norm", "silu", "geglu")


def he_operations(layer: Layer, slots: int) -> tuple[int, int]:
    """(multiplications by a plaintext, rotations) of a layer with a channel's pixels in each ciphertext: a convolution
    multiplies every input channel's ciphertext once a weight and shifts it once a tap but one, a linear layer once a
    weight; attention's products count as if one side were in the clear and every slot were used."""
    s = layer.shape
    if layer.kind == "conv":
        blocks = -(-s[3] * s[4] // slots)
        return s[2] ** 2 * s[0] * s[1] * blocks, (s[2] ** 2 - 1) * s[0] * blocks
    if layer.kind == "linear":
        return s[1] * s[2] * -(-s[0] // slots), 0
    if layer.kind == "attention":
        return -(-layer.macs // slots), 0
    return 0, 0


def he_bound_s(layers: Sequence[Layer], operations: dict[str, Any], passes: int) -> dict[str, Any]:
    """Seconds of `passes` through the UNet on one core.

    `seconds`, a lower bound for any packing: multiply-accumulates / slots x (multiply + add), for one multiplication
    does at most as many as there are slots. `channel_packed_s`: he_operations' multiplications x (multiply + add) +
    rotations x rotate. Neither has an activation, a norm, a softmax, a rescaling or a bootstrapping.
    """
    one = operations["multiply_plain_s"] + operations["add_s"]
    multiply = rotate = 0
    for layer in layers:
        m, r = he_operations(layer, int(operations["slots"]))
        multiply, rotate = multiply + m * layer.count, rotate + r * layer.count
    macs = sum(layer.macs * layer.count for layer in layers)
    return {
        "passes": passes, "macs": macs, "multiplications": macs / operations["slots"],
        "seconds": macs / operations["slots"] * one * passes,
        "channel_packed_multiplications": multiply, "channel_packed_rotations": rotate,
        "channel_packed_s": (multiply * one + rotate * operations["rotate_s"]) * passes,
    }  # fmt: skip


def work(kind: str, shape: Sequence[int]) -> NDArray[np.float64]:
    """What time and bytes are taken to be proportional to: multiply-accumulates; elements in, unfolded; weights;
    elements that go through a function that is not linear, or come out; channels to unfold; and one, for what does not
    grow."""
    layer = Layer(kind, tuple(shape), 1)
    s = layer.shape
    if kind == "conv":
        slices = s[0] if s[2] > 1 else 0
        return np.array(
            [layer.macs, s[3] * s[4] * s[0] * s[2] ** 2, s[0] * s[1] * s[2] ** 2, s[3] * s[4] * s[1], slices, 1.0]
        )
    if kind == "linear":
        return np.array([layer.macs, s[0] * s[1], s[1] * s[2], s[0] * s[2], 0, 1.0])
    if kind == "attention":
        return np.array([layer.macs, s[0] * (s[1] + 2 * s[2]) * s[3], 0, layer.elements, 0, 1.0])
    return np.array([0, 0, 0, layer.elements, 0, 1.0])


def fitted_as(kind: str, shape: Sequence[int]) -> str:
    """Convolutions of one pixel are products; wider ones are unfolded channel by channel, which takes time."""
    return f"{kind} {shape[2]}x{shape[2]}" if kind == "conv" else kind


@dataclass(frozen=True)
class Fit:
    """weights: kind -> [quantity, feature]. error: kind -> median relative error of seconds on what was measured, each
    shape left out of the fit in turn."""

    weights: dict[str, NDArray[np.float64]]
    messages: dict[str, float]
    error: dict[str, float | None]

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]]) -> Fit:
        """Non-negative least squares of relative errors, seconds and bytes each; messages: the most seen of a kind."""
        weights, messages, error = {}, {}, {}
        for kind in FITTED:
            some = [r for r in rows if fitted_as(r["kind"], r["shape"]) == kind]
            if not some:
                continue
            features = np.stack([work(r["kind"], r["shape"]) for r in some])
            found = [_fit(features, np.array([r[q] for r in some], float)) for q in ("seconds", "bytes")]
            weights[kind] = np.stack(found)
            messages[kind] = max(r["messages"] for r in some)
            error[kind] = _left_out(features, np.array([r["seconds"] for r in some]))
        return cls(weights, messages, error)

    def predict(self, layer: Layer) -> tuple[float, float, float]:
        """Seconds, bytes and messages of one."""
        kind = fitted_as(layer.kind, layer.shape)
        seconds, sent = self.weights[kind] @ work(layer.kind, layer.shape)
        return float(seconds), float(sent), self.messages[kind]


def _left_out(features: NDArray[np.float64], wanted: NDArray[np.float64]) -> float | None:
    """Median relative error of a prediction from all other rows; None if there are none."""
    errors = []
    for i in range(len(wanted)):
        rest = np.arange(len(wanted)) != i
        if rest.any():
            errors.append(abs(features[i] @ _fit(features[rest], wanted[rest]) / wanted[i] - 1))
    return float(np.median(errors)) if errors else None


def _fit(features: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """argmin over w >= 0 of |(features w - wanted) / wanted|, by leaving out what would be negative, worst first."""
    used = [i for i in range(features.shape[1]) if features[:, i].any()]
    a, size = features / wanted[:, None], features.max(0)
    while used:
        w, *_ = np.linalg.lstsq(a[:, used] / size[used], np.ones(len(wanted)), rcond=None)
        if (w >= 0).all():
            break
        used.pop(int(w.argmin()))
    result = np.zeros(features.shape[1])
    result[used] = w / size[used]
    return result


def measured_as(layer: Layer, one_head: float) -> Layer:
    """The layer, or one head of an attention with `one_head` elements or more; its heads are alike."""
    if layer.kind == "attention" and layer.elements >= one_head:
        return Layer(layer.kind, (1, *layer.shape[1:]), layer.count * layer.shape[0])
    return layer


def two_parties(layers: Sequence[Layer], fit: Fit, measured: Sequence[dict[str, Any]], passes: int) -> dict[str, Any]:
    """Seconds, bytes and messages of `passes` through the UNet; a shape that was measured counts as it was, and one of
    which one head was measured as its heads one after another."""
    known = {(r["kind"], tuple(r["shape"])): (r["seconds"], r["bytes"], r["messages"]) for r in measured}

    def of(layer: Layer) -> tuple[NDArray[np.float64], bool]:
        for some in (layer, measured_as(layer, 0)):
            if one := known.get((some.kind, some.shape)):
                return np.array(one) * some.count, True
        return np.array(fit.predict(layer)) * layer.count, False

    found = [of(layer) for layer in layers]
    totals, seen = sum(v for v, _ in found), sum(was for _, was in found)
    seconds, sent, messages = (float(v) * passes for v in totals)
    return {
        "passes": passes, "compute_s": seconds, "bytes": sent, "messages": messages,
        "shapes": len(layers), "shapes_measured": seen,
    } | {
        f"{name}_s": seconds + sent * 8 / bandwidth + messages * trip for name, (bandwidth, trip) in NETWORKS.items()
    }  # fmt: skip
