"""Three ways in, one answer: memory, streams and devices against sorting, bit for bit."""

from __future__ import annotations

import warnings
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from problems import problems

from arbitrage import DataError, InfeasibleWarning, UsageError
from arbitrage.bounds import HoeffdingBentkus
from arbitrage.kernels import threshold_by_bisection
from arbitrage.loss_curves import (
    PAIRWISE_OPTIONS,
    SHORTFALL,
    curves_of,
    loss_at,
    loss_quantum,
    prepared,
)
from arbitrage.losses import AbsoluteShortfall, Exceeds, FullMenuShortfall, GuardianCorrect, Loss
from arbitrage.risk import calibrate, calibrate_stream
from arbitrage.rows import Rows
from arbitrage.selection import loss_budget, risk_steps, select

FEW = ["0.05", "0.1", "0.3"]
MANY = [f"{at / 50}" for at in range(1, 50)]
LOSSES = [
    SHORTFALL,
    GuardianCorrect(),
    FullMenuShortfall(),
    AbsoluteShortfall(0.7),
    Exceeds(SHORTFALL, 0.25),
]


@pytest.fixture
def small_blocks(monkeypatch):
    """Everything is large: blocks of 512 rows, sorting up to 300, XLA for any size."""
    monkeypatch.setattr("arbitrage.sources.BLOCK_ROWS", 512)
    monkeypatch.setattr("arbitrage.bracket.SORT_ROWS", 300)
    monkeypatch.setattr("arbitrage.bracket.SPREAD_ROWS", 100)
    monkeypatch.setattr("arbitrage.risk.SMALL", 0)


def some_rows(n: int, k: int = 4, *, ties: int = 0, seed: int = 0, masked: bool = False) -> Rows:
    """Random rows; with `ties`, scores are multiples of 1 / ties."""
    rng = np.random.default_rng(seed)
    p, g = rng.random((2, n, k), dtype=np.float32)
    if ties:
        p, g = np.round(p * ties) / np.float32(ties), np.round(g * ties) / np.float32(ties)
    mask = np.arange(k) < rng.integers(1, k + 1, n)[:, None] if masked else None
    label = rng.integers(0, k if mask is None else mask.sum(axis=1))
    return Rows(p, g, mask, np.broadcast_to(label, (n,)).astype(np.int32))


def sorted_answer(rows: Rows, alphas, loss: Loss = SHORTFALL):
    bound = Fraction(1)
    steps = risk_steps(curves_of(rows, loss, bound))
    budgets = [loss_budget(Fraction(a), bound, steps.n, steps.quantum) for a in alphas]
    return select(steps, budgets)


def same(found, want) -> None:
    assert found.threshold.dtype == np.float32
    np.testing.assert_array_equal(found.threshold.view(np.uint32), want.threshold.view(np.uint32))
    np.testing.assert_array_equal(found.feasible, want.feasible)
    np.testing.assert_array_equal(found.empirical_risk, want.total * found.quantum / found.n)


def run(rows: Rows, alphas, loss: Loss = SHORTFALL):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InfeasibleWarning)
        return calibrate(*rows[:2], mask=rows[2], label=rows[3], alpha=alphas, bound=1, loss=loss)


def run_stream(chunks, alphas, loss: Loss = SHORTFALL):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InfeasibleWarning)
        return calibrate_stream(chunks, alpha=alphas, bound=1, loss=loss)


class Sized:
    """A stream that knows its length, and counts its readings."""

    def __init__(self, chunks, length=None):
        self.chunks, self.readings = chunks, 0
        self.length = sum(len(c.primary) for c in chunks) if length is None else length

    def __len__(self):
        return self.length

    def __iter__(self):
        self.readings += 1
        return iter(self.chunks)


def cut(rows: Rows, size: int) -> list[Rows]:
    starts = range(0, len(rows.primary), size)
    return [Rows(*(None if a is None else a[s : s + size] for a in rows)) for s in starts]


