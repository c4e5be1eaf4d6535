"""What differs between two tables or two runs.

Differences are checked against subtraction and against pandas' own `DataFrame.compare`, exactly: nothing is estimated.
"""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechreg import InputError, SchemaError, diff_runs
from mechreg.diff import RunDifferences, diff_tables
from mechreg.store import Run


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


def largest_moves(moved):
    return (
        RunDifferences(moved.assign(table="coefficients"), pd.DataFrame())
        .largest_moves()
        .drop(columns="table")
    )


finite = st.floats(-1e6, 1e6, allow_subnormal=False)


@settings(max_examples=40, deadline=None)  # frames are slow to make on a busy machine
@given(st.lists(st.tuples(finite, st.one_of(finite, st.just(np.nan))), min_size=1, max_size=8))
def test_what_moved_is_what_pandas_finds(pairs):
    a, b = (coefficients(values) for values in zip(*pairs, strict=True))
    moved = diff_tables(a, b)
    expected = a["estimate"].compare(b["estimate"])
    assert moved["layer"].tolist() == expected.index.tolist()
    np.testing.assert_array_equal(moved["difference"], expected["other"] - expected["self"])
    np.testing.assert_array_equal(moved["std_errors"], (expected["other"] - expected["self"]) / 0.5)
    assert set(moved["number"]) <= {"estimate"}
    back = diff_tables(b, a)
    np.testing.assert_array_equal(back["difference"], -moved["difference"])


@settings(max_examples=40, deadline=None)  # frames are slow to make on a busy machine
@given(st.lists(st.one_of(finite, st.just(np.nan)), min_size=1, max_size=5), st.randoms())
def test_a_table_equals_itself_in_any_order(estimates, random):
    table = coefficients(estimates)
    order = list(table.index)
    random.shuffle(order)
    assert diff_tables(table, table.loc[order]).empty


def test_how_small_a_move_must_be_to_count_as_none():
    a = coefficients([1.0, 1.0])
    b = coefficients([1.0 + 0.5 * 0.9, 1.0 + 0.5 * 1.1])  # 0.9 and 1.1 standard errors
    assert diff_tables(a, b, within=1.0)["layer"].tolist() == [1]
    assert diff_tables(a, coefficients([1.0, 1.0], p_value=0.02), within=0.011).empty
    assert len(diff_tables(a, coefficients([1.0, 1.0], p_value=0.02), within=0.009)) == 2
    assert diff_tables(a, a.assign(n=101), within=0.01).empty  # relative: 1 / 101
    assert len(diff_tables(a, a.assign(n=101), within=0.009)) == 2
    assert len(diff_tables(a, coefficients([1.0, np.nan]), within=1e9)) == 1  # it can't be told how far


def test_rows_that_one_table_lacks_are_told():
    a, b = coefficients([1.0, 2.0]), coefficients([1.0, 2.0, 3.0])
    moved = diff_tables(a, b)
    assert set(moved["present"]) == {"only b"}
    assert moved.set_index("number").loc["estimate", ["layer", "b"]].tolist() == [2, 3.0]
    assert largest_moves(moved).empty
    assert set(diff_tables(b, a)["present"]) == {"only a"}


def test_the_largest_move_is_told_with_its_place():
    moved = diff_tables(coefficients([1.0, 2.0, 3.0]), coefficients([1.25, 0.0, 3.0]))
    row = largest_moves(moved).set_index("number").loc["estimate"]
    assert row.tolist() == [2, -2.0, -4.0, -1.0, "m attn_out layer 1 lag1"]


def test_heads_are_told_apart_and_a_run_without_them_is_matched():
    a = coefficients([1.0])
    heads = pd.concat([a.assign(head=-1), a.assign(head=0, hook="z"), a.assign(head=1, hook="z")])
    moved = diff_tables(heads, heads.assign(estimate=[1.0, 1.0, 2.0]))
    assert moved[["hook", "head", "difference"]].values.tolist() == [["z", 1, 1.0]]
    assert set(diff_tables(a, heads)["present"]) == {"only b"}


def test_tables_that_are_not_comparable_are_refused():
    a = coefficients([1.0])
    with pytest.raises(SchemaError, match="diff_tables needs the column 'hook'"):
        diff_tables(a, a.drop(columns="hook"))
    with pytest.raises(InputError, match="got one of each"):
        diff_tables(a, a.drop(columns="term"))
    with pytest.raises(InputError, match="two for m attn_out layer 0 lag1"):
        diff_tables(a, pd.concat([a, a]))
    for other in (a[["model", "hook", "layer", "term"]], a[["model", "hook", "layer", "term"]].assign(x="a")):
        with pytest.raises(InputError, match="finds no column of numbers that both tables have"):
            diff_tables(a, other)
    with pytest.raises(InputError, match="needs numbers as 'layer'; got '0'"):
        diff_tables(a, a.assign(layer=a["layer"].astype(str)))
    with pytest.raises(InputError, match="within must be a number, 0 or more"):
        diff_tables(a, a, within=-1.0)


class StandInRun(Run):
    """A run of which spec and tables are given, and the provenance is in a file."""

    spec = coefficients = statistics = None


def stand_in(path, models, **facts):
    """Return a run with one number in either table and this provenance."""
    path.mkdir(parents=True)
    models = [{"name": "m", "hooks": ["z"], "tokens": 9} | model for model in models]
    provenance = {"spec_hash": "a", "corpus": {"sha256": "b"}, "models": models} | facts
    (path / "provenance.json").write_text(json.dumps(provenance))
    run = StandInRun(path)
    run.spec = {"lags": [1, 2]}
    run.coefficients = coefficients([1.0])
    run.statistics = run.coefficients.drop(columns="term")
    return run


def test_provenance_is_matched_by_key_and_by_model(tmp_path):
    small = {"name": "s", "dtype": "float32", "seconds": 2}
    run_a = stand_in(tmp_path / "a", [small, {}], seconds=1)
    run_b = stand_in(tmp_path / "b", [{"hooks": ["z", "q"]}, {"name": "s", "dtype": "float64"}], git=None)
    run_b.spec = {"lags": [1]}
    run_b.statistics = run_b.statistics.assign(n=101)
    differences = diff_runs(run_a, run_b)
    assert differences.provenance.values.tolist() == [
        ["models.s.dtype", "float32", "float64"],
        ["models.m.hooks", ["z"], ["z", "q"]],
        ["spec.lags", [1, 2], [1]],
        ["git", None, None],  # one has it, the other does not
    ]
    assert differences.numbers[["table", "number", "difference"]].values.tolist() == [
        ["statistics", "n", 1.0]
    ]
    assert diff_runs(run_a, run_b, within=0.01).numbers.empty
    same = diff_runs(run_a, run_a)
    assert same.provenance.empty
    assert same.numbers.empty
    assert same.largest_moves().empty
