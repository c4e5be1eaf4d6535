"""Lags against a loop written without the module, and properties that no data set may break.

Tolerances: lags are copies of ``log_norm``, so they are compared exactly; a logarithm may differ from
``math.log`` in its last bit, and log(c x) from log(c) + log(x) by a few of them: 1e-12 absolute.
"""

import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
from frames import make_norms
from hypothesis import given, settings
from hypothesis import strategies as st

from mechreg.lags import add_lags
from mechreg.regression import LagSums, fit_lagged
from mechreg.schema import InputError, NumericalError, SchemaError

quick = settings(max_examples=25, deadline=None)


def by_loop(norms, lags, skip, layer_below=()) -> list[dict]:
    """Return every row's lags by looking each one up in a dictionary of all norms."""
    heads = norms["head"] if "head" in norms else [None] * len(norms)
    columns = ("model", "hook", "layer", "doc", "window", "position", "norm")
    rows = list(zip(*(norms[column] for column in columns), heads, strict=True))
    norm_of = {
        (model, hook, layer, head, doc, window, position): norm
        for model, hook, layer, doc, window, position, norm, head in rows
    }

    def log_norm(position, *place):
        norm = norm_of.get((*place, position))
        return math.nan if norm is None or position < skip else math.log(norm)

    result = []
    for model, hook, layer, doc, window, position, _, head in rows:
        here = (model, hook, layer, head, doc, window)
        down = (model, hook, layer - 1, head, doc, window)
        row = {"log_norm": log_norm(position, *here)}
        row |= {f"lag{lag}": log_norm(position - lag, *here) for lag in lags}
        row |= {
            "layer_below" if lag == 0 else f"layer_below_lag{lag}": log_norm(position - lag, *down)
            if position >= lag
            else math.nan
            for lag in layer_below
        }
        result.append(row)
    return result


def assert_lags_equal(lagged, expected):
    expected = pd.DataFrame(expected, index=lagged.index)
    for column in expected:
        np.testing.assert_allclose(lagged[column], expected[column], rtol=0, atol=1e-12, err_msg=column)


documents = st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=3), min_size=1, max_size=3)
some_lags = st.lists(st.integers(1, 6), min_size=1, max_size=3, unique=True).map(tuple)


def test_the_rows_of_the_seed():
    # The article: n tokens, position 0 dropped, two lags: y from index 3, n - 3 rows.
    lagged = add_lags(make_norms([[95]], layers=(0,)), lags=(1, 2), skip=1)
    complete = lagged.dropna(subset=["log_norm", "lag1", "lag2"])
    assert complete["position"].tolist() == list(range(3, 95))


def test_known_answer_by_hand():
    norms = make_norms([[4, 3]], layers=(0,)).assign(norm=np.exp([9.0, 1.0, 2.0, 3.0, 8.0, 5.0, 6.0]))
    lagged = add_lags(norms, lags=(1, 2), skip=1)
    nan = np.nan
    np.testing.assert_allclose(lagged["log_norm"], [nan, 1, 2, 3, nan, 5, 6], atol=1e-12)
    np.testing.assert_allclose(lagged["lag1"], [nan, nan, 1, 2, nan, nan, 5], atol=1e-12)
    np.testing.assert_allclose(lagged["lag2"], [nan, nan, nan, 1, nan, nan, nan], atol=1e-12)
    assert {str(lagged[name].dtype) for name in ("log_norm", "lag1", "lag2")} == {"float64"}


@quick
@given(documents, some_lags, st.integers(0, 4), st.integers(0, 99))
def test_equals_the_loop_and_never_crosses_an_edge(lengths, lags, skip, seed):
    norms = make_norms(lengths, seed=seed)
    assert_lags_equal(add_lags(norms, lags=lags, skip=skip), by_loop(norms, lags, skip))


@pytest.mark.parametrize("keys", ["category", "str", "object"])
@pytest.mark.parametrize("skip", [0, 1, 3])
def test_many_models_hooks_layers_heads_at_once_equal_the_loop(keys, skip):
    norms = make_norms(
        [[5, 2], [1], [6]], models=("a", "b"), hooks=("z", "result"), layers=(0, 1, 3), heads=(0, 1, 2)
    )
    norms = norms.astype({"model": keys, "hook": keys, "doc": keys, "layer": "int16", "window": "int32"})
    lagged = add_lags(norms, lags=(1, 3), skip=skip)
    assert_lags_equal(lagged, by_loop(norms, (1, 3), skip))
    keys_of_a_fit = ["model", "hook", "layer", "head"]
    one_by_one = [
        add_lags(group, lags=(1, 3), skip=skip) for _, group in norms.groupby(keys_of_a_fit, observed=True)
    ]
    pd.testing.assert_frame_equal(lagged, pd.concat(one_by_one).loc[lagged.index])