@pytest.mark.parametrize("alphas", [FEW, MANY], ids=["few", "many"])
@pytest.mark.parametrize(("ties", "masked"), [(0, False), (3, False), (50, False), (0, True)])
def test_memory_and_streams_equal_sorting(small_blocks, ties, masked, alphas):
    rows = some_rows(9001, ties=ties, masked=masked, seed=ties)
    want = sorted_answer(rows, alphas)
    same(run(rows, alphas), want)
    same(run_stream(Sized(cut(rows, 700)), alphas), want)
    same(run_stream(lambda: cut(rows, 1000), alphas), want)


def test_more_options_than_are_compared_in_pairs(small_blocks):
    rows = some_rows(1100, PAIRWISE_OPTIONS + 3, ties=40, masked=True)
    steps = risk_steps(curves_of(rows, SHORTFALL, Fraction(1)))
    for lam in steps.thresholds[::50]:
        losses = loss_at(prepared(rows, SHORTFALL), lam, 2.0**30)
        at = np.searchsorted(steps.thresholds, lam)
        assert losses.sum(dtype=np.int64) == steps.totals[at]
    for alphas in (FEW, MANY):
        same(run(rows, alphas), sorted_answer(rows, alphas))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_every_loss_family(small_blocks, loss):
    rows = some_rows(2000, 3, seed=7, masked=True)
    for alphas in (FEW[:1], MANY[::6]):
        want = sorted_answer(rows, alphas, loss)
        same(run(rows, alphas, loss), want)
        same(run_stream(Sized(cut(rows, 512)), alphas, loss), want)


def test_any_order_of_the_rows_gives_the_same_bits(small_blocks):
    rows = some_rows(2500, seed=3)
    order = np.argsort(rows.primary[:, 0])  # sorted data mislead a sample from its first block
    moved = Rows(*(None if a is None else a[order] for a in rows))
    want = sorted_answer(rows, FEW)
    same(run(moved, FEW), want)
    same(run_stream(Sized(cut(moved, 300)), FEW), want)


def test_a_stream_is_read_at_most_three_times(small_blocks, monkeypatch):
    monkeypatch.setattr("arbitrage.bracket.SORT_ROWS", 1000)
    # All of the first chunk loses nothing, so the bracket made from it cannot hold.
    easy, hard = some_rows(600, seed=1), some_rows(2400, seed=2)
    easy = easy._replace(guardian=easy.primary)
    for chunks, most in ((cut(hard, 600), 1 + 1), ([easy, *cut(hard, 600)], 3 + 1)):
        stream = Sized(chunks)
        got = run_stream(stream, FEW)
        # Looking at the first chunk starts a reading that goes no further.
        assert stream.readings <= most
        rows = Rows(
            *(np.concatenate(c) if c[0] is not None else None for c in zip(*chunks, strict=True))
        )
        same(got, sorted_answer(rows, FEW))
        many = Sized(chunks)
        same(run_stream(many, MANY), sorted_answer(rows, MANY))
        assert many.readings <= 3


def test_blocks_of_different_widths(small_blocks):
    narrow, wide = some_rows(900, 2, seed=1), some_rows(900, 4, seed=2, masked=True)
    more = ((0, 0), (0, 2))
    shown = np.pad(np.ones((900, 2), bool), more)
    padded = Rows(np.pad(narrow.primary, more), np.pad(narrow.guardian, more), shown, narrow.label)
    rows = Rows(*(np.concatenate([a, b]) for a, b in zip(padded, wide, strict=True)))
    for alphas in (FEW, MANY):
        same(run_stream(Sized([narrow, wide]), alphas), sorted_answer(rows, alphas))


def test_alphas_without_a_threshold(small_blocks):
    rows = some_rows(400, seed=5)
    found = run(rows, ["0.002", "0.5"])
    assert found.threshold[0] == np.inf and not found.feasible[0] and found.empirical_risk[0] == 0
    # This loss does not vanish on the full menu, so more rows would not help.
    level = AbsoluteShortfall(2.0)
    with pytest.warns(InfeasibleWarning, match="even the full menu loses more"):
        found = calibrate(*rows[:2], alpha="0.1", bound=2, loss=level)
    assert found.threshold == np.inf
    assert "even the full menu" in found.guarantee


