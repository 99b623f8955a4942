"""How many layers stay float: tries in the order of sensitivity, until the floor is met, and back from too many."""

from __future__ import annotations

import numpy as np
import pytest

from obclip.core.errors import VerificationError
from obclip.export.quantise.sensitivity import Damage, choose
from obclip.export.quantise.verdict import Verdict


def test_choosing_goes_on_until_the_floor_is_met_or_gives_up():
    table = [Damage((f"layer{i}",), noise, 0.1) for i, noise in enumerate([8.0, 4.0, 2.0, 1.0, 0.5, *[0.1] * 5])]
    noise = {d.layers[0]: d.noise for d in table}

    def judge(excluded: tuple[str, ...]) -> Verdict:
        psnr_db = 30 - 10 * np.log10(1e-9 + sum(v for k, v in noise.items() if k not in excluded))
        return Verdict(psnr_db, psnr_db, psnr_db)

    choice = choose(table, judge, 25.0)
    assert choice.verdict.psnr_db >= 25
    assert choice.excluded == tuple(f"layer{i}" for i in range(len(choice.excluded)))
    assert 10 * choice.share == pytest.approx(10 - len(choice.excluded))
    assert judge(choice.excluded[:-1]).psnr_db < 25 + 1
    with pytest.raises(VerificationError, match="leave int8 out"):
        choose(table, judge, 45.0)
    with pytest.raises(VerificationError, match=r"1\.200"):
        choose(table, lambda excluded: Verdict(50.0, 50.0, 50.0, 1.2), 30.0)


def test_giving_up_says_why():
    """Whether tries ran out, with how much in float32, or more than half of the work would be."""
    even = [Damage((f"layer{i}",), 1.0, 0.01) for i in range(100)]
    seen = []

    def slowly(excluded: tuple[str, ...]) -> Verdict:  # always as far below the floor, so that a step more is tried
        seen.append(len(excluded))
        return Verdict(29.99, 29.99, 29.99)

    with pytest.raises(VerificationError) as caught:
        choose(even, slowly, 30.0)
    assert len(seen) == 6
    assert f"with {seen[-1]}% of the work left in float32" in str(caught.value)
    assert seen[-1] < 50
    assert "these were 6 tries; ask for less" in str(caught.value)
    with pytest.raises(VerificationError, match=r"with 0% of the work.*20\.0 dB.*a further try would leave over half"):
        choose(even, lambda excluded: Verdict(20.0, 20.0, 20.0), 30.0)
    with pytest.raises(VerificationError, match="no layers that int8 could take"):
        choose([], slowly, 30.0)


def test_choosing_goes_back_from_what_is_far_above_the_floor():
    table = [Damage((f"layer{i:02}",), 1.0 if i < 40 else 0.001, 0.01) for i in range(100)]
    seen = []

    def judge(excluded: tuple[str, ...]) -> Verdict:  # gains more by each layer than its damage alone foretells
        seen.append(len(excluded))
        psnr_db = 20 + 1.5 * len(excluded)
        return Verdict(psnr_db, psnr_db, psnr_db)

    choice = choose(table, judge, 24.0)
    assert 24 <= choice.verdict.psnr_db < 26
    assert [count for count, _ in choice.rounds] == seen
    assert seen[0] == 0
    assert max(seen) > len(choice.excluded) == 3
