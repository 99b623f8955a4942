"""Fitting one head: logistic regression that starts from a judgement, then one temperature."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from obclip.edge.audit.head import log_softmax

Float64 = NDArray[np.float64]
Classes = NDArray[np.int64]


def fit(x: Float64, y: Classes, start: Float64, strength: float, steps: int = 200) -> tuple[Float64, Float64]:
    """Weights [V, K] and bias [K] of the likeliest multinomial logistic regression under a Gaussian prior.

    x: 0 or 1, [M, V]; y: class of each row, [M]; start: the prior's mean [V, K], which words that never occur keep;
    strength: the inverse of its variance. The bias has no prior. The sum is convex, so the result needs no seed.
    """
    data, target, mean = torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(start)
    weights = mean.clone().requires_grad_()
    bias = torch.from_numpy(np.log(shares(y, start.shape[1]))).requires_grad_()
    optimiser = torch.optim.LBFGS(
        [weights, bias], max_iter=steps, history_size=20, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        fitted = torch.nn.functional.cross_entropy(data @ weights + bias, target, reduction="sum")
        total = fitted + strength / 2 * ((weights - mean) ** 2).sum()
        total.backward()
        return total

    with _one_thread():
        optimiser.step(loss)  # type: ignore[no-untyped-call]
    return weights.detach().numpy(), bias.detach().numpy()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums are then made in one order, however many cores the machine has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def best_temperature(logits: Float64, y: Classes) -> float:
    """The temperature from 1 to 4 with the lowest log loss of logits [M, K] / temperature; 1 without rows.

    Never below 1: a few captions must not sharpen the judgements that none of them touches.
    """
    if not len(y):
        return 1.0
    grid = np.exp(np.linspace(0.0, np.log(4), 201))
    return float(grid[int(np.argmin([log_loss(logits / t, y) for t in grid]))])


def log_loss(logits: Float64, y: Classes) -> float:
    """Mean negative log likelihood of logits [M, K], in nats."""
    return float(-log_softmax(logits)[np.arange(len(y)), y].mean())


def shares(y: Classes, k: int) -> Float64:
    """How often each of k classes occurs, half a row added to each so that none is impossible."""
    counts = np.bincount(y, minlength=k) + 0.5
    return np.asarray(counts / counts.sum(), np.float64)
