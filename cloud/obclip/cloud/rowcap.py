"""How many rows a batch may have, after batches that did not fit into memory: halved then, and tried again later."""

from __future__ import annotations

from dataclasses import dataclass, field

_PATIENCE = 128  # batches that went well before twice as many rows are tried
_MOST_PATIENCE = 16_384


@dataclass
class RowCap:
    """most: the cap as configured. rows: the cap now.

    Memory runs out for reasons that pass (another process, a fragmented allocator) and for some that stay. So the cap
    doubles after `patience` good batches, and each time it proves too much, patience doubles as well: what stays costs
    a batch less and less often.
    """

    most: int
    patience: int = _PATIENCE
    rows: int = field(init=False)
    _good: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.rows = self.most

    def overflow(self, rows: int) -> int:
        """A batch of `rows` did not fit: the new cap, half of it or of what it was, at least 1."""
        self.rows = max(1, min(self.rows, rows) // 2)
        self.patience, self._good = min(2 * self.patience, _MOST_PATIENCE), 0
        return self.rows

    def pad(self, rows: int) -> int:
        """Batches of one size, whatever is in them: that of the cap."""
        return max(rows, self.rows)

    def good(self) -> int | None:
        """A batch went well: the new cap, if it grows now."""
        if self.rows == self.most:
            return None
        self._good += 1
        if self._good < self.patience:
            return None
        self._good, self.rows = 0, min(2 * self.rows, self.most)
        return self.rows
