"""Whose turn it is: fair between clients by rows, no job left waiting, no room left empty.

A client pays a row for a row. Each batch is led by the client that has paid least, with whichever of its jobs has been
without a turn for longest. What room is left goes to rows of the same kind, those of whoever has paid least first.
Between two of its leads a client pays for at most one full batch (M rows, the cap) of such room; what it gets beyond is
free, and given only where nobody who still pays has rows that fit. So no room is wasted, and taking what nobody else
can use is not held against a client for ever. One that comes, or comes back, starts at the least that others paid.

Fairness. Let g <= M be the most rows one job gets in one batch. When client B last led, it had paid no more than any
other client A; since then it paid at most g for the lead and M for room. Nobody pays for more than it gets. So from
when both were level, the rows B paid for exceed the rows A was served by at most M + g, however many requests either
sends. Between two clients free rows are no advantage either: nothing is free in a batch that B leads itself, and in one
that A leads B gets them only once A has no more that fit.

No starvation. Between two leads of a client each of the other C - 1 leads at most M + g + 1 times: a lead costs a row
at least, and what clients have paid lies within M + g. A client's leads go round its n admitted jobs. So from one turn
of an admitted job to the next there are at most n * (1 + (C - 1) * (M + g + 1)) batches, C counting all clients that
had admitted work meanwhile.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from obclip.cloud.scheduling import Outcome, SchedulerJob, Work

Part = tuple["Run", int]  # how many of a run's next rows go into a batch


@dataclass(eq=False)
class Run:
    """A job and how far it is: rows [0, row) of units[unit] are done, `left` rows in all are not.

    order: of arrival. turn: the last batch it was in, or that there was when it was admitted. stop: why to give it up.
    """

    job: SchedulerJob
    order: int
    left: int
    unit: int = 0
    row: int = 0
    turn: int = -1
    admitted_s: float | None = None
    stop: Outcome | None = None
    ended: bool = False

    @property
    def work(self) -> Work:
        return self.job.units[self.unit]

    @property
    def complete(self) -> bool:
        return self.unit == len(self.job.units)

    @property
    def at_boundary(self) -> bool:
        """Whether it has not begun, or a step of it is done and no row of the next."""
        return self.row == 0 and (self.unit == 0 or self.job.units[self.unit - 1].boundary)

    def fitting(self, room: int) -> int:
        """How many of its next rows fit into `room`."""
        left = self.work.rows - self.row
        return 0 if self.work.whole and left > room else min(left, room)

    def advance(self, rows: int) -> None:
        self.row, self.left = self.row + rows, self.left - rows
        if self.row == self.work.rows:
            self.unit, self.row = self.unit + 1, 0


@dataclass(eq=False)
class Client:
    """waiting, admitted: its jobs, oldest first. paid: rows. room: rows it got beyond its leads since the last of them.
    led: the batch that it led last."""

    waiting: deque[Run] = field(default_factory=deque)
    admitted: list[Run] = field(default_factory=list)
    paid: int = 0
    room: int = 0
    led: int = -1

    @property
    def held(self) -> int:
        return sum(r.job.hold_rows for r in self.admitted)


class Turns:
    """clients: those with jobs, and those without who have paid more than the least that others have."""

    def __init__(self) -> None:
        self.clients: dict[str, Client] = {}
        self._batch = 0  # the number of the next one
        self._least = 0  # what the client that led last had paid before

    @property
    def active(self) -> list[Client]:
        return [c for c in self.clients.values() if c.admitted]

    def admit(self, client: Client, now: float) -> None:
        """Admit the first of `client`'s waiting jobs."""
        if not client.admitted:
            start = min((c.paid for c in self.active), default=self._least)
            if client.paid < start:
                client.paid, client.room = start, 0
        run = client.waiting.popleft()
        run.admitted_s, run.turn = now, self._batch - 1
        client.admitted.append(run)

    def take(self, cap: int) -> list[Part]:
        """What the next batch of at most `cap` rows is made of, and paid for; empty if no job is admitted."""
        active = self.active
        if not active:
            return []
        lead = min(active, key=lambda c: (c.paid, c.led))
        first = min(lead.admitted, key=lambda r: r.turn)
        rows = first.fitting(cap)
        self._least = lead.paid
        lead.paid, lead.room, lead.led = lead.paid + rows, 0, self._batch
        parts = [(first, rows), *_fill(active, first, cap - rows, cap)]
        for run, _ in parts:
            run.turn = self._batch
        self._batch += 1
        keep = {n: c for n, c in self.clients.items() if c.admitted or c.waiting or c.paid > self._least}
        self.clients = keep
        return parts


def _fill(active: list[Client], first: Run, room: int, cap: int) -> list[Part]:
    """What goes into the `room` that is left in a batch which `first` leads."""
    kind = first.work.kind
    queues = {
        c: deque(sorted((r for r in c.admitted if r.work.kind == kind and r is not first), key=lambda r: r.turn))
        for c in active
    }
    parts: list[Part] = []
    while True:
        for queue in queues.values():
            while queue and not queue[0].fitting(room):  # room only shrinks: this one is out for this batch
                queue.popleft()
        ready = [c for c in active if queues[c]]
        if not ready:
            return parts
        client = min(ready, key=lambda c: (_free(c, queues[c][0], room, cap), c.paid, c.led))
        run = queues[client].popleft()
        rows = run.fitting(room)
        client.paid += 0 if _free(client, run, room, cap) else rows
        client.room += rows
        room -= rows
        parts.append((run, rows))


def _free(client: Client, run: Run, room: int, cap: int) -> int:
    """How far `client` would be beyond what it pays for between two leads if it got this run's rows; 0 if it pays."""
    return max(client.room + run.fitting(room) - cap, 0)
