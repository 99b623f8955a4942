"""A cloud that spoils one latent and watches what the device does: the selective failure.

If only the wanted latent were looked at, an error or a second request would name it. All N are checked before one is
taken, so what the device does must be the same for every real index.
"""

from __future__ import annotations

import numpy as np

from obclip.core.errors import ObclipError
from obclip.core.pairs import load_pair
from obclip.core.wire import Request, Response
from obclip.edge import Client, generate
from obclip.edge.oblivious import candidate_set, load_policy
from runtime_tests.baselines.lazy_client import LazyClient

from .loopback import MODEL, Answer, Log, QuickBundle, loopback_cloud, quick_bundle
from .row import Row
from .settings import Settings
from .stats import mutual_information

PROMPT = "noto style emoji of a woman cook with dark skin tone"
SPOILS = {"nan": np.nan, "inf": np.inf}
Behaviour = tuple[str, str, tuple[tuple[str, str, bytes], ...]]


def run(settings: Settings) -> list[Row]:
    bundle = quick_bundle()
    members = candidate_set(PROMPT, load_policy("emoji")).prompts
    rows = []
    for name in SPOILS:
        ours = observe(bundle, members, name, lazy=False)
        lazy = observe(bundle, members, name, lazy=True)
        rows += _rows("lazy client", name, lazy) + _rows("ours", name, ours)
    return rows


def observe(
    bundle: QuickBundle, members: tuple[str, ...], spoil: str, *, lazy: bool
) -> dict[tuple[int, int], Behaviour]:
    """(spoilt latent, real index) -> the error's type and text, and every request that went out."""
    seen = {}
    for j in range(len(members)):
        with loopback_cloud(bundle, spoilt(bundle, j, SPOILS[spoil])) as (url, log):
            for i, prompt in enumerate(members):
                log.clear()
                with LazyClient(url, i) if lazy else Client(url) as client:
                    seen[j, i] = _behaviour(bundle, client, prompt, log)
    return seen


def spoilt(bundle: QuickBundle, row: int, value: float) -> Answer:
    """Answers that are noise, but for one number of one latent."""

    def answer(request: Request) -> bytes:
        rng = np.random.default_rng(request.seed)
        latents = rng.standard_normal((len(request.candidates), *bundle.latent_shape)).astype(np.float16)
        latents[row, 0, 0, 0] = value
        schedule = bundle.schedule(request.solver, request.steps).digest
        return Response(latents, None, request.handoff, schedule, MODEL).encode()

    return answer


def leaked_bits(seen: dict[tuple[int, int], Behaviour]) -> float:
    """Mutual information between the real index and what the device does, in bits, for the worst spoilt latent."""
    worst = 0.0
    for j in sorted({j for j, _ in seen}):
        some = [(i, b) for (k, i), b in seen.items() if k == j]
        kinds = sorted({b for _, b in some})
        worst = max(worst, mutual_information([i for i, _ in some], [kinds.index(b) for _, b in some]))
    return worst


def _behaviour(bundle: QuickBundle, client: Client, prompt: str, log: Log) -> Behaviour:
    try:
        generate(prompt, bundle=bundle, client=client, pair=load_pair("emoji"), seed=5)
        error = ("none", "")
    except ObclipError as raised:
        error = (type(raised).__name__, str(raised).replace(client.url, "URL"))
    return *error, tuple((r.method, r.path, r.body) for r in log.requests)


def _rows(target: str, name: str, seen: dict[tuple[int, int], Behaviour]) -> list[Row]:
    size = len({i for _, i in seen})
    kinds = max(len({seen[j, i] for i in range(size)}) for j in range(size))
    example = next(iter(seen.values()))
    note = f"{len(seen)} cases; e.g. {example[0]}, {len(example[2])} requests"
    metric = f"behaviours over real indices, one latent {name}"
    told = f"bits about the index, one latent {name}"
    return [
        Row("retries", target, metric, float(kinds), 1.0, len(seen), "theorem", note),
        Row("retries", target, told, leaked_bits(seen), 0.0, len(seen), "theorem"),
    ]  # fmt: skip
