"""What a question costs: constants, a column of the table, or token counts at list prices.

A routed question pays the Primary always and the Guardian if it is asked. The Guardian asked about
m of n options reads a shorter prompt; its input tokens are estimated from the full menu's,

    floor( t_full (0.5 + 0.5 m / n) )        (Overman and Bayati, arXiv 2506.00911, App. B.2),

and its output tokens are kept. With a constant or a cost column the menu's length does not matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from arbitrage.errors import DataError, UsageError, first_row
from arbitrage.scores import ScoreTable


@dataclass(frozen=True)
class TokenPrice:
    """List prices in dollars per million tokens, and the columns that hold the token counts.

    Fields:
      input, output: dollars per million input and output tokens.
      input_tokens, output_tokens: column names, in the table of the model itself.
    """

    input: float
    output: float
    input_tokens: str = "input_tokens"
    output_tokens: str = "output_tokens"

    def __post_init__(self):
        for price in (self.input, self.output):
            if not (math.isfinite(price) and price >= 0):
                raise UsageError(f"a token price must be a number >= 0, not {price!r}")


@dataclass(frozen=True)
class Costs:
    """Cost of one call of each model.

    Each of `primary` and `guardian` is a constant per call, the name of a column with the cost of
    each row, or a `TokenPrice`. The default, 0 and 1, makes the cost the Guardian rate.
    """

    primary: float | str | TokenPrice = 0.0
    guardian: float | str | TokenPrice = 1.0

    @property
    def unit(self) -> str:
        """In what the numbers are counted."""
        models = (self.primary, self.guardian)
        if models == (0.0, 1.0):
            return "Guardian calls per row"
        return "dollars per row" if any(isinstance(m, TokenPrice) for m in models) else "per row"

    def of(self, primary: ScoreTable, guardian: ScoreTable) -> RowCosts:
        """The costs of the rows of two joined tables. Raises DataError naming the first bad row."""
        alone = _full_cost(self.primary, primary, "Primary")
        full = _full_cost(self.guardian, guardian, "Guardian")
        options = guardian.mask.shape[1]
        menu = np.broadcast_to(full[:, None], (len(full), options))
        if isinstance(self.guardian, TokenPrice):
            price = self.guardian
            read = _column(guardian, price.input_tokens, "Guardian")
            written = _column(guardian, price.output_tokens, "Guardian")
            share = np.arange(1, options + 1) / guardian.n_options[:, None]
            tokens = np.floor(read[:, None] * (0.5 + 0.5 * np.minimum(share, 1.0)))
            menu = (tokens * price.input + written[:, None] * price.output) / 1e6
        return RowCosts(alone, full, menu)


@dataclass(frozen=True, eq=False)
class RowCosts:
    """Costs of N rows.

    Fields:
      primary: (N,) float64, one call of the Primary.
      guardian: (N,) float64, the Guardian on the full menu.
      menu: (N, K) float64, the Guardian on a menu of 1 .. K options.
    """

    primary: np.ndarray
    guardian: np.ndarray
    menu: np.ndarray


def parse_cost(text: str, option: str = "cost") -> float | str | TokenPrice:
    """A cost as it is written on the command line.

    `0.002` is a constant per call, `0.4/1.6` prices per million input / output tokens with the
    counts in the columns input_tokens and output_tokens (others: `0.4/1.6:COLUMN,COLUMN`), and any
    other text names a column. Raises UsageError for numbers below 0.
    """
    prices, colon, columns = text.partition(":")
    parts = prices.split("/")
    if len(parts) == 2:
        try:
            read, written = (float(part) for part in parts)
        except ValueError:
            raise UsageError(f"{option} {text}: write prices as INPUT/OUTPUT, as 0.4/1.6") from None
        names = columns.split(",") if colon else []
        if colon and (len(names) != 2 or not all(names)):
            raise UsageError(f"{option} {text}: write two columns after the colon, COLUMN,COLUMN")
        return TokenPrice(read, written, *names)
    try:
        constant = float(text)
    except ValueError:
        return text
    if not (math.isfinite(constant) and constant >= 0):
        raise UsageError(f"{option} {text}: a cost per call must be a number >= 0")
    return constant


def _full_cost(cost: float | str | TokenPrice, table: ScoreTable, model: str) -> np.ndarray:
    if isinstance(cost, TokenPrice):
        read = _column(table, cost.input_tokens, model)
        written = _column(table, cost.output_tokens, model)
        return (read * cost.input + written * cost.output) / 1e6
    if isinstance(cost, str):
        return _column(table, cost, model)
    if not (math.isfinite(cost) and cost >= 0):
        raise UsageError(f"the {model}'s cost per call must be a number >= 0, not {cost!r}")
    return np.full(len(table), float(cost))


def _column(table: ScoreTable, name: str, model: str) -> np.ndarray:
    values = table.extra.get(name)
    if values is None or values.ndim != 1 or values.dtype.kind not in "iuf":
        known = ", ".join(table.extra) or "none besides the standard ones"
        raise UsageError(
            f"the {model}'s table has no column of numbers {name!r} for its cost; its further "
            f"columns: {known}"
        )
    values = values.astype(np.float64)
    row = first_row(~(np.isfinite(values) & (values >= 0)))
    if row is not None:
        found = "missing (null or NaN)" if np.isnan(values[row]) else f"{values[row]:g}"
        raise DataError(
            f"row {row} (question_id {str(table.question_id[row])!r}): {name} of the {model} is "
            f"{found}; costs and token counts must be numbers >= 0",
            row,
        )
    return values
