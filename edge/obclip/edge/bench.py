"""How fast and how large a bundle is on this device: load, first run, each part, and the job from step k on."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from obclip.core.errors import InputError, ModelMissingError
from obclip.core.pairs import Pair
from obclip.edge.bundle import Bundle
from obclip.edge.complete import Guidance, denoise, first_latents, told_scale
from obclip.edge.generate import Progress
from obclip.edge.job import Job, prepare
from obclip.edge.machine import machine, peak_memory_bytes
from obclip.edge.modes import HYBRID
from obclip.edge.sessions import scalar
from obclip.edge.steps import Saving

_RUNS, _FEWEST, _ROW_S = 20, 3, 60.0
PARTS = ("text_encoder", "unet", "vae_decoder")
CHARTS = (".png", ".svg", ".pdf")
_PROMPT = "a portrait"


@dataclass(frozen=True)
class Timing:
    """Seconds over `runs` runs, after `warmup` runs that do not count."""

    name: str
    runs: int
    median_s: float
    p90_s: float
    min_s: float


@dataclass(frozen=True)
class Report:
    """load_s, first_run_s: per part, once. peak_memory_bytes: of this process, its own high-water mark."""

    bundle: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    load_s: dict[str, float]
    first_run_s: dict[str, float]
    timings: tuple[Timing, ...]
    nodes_per_provider: dict[str, dict[str, int]]
    peak_memory_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_bench(
    source: str | Path,
    pair: Pair,
    *,
    runs: int | None = None,
    warmup: int = 3,
    handoff: int | None = None,
    saving: Saving | None = None,
    tell: Progress | None = None,
    **options: Any,
) -> Report:
    """Measure. Session creation (load) is timed apart from the first run, which may compile.

    runs: None for 20 of each row, or as many as a minute holds, with 3 at least. saving: what the steps leave out, by
    default what was measured on the pair. tell(row, done, of) is called behind each run. options: as `Bundle.open`
    takes them.
    """
    if (runs is not None and runs < 1) or warmup < 0:
        raise InputError(f"runs is {runs} and warmup {warmup}; runs must be 1 or more, warmup 0 or more")
    bundle = Bundle.open(source, **options)
    if bundle.latent_shape != pair.latent_shape:
        raise InputError(
            f"the bundle's latents are {bundle.latent_shape}, those of the pair {pair.name} {pair.latent_shape}; "
            "name the bundle's pair with --pair"
        )
    # Of one prompt, whatever the policy
    job = prepare(_PROMPT, bundle, pair=pair, handoff=handoff, seed=0, mode=HYBRID, saving=saving)
    load, first = {}, {}
    calls = _calls(bundle, pair.guidance)
    roles = _roles(bundle)
    for name in PARTS:
        load[name], _ = _timed(lambda name=name: bundle.session(name, roles[name]))  # type: ignore[misc]
        first[name], _ = _timed(calls[name])
    calls["end_to_end"] = lambda: _finish(bundle, job)
    last = job.device_schedule.steps - 1
    here = f"steps {job.start}..{last}" if job.steps_here else "no steps"
    names = {"unet": "unet step, one branch", "end_to_end": f"end to end, {here}"}
    told = tell or (lambda row, done, of: None)
    timings = tuple(_measure(names.get(name, name), call, runs, warmup, told) for name, call in calls.items())
    return Report(
        bundle=str(source),
        machine=machine(),
        settings={
            "provider": bundle.provider.full_name,
            "precision": bundle.precision_of("unet", bundle.pass_role),
            "threads": bundle.threads or "the runtime's default",
            "runs": runs,
            "warmup": warmup,
            "pair": pair.name,
            "solver": job.device_schedule.solver,
            "steps": job.device_schedule.steps,
            "handoff": job.cloud_steps,
            "device_steps": job.device_steps,
            "guidance": pair.guidance,
            "latent_shape": list(bundle.latent_shape),
        },
        load_s=load,
        first_run_s=first,
        timings=timings,
        nodes_per_provider={name: bundle.session(name, roles[name]).nodes_per_provider() for name in PARTS},
        peak_memory_bytes=peak_memory_bytes(),
    )


def _calls(bundle: Bundle, scale: float) -> dict[str, Callable[[], Any]]:
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((1, *bundle.latent_shape)).astype(np.float32)
    ids = bundle.tokenise(_PROMPT)
    text: list[Any] = []

    def unet() -> Any:
        if full is not None:
            return bundle.session("unet", "full").run(**passing)
        if not text:
            read = bundle.encode(_PROMPT)
            text.append(told_scale(bundle, Guidance(read, read, scale)).text)
        return bundle.session("unet").run(sample=latents, timestep=scalar(500.0), **text[0])

    full = bundle.variant("unet", "full") if bundle.pass_role == "full" else None
    shapes = {} if full is None else {name: [int(size) for size in shape] for name, shape in full.inputs.items()}
    passing = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return {
        "text_encoder": lambda: bundle.session("text_encoder").run(input_ids=ids),
        "unet": unet,
        "vae_decoder": lambda: bundle.decode(latents[0]),
    }


def _roles(bundle: Bundle) -> dict[str, str]:
    """Of the graph that a job runs, for each part."""
    return {"text_encoder": "whole", "unet": bundle.pass_role, "vae_decoder": bundle.decoder_role}


def _finish(bundle: Bundle, job: Job) -> None:
    """What `generate` runs once latents are there, and the texts before them; sessions of passes stay open."""
    x = first_latents(job.device_schedule, 0, bundle.latent_shape)
    if job.steps_here:
        guide = Guidance(bundle.encode(job.prompt), bundle.encode(""), job.request.guidance)
        for _, latents, _ in denoise(bundle, job.device_schedule, guide, x, job.start, 0, saving=job.saving):
            x = latents
    bundle.decode(x)


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    value = call()
    return time.perf_counter() - started, value


def _measure(name: str, call: Callable[[], Any], runs: int | None, warmup: int, tell: Progress) -> Timing:
    spent = 0.0
    for _ in range(warmup):
        spent += _timed(call)[0]
        if runs is None and spent > _ROW_S:
            break
    seconds: list[float] = []
    while len(seconds) < (runs or _RUNS):
        seconds.append(_timed(call)[0])
        tell(name, len(seconds), runs or _RUNS)
        if runs is None and len(seconds) >= _FEWEST and sum(seconds) > _ROW_S:
            break
    seconds.sort()
    p90 = seconds[min(len(seconds) - 1, int(np.ceil(0.9 * len(seconds))) - 1)]
    return Timing(name, len(seconds), statistics.median(seconds), p90, seconds[0])


def require_plotting(path: Path) -> None:
    """InputError if no chart can be written under that name, ModelMissingError if matplotlib is not installed."""
    if path.suffix.lower() not in CHARTS:
        raise InputError(f"--plot is {path}; name a file that ends in {', '.join(CHARTS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ModelMissingError("a plot needs matplotlib: pip install 'obclip[plot]'")


def plot(report: Report, path: Path) -> None:
    """A bar chart of the medians. InputError and ModelMissingError as `require_plotting`."""
    require_plotting(path)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 2.5), layout="constrained")
    names = [t.name for t in report.timings]
    medians = [t.median_s * 1000 for t in report.timings]
    spread = [(t.p90_s - t.median_s) * 1000 for t in report.timings]
    axes.barh(names, medians, xerr=[[0] * len(spread), spread])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel(f"ms, median and p90; {report.machine['cpu']}", fontsize=8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write the plot to {path}: {error}") from error
    finally:
        pyplot.close(figure)