def test_one_device_that_is_not_the_host(monkeypatch):
    monkeypatch.setattr("arbitrage.risk._on_devices", lambda array: isinstance(array, jax.Array))
    rows = some_rows(700, seed=9, masked=True)
    on_device = Rows(*(jnp.asarray(a) for a in rows))
    same(run(on_device, FEW), sorted_answer(rows, FEW))
    broken = on_device._replace(guardian=on_device.guardian.at[301, 0].set(np.nan))
    with pytest.raises(DataError, match="row 301: Guardian score of option 0 is nan"):
        run(broken, FEW)


@settings(max_examples=40, deadline=None)
@given(problems())
def test_bisection_equals_brute_force(problem):
    p, g, mask = (np.resize(part, (8, 5)) for part in problem)
    mask[:, 0] = True
    quantum = loss_quantum(Fraction(1))
    with jax.enable_x64(True):
        for alpha in ("0.05", "0.3", "0.7"):
            budget = loss_budget(Fraction(alpha), Fraction(1), 8, quantum)
            found = BISECT(Rows(p, g, mask), budget)
            assert float(found) == oracle.threshold(p, g, mask, alpha, "1")


BISECT = jax.jit(
    lambda rows, budget: threshold_by_bisection(rows, budget, loss=SHORTFALL, scale=2.0**30)
)


@pytest.mark.parametrize("alphas", [FEW, MANY], ids=["few", "many"])
def test_bad_rows_are_named_wherever_they_are(small_blocks, alphas):
    rows = some_rows(2000, seed=1)
    for row, option, bad in ((0, 1, np.nan), (1040, 3, np.inf), (1999, 0, -np.inf)):
        broken = rows._replace(primary=rows.primary.copy())
        broken.primary[row, option] = bad
        for start in (lambda b=broken: run(b, alphas), lambda b=broken: run_stream([b], alphas)):
            with pytest.raises(DataError, match=f"row {row}: Primary score of option {option}"):
                start()
    costly = rows._replace(guardian=rows.guardian * 3)
    with pytest.raises(DataError, match=r"row \d+: the Primary's choice costs"):
        run(costly, alphas)
    mask = np.ones(rows.primary.shape, bool)
    mask[1500] = False
    with pytest.raises(DataError, match="row 1500 has no valid option"):
        run(rows._replace(mask=mask), alphas)
    label = rows.label.copy()
    label[77] = 4
    with pytest.raises(DataError, match="row 77: label 4 is not one of its valid options"):
        run(rows._replace(label=label), alphas, GuardianCorrect())


def test_streams_that_cannot_be_used(small_blocks):
    rows = some_rows(100)
    with pytest.raises(UsageError, match="read only once"):
        run_stream(iter([rows]), FEW)
    with pytest.raises(DataError, match="no rows"):
        run_stream([], FEW)
    with pytest.raises(DataError, match="said to have 90 rows and gave 100"):
        run_stream(Sized([rows], length=90), FEW)
    lengths = iter([100, 60, 60])
    with pytest.raises(DataError, match="said to have 100 rows and gave 60"):
        run_stream(lambda: cut(rows, next(lengths))[:1], FEW)
    with pytest.raises(UsageError, match="shape"):
        run_stream([rows._replace(guardian=rows.guardian[:, :2])], FEW)


def test_high_probability_takes_the_same_way(small_blocks):
    rows = some_rows(2000, seed=8)
    control = HoeffdingBentkus(0.05)
    options = {"alpha": FEW, "bound": 1, "control": control}
    found = calibrate(*rows[:2], **options)
    streamed = calibrate_stream(cut(rows, 300), **options)
    np.testing.assert_array_equal(found.threshold, streamed.threshold)
    assert (found.threshold >= run(rows, FEW).threshold).all()
    assert "probability at least 0.95" in found.guarantee
    for at, alpha in enumerate(FEW):
        allowed = control.budget(Fraction(alpha), Fraction(1), 2000, found.quantum)
        assert found.empirical_risk[at] * 2000 <= allowed * found.quantum