@pytest.mark.parametrize("layers", [(0, 1, 2), (0, 2, 3)])
@pytest.mark.parametrize("skip", [0, 1, 2])
def test_the_layer_below_equals_the_loop(layers, skip):
    norms = make_norms([[5, 3], [4]], models=("a", "b"), layers=layers).sample(frac=1.0, random_state=3)
    lagged = add_lags(norms, lags=(1,), skip=skip, layer_below=(0, 1))
    assert_lags_equal(lagged, by_loop(norms, (1,), skip, layer_below=(0, 1)))
    assert lagged.loc[lagged["layer"] == 0, "layer_below"].isna().all()
    assert lagged["layer_below"].notna().any()


@quick
@given(documents, st.integers(0, 3), st.randoms(use_true_random=False))
def test_row_order_does_not_matter_and_is_kept(lengths, skip, random):
    norms = make_norms(lengths)
    order = list(range(len(norms)))
    random.shuffle(order)
    shuffled = norms.iloc[order]
    lagged = add_lags(shuffled, skip=skip, layer_below=(0, 1))
    assert lagged.index.tolist() == shuffled.index.tolist()
    pd.testing.assert_frame_equal(lagged.sort_index(), add_lags(norms, skip=skip, layer_below=(0, 1)))


@quick
@given(documents, st.floats(1e-3, 1e3))
def test_scaling_all_norms_shifts_everything_by_its_log(lengths, c):
    norms = make_norms(lengths).astype({"norm": "float64"})
    columns = ["log_norm", "lag1", "lag2", "layer_below", "layer_below_lag1"]
    before = add_lags(norms, layer_below=(0, 1))[columns]
    after = add_lags(norms.assign(norm=norms["norm"] * c), layer_below=(0, 1))[columns]
    np.testing.assert_allclose(after, before + math.log(c), rtol=0, atol=1e-12)


@quick
@given(documents, some_lags, st.data())
def test_a_norm_is_never_a_lag_of_its_own_or_an_earlier_position(lengths, lags, data):
    norms = make_norms(lengths)
    changed = data.draw(st.integers(0, len(norms) - 1))
    touched = norms.copy()
    touched.loc[changed, "norm"] *= 2
    names = [f"lag{lag}" for lag in lags]
    before, after = add_lags(norms, lags=lags, skip=0)[names], add_lags(touched, lags=lags, skip=0)[names]
    differs = ~((before == after) | (before.isna() & after.isna())).all(axis=1)
    place = ["model", "hook", "layer", "doc", "window"]
    same_window = (norms[place] == norms.loc[changed, place]).all(axis=1)
    assert not (differs & ~(same_window & (norms["position"] > norms.loc[changed, "position"]))).any()
    steps = set(norms.loc[differs, "position"] - norms.loc[changed, "position"])
    remaining = norms.loc[same_window, "position"].max() - norms.loc[changed, "position"]
    assert steps == {lag for lag in lags if lag <= remaining}


@pytest.mark.parametrize("skip", [0, 1, 2, 5, 50])
def test_skipped_positions_are_neither_outcome_nor_lag(skip):
    norms = make_norms([[8], [3]])
    touched = norms.assign(norm=norms["norm"].where(norms["position"] >= skip, 12345.0))
    lagged = add_lags(norms, skip=skip)
    assert lagged["log_norm"].isna().tolist() == (norms["position"] < skip).tolist()
    columns = ["log_norm", "lag1", "lag2"]
    pd.testing.assert_frame_equal(lagged[columns], add_lags(touched, skip=skip)[columns])


def test_the_frame_that_came_is_left_alone():
    norms = make_norms([[5, 3]]).sample(frac=1.0, random_state=1)
    copy = norms.copy(deep=True)
    lagged = add_lags(norms, layer_below=(0,))
    pd.testing.assert_frame_equal(norms, copy)
    pd.testing.assert_frame_equal(lagged[norms.columns], norms)


def test_adding_lags_again_changes_nothing():
    lagged = add_lags(make_norms([[6]]))
    pd.testing.assert_frame_equal(add_lags(lagged), lagged)


