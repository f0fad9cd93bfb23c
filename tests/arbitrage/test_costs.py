"""Costs of rows: constants, columns, token prices, and what is wrong with them."""

from __future__ import annotations

import numpy as np
import pytest
from problems import make_table

from arbitrage.costs import Costs, TokenPrice, parse_cost
from arbitrage.errors import DataError, UsageError


def tables(**extra):
    n_options = np.array([4, 2, 3])
    mask = np.arange(4) < n_options[:, None]
    columns = {"input_tokens": np.array([101, 50, 7]), "output_tokens": np.array([10, 20, 0])}
    more = {"mask": mask, "label": None, "extra": columns | extra}
    return tuple(make_table(3, seed=seed, **more) for seed in (0, 1))


def test_the_default_cost_is_the_guardian_rate():
    costs = Costs().of(*tables())
    assert costs.primary.tolist() == [0] * 3 and costs.guardian.tolist() == [1] * 3
    assert (costs.menu == 1).all() and costs.menu.shape == (3, 4)
    assert Costs().unit == "Guardian calls per row"


def test_token_prices_and_the_estimate_for_a_shorter_menu():
    prices = Costs(TokenPrice(0.1, 0.4), TokenPrice(2, 8))
    costs = prices.of(*tables())
    assert prices.unit == "dollars per row"
    np.testing.assert_allclose(costs.primary, [(10.1 + 4) / 1e6, 13 / 1e6, 0.7 / 1e6])
    np.testing.assert_allclose(costs.guardian, [282 / 1e6, 260 / 1e6, 14 / 1e6])
    # floor(101 (0.5 + 0.5 m/4)) for m = 1..4, output tokens as for the full menu.
    tokens = np.array([63, 75, 88, 101])
    np.testing.assert_allclose(costs.menu[0], (2 * tokens + 80) / 1e6)
    np.testing.assert_allclose(costs.menu[1, :2], (2 * np.array([37, 50]) + 160) / 1e6)
    rows, full = np.arange(3), np.array([3, 1, 2])
    np.testing.assert_array_equal(costs.menu[rows, full], costs.guardian)


def test_columns_and_constants_do_not_depend_on_the_menu():
    costs = Costs("price", 0.25).of(*tables(price=np.array([1.0, 2.0, 3.0])))
    assert costs.primary.tolist() == [1, 2, 3] and (costs.menu == 0.25).all()


def test_parsing():
    assert parse_cost("0.002") == 0.002 and parse_cost("price") == "price"
    assert parse_cost("0.4/1.6") == TokenPrice(0.4, 1.6)
    assert parse_cost("2/8:in,out") == TokenPrice(2, 8, "in", "out")
    for text in ("-1", "nan", "inf", "1/x", "2/8:in", "2/8:,out", "-1/2", "nan/2"):
        with pytest.raises(UsageError):
            parse_cost(text)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.array([1.0, np.nan, 1.0]), r"row 1 \(question_id 'q1'\): price .* missing \(null"),
        (np.array([1.0, 1.0, -2.0]), r"row 2 \(question_id 'q2'\): price of the Guardian is -2"),
        (np.array([np.inf, 1.0, 1.0]), "row 0"),
    ],
)
def test_bad_values_name_the_row(values, words):
    with pytest.raises(DataError, match=words):
        Costs(0.0, "price").of(*tables(price=values))


def test_missing_columns_list_the_others():
    with pytest.raises(UsageError, match=r"'price' .*: input_tokens, output_tokens"):
        Costs("price").of(*tables())
    with pytest.raises(UsageError, match="'words'"):
        Costs("words").of(*tables(words=np.array(["a", "b", "c"])))
    for bad in (-1.0, float("nan")):
        with pytest.raises(UsageError, match="number >= 0"):
            Costs(bad).of(*tables())
