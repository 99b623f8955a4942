"""The cap on a batch's rows: down at once, up again slowly, more slowly each time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from obclip.cloud.rowcap import RowCap


def batches_until_growth(cap: RowCap) -> int:
    count = 1
    while cap.good() is None:
        count += 1
        assert count < 10_000
    return count


def test_it_halves_and_comes_back():
    cap = RowCap(64, patience=4)
    assert cap.overflow(64) == 32
    assert cap.overflow(20) == 10  # what did not fit was narrower than the cap
    assert [batches_until_growth(cap) for _ in range(3)] == [16, 16, 16]  # patience doubled with each overflow
    assert cap.rows == 64
    assert cap.good() is None  # and grows no further


def test_a_cap_that_proves_too_much_is_tried_less_often():
    cap, waits = RowCap(8, patience=1), []
    for _ in range(4):
        cap.overflow(8)
        waits.append(batches_until_growth(cap))
    assert waits == [2, 4, 8, 16]


def test_trouble_starts_the_count_anew():
    cap = RowCap(8, patience=3)
    cap.overflow(8)
    assert [cap.good() for _ in range(5)] == [None] * 5
    cap.overflow(1)
    assert [cap.good() for _ in range(11)] == [None] * 11
    assert cap.good() == 2


@given(st.integers(1, 100), st.lists(st.one_of(st.none(), st.integers(1, 100)), max_size=60))
def test_it_stays_within_its_bounds(most: int, events: list[int | None]):
    cap = RowCap(most, patience=1)
    for rows in events:
        before = cap.rows
        if rows is None:
            assert cap.good() in (None, min(2 * before, most))
        else:
            assert cap.overflow(rows) == max(1, min(before, rows) // 2)
        assert 1 <= cap.rows <= most