def test_an_empty_frame_stays_empty():
    lagged = add_lags(make_norms([[3]]).iloc[:0])
    assert lagged.empty
    assert {"log_norm", "lag1", "lag2"} <= set(lagged)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_a_norm_without_a_logarithm_is_named(bad):
    norms = make_norms([[4], [5]], models=("gpt2",), layers=(0, 7))
    norms.loc[(norms["layer"] == 7) & (norms["doc"] == "d1") & (norms["position"] == 3), "norm"] = bad
    with pytest.raises(
        NumericalError, match=rf"{bad} at model gpt2, hook attn_out, layer 7, doc d1, window 0, position 3"
    ):
        add_lags(norms)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lags": ()}, "lags must be distinct whole numbers, at least 1 of them"),
        ({"lags": (0,)}, "lags must be a whole number, 1 or more; got 0"),
        ({"lags": (1, -2)}, "lags must be a whole number, 1 or more; got -2"),
        ({"lags": (1, 1)}, "lags must be distinct whole numbers"),
        ({"lags": (True,)}, "lags must be a whole number, 1 or more; got True"),
        ({"skip": -1}, "skip must be a whole number, 0 or more"),
        ({"layer_below": (-1,)}, "layer_below must be a whole number, 0 or more; got -1"),
        ({"layer_below": (0, 0)}, "layer_below must be distinct whole numbers; got"),
    ],
)
def test_bad_options_are_refused_with_the_right_ones(options, message):
    with pytest.raises(InputError, match=message):
        add_lags(make_norms([[5]]), **options)


def test_one_lag_is_a_number():
    norms = make_norms([[5]], layers=(0, 1))
    one = add_lags(norms, lags=2, layer_below=0)
    pd.testing.assert_frame_equal(one, add_lags(norms, lags=(2,), layer_below=(0,)))
    assert {"lag2", "layer_below"} <= set(one)


def test_half_a_lag_is_refused():
    # TypeError: where the tests run under jaxtyping's checks, these say it first.
    with pytest.raises((InputError, TypeError), match="lags"):
        add_lags(make_norms([[5]]), lags=(1.5,))  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f[f["position"] != 2], r"goes from 1 to 3 .*Add lags before you filter rows"),
        (lambda f: f[f["position"] > 0], r"starts at 1 .*Add lags before you filter rows"),
        (
            lambda f: pd.concat([f, f]),
            "repeated: model m, hook attn_out, layer 0, doc d0, window 0, position 0",
        ),
        (lambda f: f.assign(position=f["position"] + 0.5), "whole numbers as 'position'"),
        (lambda f: f.assign(doc=f["doc"].where(f["position"] > 0)), "a value of 'doc' in every row"),
        (lambda f: add_lags(f, lags=(1, 5)), r"already has the columns \['lag5'\] from an earlier add_lags"),
    ],
)
def test_frames_that_would_give_wrong_lags_are_refused(spoil, message):
    with pytest.raises(InputError, match=message):
        add_lags(spoil(make_norms([[5]], layers=(0,))))


def test_a_missing_column_is_named_with_its_likeliest_spelling():
    with pytest.raises(SchemaError, match=r"add_lags needs the column 'norm'.*Did you mean 'norms'"):
        add_lags(make_norms([[5]]).rename(columns={"norm": "norms"}))


@pytest.mark.parametrize(
    ("norms", "message"),
    [
        (make_norms([[5]], layers=(0, 2)), r"adjacent layers; the frame has only \[0, 2\]"),
        (make_norms([[5]], heads=(0, 1)), "leave layer_below= out for per-head hooks"),
    ],
)
def test_below_is_refused_where_it_has_no_meaning(norms, message):
    with pytest.raises(InputError, match=message):
        add_lags(norms, layer_below=(0,))


# --- sinks: neither outcome nor lag ---


def contaminated(share: float, *, tail: str = "normal", docs: int = 100, tokens: int = 300) -> pd.DataFrame:
    """Return norms whose logs have the lags .4 and .2, a share of later tokens then 15 standard deviations up."""
    rng = np.random.default_rng(0)
    size = (docs, tokens + 50)
    draw = {
        "normal": rng.standard_normal,
        "t3": partial(rng.standard_t, 3),
        "lognormal": partial(rng.lognormal, 0, 1),
    }
    log_norm = draw[tail](size=size)
    for now in range(2, size[1]):
        log_norm[:, now] += 0.4 * log_norm[:, now - 1] + 0.2 * log_norm[:, now - 2]
    log_norm = log_norm[:, 50:]
    at = rng.random(log_norm.shape) < share
    at[:, 0] = False
    log_norm = log_norm / log_norm.std() + 15 * at
    norms = make_norms([[tokens]] * docs, layers=(0,))
    return norms.assign(norm=np.exp(0.3 * log_norm).ravel(), placed=at.ravel())


