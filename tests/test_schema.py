"""The checks that every step shares: what their messages say, and that they let through what is right.

No tolerances. A message names the step, what was needed, what came, and the remedy or the likeliest spelling.
"""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechreg import schema
from mechreg.schema import (
    FOLDED_SUFFIX,
    InputError,
    MechregError,
    ModelError,
    NumericalError,
    SchemaError,
    did_you_mean,
    require,
    require_one_processing,
    require_option,
)


def test_a_missing_column_names_the_step_the_need_what_came_and_a_hint():
    with pytest.raises(SchemaError) as refused:
        require(pd.DataFrame(columns=["norms", "position"]), ["norm"], who="add_lags")
    assert str(refused.value) == (
        "add_lags needs the column 'norm'; the frame has ['norms', 'position']. Did you mean 'norms'?"
    )


def test_the_first_of_several_missing_columns_is_named_without_a_hint_where_none_is_near():
    with pytest.raises(SchemaError) as refused:
        require(pd.DataFrame(columns=["x", 7]), ["x", "depth", "norm"], who="plot_norms")
    assert str(refused.value) == "plot_norms needs the column 'depth'; the frame has ['x', '7']."


@pytest.mark.parametrize("frame", [None, "norms.parquet", [1, 2], {"norm": [1.0]}])
def test_what_is_no_frame_is_refused(frame):
    # Where the tests run under jaxtyping's checks, these may say it first, in a TypeError.
    with pytest.raises(
        (SchemaError, TypeError), match=rf"needs a pandas DataFrame; got {type(frame).__name__}|frame"
    ):
        require(frame, ["norm"], who="add_lags")


def test_the_remedy_is_named():
    norms = pd.DataFrame({"norm": [1.0]})
    with pytest.raises(SchemaError, match=r"'lag1'; .* Make it with add_lags\(norms, lags="):
        require(norms, ["norm", "lag1"], who="fit_lagged")
    polars = pytest.importorskip("polars").from_pandas(norms)
    with pytest.raises(
        (SchemaError, TypeError), match=r"got a polars DataFrame. Give frame.to_pandas\(\)|frame"
    ):
        require(polars, ["norm"], who="add_lags")
    with pytest.raises(InputError, match="Did you mean 'hc3'"):
        require_option("HC3", ("hc2", "hc3"), name="cov")


def test_a_frame_with_its_columns_passes():
    require(pd.DataFrame(columns=["norm", "extra"]), ("norm",), who="add_lags")
    require(pd.DataFrame(), (), who="add_lags")


@given(st.lists(st.text(max_size=6), max_size=6), st.lists(st.text(max_size=6), max_size=6))
def test_require_is_about_columns_and_nothing_else(have, need):
    frame = pd.DataFrame(columns=have)
    if set(need) <= set(have):
        require(frame, need, who="f")
    else:
        with pytest.raises(SchemaError, match="f needs the column"):
            require(frame, need, who="f")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("crv2", "cov must be one of 'auto', 'crv1', 'crv3'; got 'crv2'. Did you mean 'crv3'?"),
        ("x", "cov must be one of 'auto', 'crv1', 'crv3'; got 'x'."),
        (None, "cov must be one of 'auto', 'crv1', 'crv3'; got None."),
        (["auto"], "cov must be one of 'auto', 'crv1', 'crv3'; got ['auto']."),
        ("Auto", "cov must be one of 'auto', 'crv1', 'crv3'; got 'Auto'. Did you mean 'auto'?"),
    ],
)
def test_a_wrong_option_lists_the_right_ones(value, message):
    with pytest.raises(InputError) as refused:
        require_option(value, ("auto", "crv1", "crv3"), name="cov")
    assert str(refused.value) == message


def test_a_right_option_passes():
    require_option("crv3", ("crv1", "crv3"), name="cov")


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("attnout", ["attn_out", "mlp_out"], " Did you mean 'attn_out'?"),
        ("qqqq", ["attn_out"], ""),
        ("attn_out", [], ""),
        ("", ["attn_out"], ""),
        ("lag3", {"lag1": 0, "norm": 1}, " Did you mean 'lag1'?"),
    ],
)
def test_did_you_mean(name, known, hint):
    assert did_you_mean(name, known) == hint


@pytest.mark.parametrize(
    "models", [[], ["gpt2"], ["gpt2", "gpt2-xl"], ["a[folded]", "b[folded]"], ["a", "a"]]
)
def test_models_of_one_processing_pass(models):
    require_one_processing(models, who="fit_lagged")
    require_one_processing(pd.Series(models, dtype="category"), who="fit_lagged")


def test_models_of_two_processings_are_refused_by_name_with_the_remedy():
    with pytest.raises(InputError) as refused:
        require_one_processing(["gpt2", f"gpt2{FOLDED_SUFFIX}", "b"], who="fit_lagged")
    assert str(refused.value) == (
        "fit_lagged got models of processing='raw' (b, gpt2) and 'folded' (gpt2[folded]), "
        "whose norms are not comparable; reload them with the same processing=."
    )
    with pytest.raises(InputError, match="plot_betas got models of processing='raw'"):
        require_one_processing(["gpt2", "gpt2[folded]"], who="plot_betas")


def test_errors_are_caught_together_and_by_python_s_own_kinds():
    kinds = (InputError, SchemaError, ModelError, NumericalError)
    assert all(issubclass(kind, MechregError) for kind in kinds)
    assert issubclass(SchemaError, InputError)
    assert issubclass(InputError, ValueError)
    assert issubclass(ModelError, RuntimeError)
    assert issubclass(NumericalError, ArithmeticError)


@pytest.mark.parametrize("name", [name for name in vars(schema) if name.endswith("_COLUMNS")])
def test_columns_are_names_that_a_formula_can_say_with_dtypes_that_pandas_knows(name):
    columns = getattr(schema, name)
    assert all(column.isidentifier() and column == column.lower() for column in columns)
    assert pd.DataFrame(columns=list(columns)).astype(columns).dtypes.astype(str).to_dict() == columns


def test_keys_are_columns_of_the_frames_that_they_join():
    assert set(schema.TOKEN_KEYS) <= set(schema.TOKEN_COLUMNS)
    assert {*schema.TOKEN_KEYS, *schema.GROUP_KEYS} <= set(schema.NORM_COLUMNS)
    for columns in (schema.COEFFICIENT_COLUMNS, schema.STATISTICS_COLUMNS):
        assert set(schema.GROUP_KEYS) <= set(columns)
