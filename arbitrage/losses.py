"""Loss families: what a policy with candidate set C loses, as target - max_{a in C} value_a.

Each family turns the Guardian's scores g into one `value` per option and a `target` per row; the
loss falls from target - max_{C_0} value at lambda = 0 to target - max_A value on the full menu, so
it is monotone and right-continuous in lambda for every family. All functions are pure, take NumPy
or JAX arrays, and see a row's options as K arrays of shape (n,).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from arbitrage.candidates import array_namespace, exact_difference, masked_max
from arbitrage.errors import UsageError

Columns = Sequence[Any]
Values = tuple[Columns, Any]


class Loss(Protocol):
    """A loss family. Instances are hashable, so that compiled code can depend on them."""

    @property
    def name(self) -> str:
        """The name in files and on the command line."""
        ...

    @property
    def needs_label(self) -> bool:
        """Whether calibration rows need the index of the right option."""
        ...

    @property
    def binary(self) -> bool:
        """Whether every loss is 0 or 1."""
        ...

    @property
    def full_menu(self) -> bool:
        """Whether the Guardian is shown all options of a deferred row, not only the candidates."""
        ...

    @property
    def words(self) -> str:
        """What is kept at most alpha, to stand before "is at most alpha"."""
        ...

    def values(self, gap: Columns, guardian: Columns, valid: Columns | None, label) -> Values:
        """`value`, K float32 arrays (n,), and `target` (n,) float32.

        gap and guardian: K float32 arrays (n,); valid: K bool arrays (n,), or None if all are;
        label: (n,) int or None. Values of options that are not valid are ignored.
        """
        ...


@dataclass(frozen=True)
class GuardianShortfall:
    """L = max_A g - max_C g: what the deployed answer lacks in the Guardian's own score.

    Overman and Bayati, arXiv 2506.00911, Eq. 2.
    """

    name = "guardian_shortfall"
    needs_label = False
    binary = False
    full_menu = False
    words = (
        "what the deployed answer falls short of the Guardian's best, in the Guardian's own score,"
    )

    def values(self, gap, guardian, valid, label):
        """g itself, against its maximum."""
        return guardian, masked_max(guardian, valid)


@dataclass(frozen=True)
class GuardianCorrect:
    """L = 1{the Guardian's top answer is right and not a candidate}: the paper's binarised form.

    Then P(deployed answer right) >= P(Guardian right) - alpha. The Guardian's top is the lowest
    index among equals. Needs labels in calibration only.
    """

    name = "guardian_correct"
    needs_label = True
    binary = True
    full_menu = False
    words = "the share of rows where the Guardian is right and its answer is lost"

    def values(self, gap, guardian, valid, label):
        """1 at the Guardian's top if it is the label, else 0."""
        xp = array_namespace(*guardian)
        best = masked_max(guardian, valid)
        right, taken = [], xp.zeros_like(best, dtype=bool)
        for option, g in enumerate(guardian):
            top = (g == best) & ~taken
            top = top if valid is None else top & valid[option]
            taken = taken | top
            right.append((top & (label == option)).astype(np.float32))
        return right, functools.reduce(xp.maximum, right)


@dataclass(frozen=True)
class FullMenuShortfall:
    """L* = (max_A g - g(top)) 1{the Primary acts alone}: a deferred row is shown the whole menu.

    The loss of the variant CA* (arXiv 2506.00911, App. B.5). It is at most the shortfall of
    Eq. 2, so its threshold is at most that of `GuardianShortfall`.
    """

    name = "full_menu"
    needs_label = False
    binary = False
    full_menu = True
    words = GuardianShortfall.words

    def values(self, gap, guardian, valid, label):
        """g at an untied top option, the maximum elsewhere: a second candidate means deferral."""
        xp = array_namespace(*guardian)
        best = masked_max(guardian, valid)
        at_top = [d == 0 for d in gap]  # an option that is not valid has gap +inf
        tied = functools.reduce(xp.add, [top.astype(np.int32) for top in at_top]) > 1
        values = [xp.where(top & ~tied, g, best) for top, g in zip(at_top, guardian, strict=True)]
        return values, best


@dataclass(frozen=True)
class AbsoluteShortfall:
    """L = [tau - max_C g]_+: what the deployed answer lacks to the fixed level `tau`.

    For free text, where the options are sampled replies and the best of them may be poor. It need
    not reach 0 on the full menu, so an alpha may be infeasible for any number of rows.
    """

    tau: float

    needs_label = False
    binary = False
    full_menu = False

    def __post_init__(self):
        if not np.isfinite(np.float32(self.tau)):
            raise UsageError(f"tau must be a finite float32 number, not {self.tau!r}")

    @property
    def name(self) -> str:
        """The name with its level."""
        return f"absolute_shortfall({self.tau!r})"

    @property
    def words(self) -> str:
        """What is averaged."""
        return f"what the deployed answer falls short of the level {self.tau:g}"

    def values(self, gap, guardian, valid, label):
        """g up to tau, against tau."""
        xp = array_namespace(*guardian)
        # Rounded up: a higher level can only make the loss larger.
        tau = np.float32(self.tau)
        if float(tau) < self.tau:
            tau = np.nextafter(tau, np.float32(np.inf))
        return [xp.minimum(g, tau) for g in guardian], xp.full_like(guardian[0], tau)


@dataclass(frozen=True)
class Exceeds:
    """L = 1{the loss `of` is above `level`}: quantile risk.

    With alpha = beta it gives P(loss > level) <= beta (Angelopoulos et al., arXiv 2208.02814,
    Prop. 4). Its bound is 1.
    """

    of: Loss
    level: float

    binary = True

    def __post_init__(self):
        if not np.isfinite(np.float32(self.level)) or self.level < 0:
            raise UsageError(f"level must be a finite number >= 0, not {self.level!r}")

    @property
    def name(self) -> str:
        """The name with its level."""
        return f"exceeds({self.of.name}, {self.level!r})"

    @property
    def needs_label(self) -> bool:
        """As the loss it counts."""
        return self.of.needs_label

    @property
    def full_menu(self) -> bool:
        """As the loss it counts."""
        return self.of.full_menu

    @property
    def words(self) -> str:
        """What is averaged."""
        return f"the share of rows with a loss ({self.of.name}) above {self.level:g}"

    def values(self, gap, guardian, valid, label):
        """1 where the loss with this option is at most the level."""
        xp = array_namespace(*guardian)
        value, target = self.of.values(gap, guardian, valid, label)
        # The level is rounded down: a loss between the two counts as too large, the safe side.
        level = np.float32(self.level)
        if float(level) > self.level:
            level = np.nextafter(level, np.float32(-1))
        within = [_within(target, v, level).astype(np.float32) for v in value]
        return within, xp.ones_like(target)


def _within(target, value, level):
    """target - value <= level, exactly."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference, lost = exact_difference(target, value)
        return (difference < level) | ((difference == level) & (lost <= 0))


LOSSES: dict[str, Loss] = {
    loss.name: loss for loss in (GuardianShortfall(), GuardianCorrect(), FullMenuShortfall())
}
LOSS_FORMS = (*LOSSES, "absolute_shortfall(TAU)", "exceeds(LOSS, LEVEL)")


def loss_by_name(name: str) -> Loss:
    """The loss family with this `name`; UsageError, listing the forms, for anything else."""
    text = name.replace(" ", "")
    if text in LOSSES:
        return LOSSES[text]
    kind, bracket, inside = text.partition("(")
    try:
        if bracket and inside.endswith(")"):
            if kind == "absolute_shortfall":
                return AbsoluteShortfall(float(inside[:-1]))
            inner, comma, level = inside[:-1].rpartition(",")
            if kind == "exceeds" and comma:
                return Exceeds(loss_by_name(inner), float(level))
    except ValueError as error:
        raise UsageError(f"loss {name!r}: {error}") from None
    raise UsageError(f"loss {name!r} is not one of {', '.join(LOSS_FORMS)}")
