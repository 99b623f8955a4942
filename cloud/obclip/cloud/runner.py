"""A batch run, whatever happens to it: whoever broke it fails, the others' rows are done.

Rows share nothing but a kernel launch, so a batch that raised is run again request by request, unless memory ran out
(all of its requests fail, and later batches are smaller) or the device is gone; rows that were not finite are run once
more in float32, one by one. Running rows twice does no harm: a request's latents change in `advance` alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from obclip.cloud import errors
from obclip.cloud.batch import Batcher, Slice, float32_copy, run_float32
from obclip.cloud.faults import classify
from obclip.cloud.model import CloudModel
from obclip.cloud.unet import LayeredUNet
from obclip.core.errors import RunError


@dataclass
class Outcome:
    """failed: requests by number, with why. rerun_rows: that ran again in float32. overflow: the rows, padding
    included, of the smallest batch that did not fit into memory, None if all did."""

    failed: dict[int, RunError] = field(default_factory=dict)
    rerun_rows: int = 0
    overflow: int | None = None

    @property
    def dead(self) -> errors.DeadEngineError | None:
        """Why the device is of no use any more, if so."""
        return next((e for e in self.failed.values() if isinstance(e, errors.DeadEngineError)), None)


class Runner:
    """model: whose copy in float32 is made when it is first needed."""

    def __init__(self, model: CloudModel, batcher: Batcher) -> None:
        self.model, self.batcher = model, batcher
        self._wide: LayeredUNet | None = None

    def run(self, slices: Mapping[int, Slice]) -> Outcome:
        """Run all rows of a batch, by number of request, and the solver's step for those whose step is done."""
        outcome = Outcome()
        self._run(slices, outcome)
        return outcome

    def _run(self, slices: Mapping[int, Slice], outcome: Outcome) -> None:
        try:
            bad = self.batcher.run(list(slices.values()))
        except Exception as error:
            fault = classify(error)
        else:
            self._check(slices, bad, outcome)
            self._advance(slices, outcome)
            return
        # The exception is gone by now, and with its traceback what kept the batch's tensors in memory.
        if isinstance(fault, errors.OutOfMemoryError):
            self._overflow(self.batcher.size(sum(s.rows for s in slices.values())), outcome)
        if len(slices) == 1 or isinstance(fault, (errors.OutOfMemoryError, errors.DeadEngineError)):
            outcome.failed |= dict.fromkeys(slices, fault)
            return
        for number, one in slices.items():  # one of them may have broken it for all
            if outcome.dead is None:
                self._run({number: one}, outcome)

    def _overflow(self, rows: int, outcome: Outcome) -> None:
        outcome.overflow = rows if outcome.overflow is None else min(outcome.overflow, rows)
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _check(self, slices: Mapping[int, Slice], bad: Sequence[Slice], outcome: Outcome) -> None:
        """Run rows that were not finite once more, in float32; the requests for which that does not help fail."""
        if not bad:
            return
        outcome.rerun_rows += sum(one.rows for one in bad)
        fault: RunError = errors.NotFiniteError("the model made numbers that are not finite")
        try:
            if self._wide is None:
                wide = self.model.dtype == torch.float32
                self._wide = self.model.layered if wide else float32_copy(self.model.layered)
            left = run_float32(bad, self._wide)
        except Exception as error:
            left, fault = list(bad), classify(error)
        states = {id(one.state) for one in left}
        outcome.failed |= {number: fault for number, one in slices.items() if id(one.state) in states}

    def _advance(self, slices: Mapping[int, Slice], outcome: Outcome) -> None:
        for number, one in slices.items():
            if one.closes_step and number not in outcome.failed:
                try:
                    one.state.advance(one.step)
                except Exception as error:
                    outcome.failed[number] = classify(error)
