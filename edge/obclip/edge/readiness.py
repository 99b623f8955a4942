"""Models opened and texts read before latents are there: before a cloud is asked, or while it works."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from obclip.edge.bundle import Bundle
from obclip.edge.complete import Denoiser, Guidance, denoiser
from obclip.edge.job import Job


def ready(job: Job, bundle: Bundle) -> Denoiser | None:
    """All that can be done before latents are there: texts read, models open; None if the device has no steps to run.

    A bundle that cannot be loaded so costs the cloud nothing. Where jobs run by phase, the decoder waits for its own.
    """
    made = None
    if job.steps_here:
        if bundle.phased and bundle.options.memory_limit is None and not bundle.options.lean:
            # Takes longer than the texts, which are gone before it is done
            bundle.open_ahead("unet", bundle.pass_role)
        guidance = _guidance(job, bundle)
        bundle.end_phase("text_encoder", "text_encoder_2")
        made = denoiser(bundle, job.device_schedule, guidance)
    if made is None or not bundle.phased:
        bundle.session("vae_decoder", bundle.decoder_role)
    return made


class Readying:
    """`ready`, done when this is made; or, of a large bundle that was opened here before as it is opened now, in
    another thread, so that the user does not wait for it while the cloud works.

    beside: whether a cloud will be waited for. The bundle may not be used until the block of `with` is left.
    """

    def __init__(self, job: Job, bundle: Bundle, beside: bool) -> None:
        self.ahead = beside and job.steps_here > 0 and bundle.phased and bundle.opened_before()
        self._made: Future[Denoiser | None] = Future()
        if self.ahead:
            pool = ThreadPoolExecutor(1)
            self._made = pool.submit(ready, job, bundle)
            pool.shutdown(wait=False)
        else:
            self._made.set_result(ready(job, bundle))
        self._bundle = bundle

    def __enter__(self) -> Readying:
        return self

    def __exit__(self, *_: object) -> None:
        self._made.exception()  # waits; whoever wants it has had it from `result`

    def check(self) -> None:
        """Raises what has gone wrong by now, and does not wait."""
        if self._made.done():
            self._made.result()

    def notes(self) -> tuple[str, ...]:
        """`Bundle.fallbacks`, but while the other thread is at it: providers that keep what they opened have none."""
        return () if self.ahead else self._bundle.fallbacks()

    def result(self) -> Denoiser | None:
        return self._made.result()


def _guidance(job: Job, bundle: Bundle) -> Guidance:
    """The device reads the user's own words, not the canonical ones."""
    return Guidance(bundle.encode(job.prompt), bundle.encode(job.request.negative_prompt), job.request.guidance)