def lag_betas(norms: pd.DataFrame, **options) -> np.ndarray:
    fits = fit_lagged(add_lags(norms, **options))
    return fits.coefficients.set_index("term").loc[["lag1", "lag2"], "estimate"].to_numpy()


@pytest.mark.parametrize(("share", "without"), [(0.01, (0.14, 0.10)), (0.003, (0.25, 0.165))])
def test_lags_come_back_when_later_tokens_are_sinks(share, without):
    # 30,000 tokens: a beta's standard error is .006, so .02 is more than three of them.
    norms = contaminated(share)
    np.testing.assert_allclose(lag_betas(norms), without, atol=0.03)
    np.testing.assert_allclose(lag_betas(norms, drop_sinks="size"), (0.4, 0.2), atol=0.02)
    lagged = add_lags(norms, drop_sinks="size")
    assert (lagged["is_sink"] == norms["placed"]).all()


@pytest.mark.parametrize(("tail", "cost"), [("normal", 0.0), ("t3", 0.003), ("lognormal", 0.012)])
def test_the_default_hardly_moves_betas_of_real_tails(tail, cost):
    # The same draws with and without, so the difference is what the threshold costs; a lognormal tail is the worst.
    norms = contaminated(0.0, tail=tail)
    moved = np.abs(lag_betas(norms, drop_sinks="size") - lag_betas(norms))
    assert moved.max() <= cost


def test_a_sink_is_neither_outcome_nor_lag_in_its_own_layer_only():
    norms = make_norms([[6]]).assign(norm=np.exp(np.tile([9.0, 1.0, 2.0, 3.0, 4.0, 5.0], 2)))
    bad = (norms["layer"] == 1) & (norms["position"] == 3)
    lagged = add_lags(norms.assign(odd=bad), lags=1, drop_sinks="odd")
    clean = add_lags(norms, lags=1)
    pd.testing.assert_frame_equal(lagged[lagged["layer"] == 0][clean.columns], clean[clean["layer"] == 0])
    upper, nan = lagged[lagged["layer"] == 1], np.nan
    np.testing.assert_allclose(upper["log_norm"], [nan, 1, 2, nan, 4, 5], atol=1e-12)
    np.testing.assert_allclose(upper["lag1"], [nan, nan, 1, 2, nan, 4], atol=1e-12)
    assert lagged["is_sink"].sum() == 1


@pytest.mark.parametrize(
    ("rules", "positions"),
    [
        ("position=2", [2]),
        ("token_id=7", [4]),
        (("position=2", "token_id=7"), [2, 4]),
        ("special", [5]),
        ("position=0", []),  # skip has left it out already
    ],
)
def test_rules_by_position_id_and_column(rules, positions):
    norms = make_norms([[6]], layers=(0,)).assign(token_id=[7, 1, 2, 3, 7, 5])
    norms["special"] = norms["token_id"] == 5
    lagged = add_lags(norms, drop_sinks=rules)
    assert lagged.loc[lagged["is_sink"], "position"].tolist() == positions


def test_the_fits_count_sinks_and_say_so():
    norms = contaminated(0.01, docs=8, tokens=100)
    norms = pd.concat([norms, norms.assign(layer=1, norm=1 + np.random.default_rng(1).random(len(norms)))])
    lagged = add_lags(norms, drop_sinks="size")
    fits = fit_lagged(lagged)
    n_sinks = int(norms["placed"].sum()) // 2
    assert fits.statistics["n_sinks"].tolist() == [n_sinks, 0]
    assert f"{n_sinks} tokens left out as sinks" in fits.summary(layer=0)
    assert "sinks" not in fits.summary(layer=1)
    shards = [LagSums() for _ in range(2)]
    for shard, docs in zip(shards, (["d0", "d1"], [f"d{i}" for i in range(2, 8)]), strict=True):
        shard.update(lagged[lagged["doc"].isin(docs)])
    assert shards[0].merge(shards[1]).statistics()["n_sinks"].tolist() == [n_sinks, 0]


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        ("size>", InputError, "drop_sinks must be 'size', 'size>12'"),
        ("token_id", InputError, "got 'token_id'"),
        ("special", InputError, "special_ids"),
        ("odd", SchemaError, "needs the column 'odd'"),
        ("norm", InputError, "a column of True and False"),
    ],
)
def test_wrong_rules_are_refused(rules, error, message):
    with pytest.raises(error, match=message):
        add_lags(make_norms([[6]]), drop_sinks=rules)
