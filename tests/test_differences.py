"""What differs between two tables or two provenances.

Differences are checked against subtraction and against pandas' own `DataFrame.compare`, exactly: nothing is estimated.
"""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechreg import InputError, SchemaError, number_differences, provenance_differences
from mechreg.diff import largest_moves


def coefficients(estimates, *, std_error=0.5, p_value=0.01):
    layers = np.arange(len(estimates))
    return pd.DataFrame(
        {
            "model": "m",
            "hook": "attn_out",
            "layer": layers,
            "term": "lag1",
            "estimate": np.asarray(estimates, float),
            "std_error": std_error,
            "p_value": p_value,
            "n": 100,
            "cov_type": "crv3",
        }
    )


finite = st.floats(-1e6, 1e6, allow_subnormal=False)


@settings(max_examples=40, deadline=None)  # frames are slow to make on a busy machine
@given(st.lists(st.tuples(finite, st.one_of(finite, st.just(np.nan))), min_size=1, max_size=8))
def test_what_moved_is_what_pandas_finds(pairs):
    a, b = (coefficients(values) for values in zip(*pairs, strict=True))
    moved = number_differences(a, b)
    expected = a["estimate"].compare(b["estimate"])
    assert moved["layer"].tolist() == expected.index.tolist()
    np.testing.assert_array_equal(moved["difference"], expected["other"] - expected["self"])
    np.testing.assert_array_equal(moved["std_errors"], (expected["other"] - expected["self"]) / 0.5)
    assert set(moved["number"]) <= {"estimate"}
    back = number_differences(b, a)
    np.testing.assert_array_equal(back["difference"], -moved["difference"])


@settings(max_examples=40, deadline=None)  # frames are slow to make on a busy machine
@given(st.lists(st.one_of(finite, st.just(np.nan)), min_size=1, max_size=5), st.randoms())
def test_a_table_equals_itself_in_any_order(estimates, random):
    table = coefficients(estimates)
    order = list(table.index)
    random.shuffle(order)
    assert number_differences(table, table.loc[order]).empty


def test_how_small_a_move_must_be_to_count_as_none():
    a = coefficients([1.0, 1.0])
    b = coefficients([1.0 + 0.5 * 0.9, 1.0 + 0.5 * 1.1])  # 0.9 and 1.1 standard errors
    assert number_differences(a, b, within=1.0)["layer"].tolist() == [1]
    assert number_differences(a, coefficients([1.0, 1.0], p_value=0.02), within=0.011).empty
    assert len(number_differences(a, coefficients([1.0, 1.0], p_value=0.02), within=0.009)) == 2
    assert number_differences(a, a.assign(n=101), within=0.01).empty  # relative: 1 / 101
    assert len(number_differences(a, a.assign(n=101), within=0.009)) == 2
    assert (
        len(number_differences(a, coefficients([1.0, np.nan]), within=1e9)) == 1
    )  # it can't be told how far


def test_rows_that_one_table_lacks_are_told():
    a, b = coefficients([1.0, 2.0]), coefficients([1.0, 2.0, 3.0])
    moved = number_differences(a, b)
    assert set(moved["present"]) == {"only b"}
    assert moved.set_index("number").loc["estimate", ["layer", "b"]].tolist() == [2, 3.0]
    assert largest_moves(moved).empty
    assert set(number_differences(b, a)["present"]) == {"only a"}


def test_the_largest_move_is_told_with_its_place():
    moved = number_differences(coefficients([1.0, 2.0, 3.0]), coefficients([1.25, 0.0, 3.0]))
    row = largest_moves(moved).set_index("number").loc["estimate"]
    assert row.tolist() == [2, -2.0, -4.0, -1.0, "m attn_out layer 1 lag1"]


def test_heads_are_told_apart_and_a_run_without_them_is_matched():
    a = coefficients([1.0])
    heads = pd.concat([a.assign(head=-1), a.assign(head=0, hook="z"), a.assign(head=1, hook="z")])
    moved = number_differences(heads, heads.assign(estimate=[1.0, 1.0, 2.0]))
    assert moved[["hook", "head", "difference"]].values.tolist() == [["z", 1, 1.0]]
    assert set(number_differences(a, heads)["present"]) == {"only b"}


def test_tables_that_are_not_comparable_are_refused():
    a = coefficients([1.0])
    with pytest.raises(SchemaError, match="number_differences needs the column 'hook'"):
        number_differences(a, a.drop(columns="hook"))
    with pytest.raises(InputError, match="got one of each"):
        number_differences(a, a.drop(columns="term"))
    with pytest.raises(InputError, match="two of m attn_out layer 0 lag1"):
        number_differences(a, pd.concat([a, a]))
    for other in (a[["model", "hook", "layer", "term"]], a[["model", "hook", "layer", "term"]].assign(x="a")):
        with pytest.raises(InputError, match="finds no column of numbers that both tables have"):
            number_differences(a, other)
    with pytest.raises(InputError, match="needs numbers as 'layer'; got '0'"):
        number_differences(a, a.assign(layer=a["layer"].astype(str)))
    with pytest.raises(InputError, match="within must be 0 or more"):
        number_differences(a, a, within=-1.0)


def test_provenance_is_matched_by_key_and_by_model():
    a = {
        "seconds": 1,
        "models": [{"name": "s", "dtype": "float32", "seconds": 2}, {"name": "m", "hooks": ["z"]}],
    }
    b = {
        "seconds": 3,
        "models": [{"name": "m", "hooks": ["z", "q"]}, {"name": "s", "dtype": "float64"}],
        "git": None,
    }
    found = provenance_differences(a, b)
    assert found.values.tolist() == [
        ["models.s.dtype", "float32", "float64"],
        ["models.m.hooks", ["z"], ["z", "q"]],
        ["git", None, None],  # one has it, the other does not
    ]
    assert provenance_differences(a, a | {"seconds": 9}).empty
