"""Shares of a batch against an independent slow rule, and the remedy for uneven ones."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trinityx_jax.data.mixing import check_shares, rows_per_objective
from trinityx_jax.errors import UsageError

NAMES = ("a", "b", "c")


def test_shares_by_hand():
    assert rows_per_objective(NAMES, 4) == {"a": 4, "b": 4, "c": 4}
    assert rows_per_objective(NAMES, 4, (1, 2, 1)) == {"a": 3, "b": 6, "c": 3}
    assert rows_per_objective(NAMES, 4, (0.1, 0.2, 0.3)) == {"a": 2, "b": 4, "c": 6}
    assert rows_per_objective(NAMES, 3, (2, 2, 1)) == {"a": 4, "b": 3, "c": 2}  # 3.6 3.6 1.8
    assert rows_per_objective(NAMES, 1, (100, 1, 1)) == {"a": 1, "b": 1, "c": 1}
    assert rows_per_objective(NAMES, 4, (100, 1, 1)) == {"a": 10, "b": 1, "c": 1}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_no_other_whole_rows_are_nearer_to_the_mix(batch_size, mix):
    """Largest remainder minimises the sum of distances from the exact shares."""
    names = NAMES[: len(mix)]
    total = batch_size * len(mix)
    exact = [total * weight / sum(mix) for weight in mix]
    rows = list(rows_per_objective(names, batch_size, mix).values())

    def away(counts):
        return sum(abs(n - share) for n, share in zip(counts, exact, strict=True))

    every = itertools.product(range(1, total + 1), repeat=len(mix))
    best = min(away(counts) for counts in every if sum(counts) == total)
    assert sum(rows) == total and min(rows) >= 1
    assert math.isclose(away(rows), best, abs_tol=1e-9)


def test_uneven_shares_name_the_nearest_batch_size_that_can():
    check_shares(NAMES, 4, (1, 2, 1), parts=3)
    with pytest.raises(UsageError) as error:
        check_shares(NAMES, 4, (1, 2, 1), parts=2)
    message = str(error.value)
    assert "batch_size=4: 3 rows of 'a'" in message and message.endswith("that can is 8")
    for size in range(1, 8):  # 8 is the nearest: 5, 6 and 7 cannot, nor can 1 to 3
        if size != 8:
            with pytest.raises(UsageError):
                check_shares(NAMES, size, (1, 2, 1), parts=2)
    check_shares(NAMES, 8, (1, 2, 1), parts=2)
