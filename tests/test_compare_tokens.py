"""Token by token: what is known of made-up series, of tokens cut by hand, and what must not change a number.

Tolerances. Correlations are compared with scipy's and with residuals of dense dummies by numpy's lstsq: 1e-9. What must
not change a number must not change a digit. Rates of rejection are of 90 pairs of unrelated models: a 5% test
rejects 4.5 of them, standard deviation 2.1, so at most 11; their mean p is .5, standard deviation .03.
"""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mechreg.charts import plot_token_agreement
from mechreg.schema import InputError, NumericalError, SchemaError
from mechreg.universality import TokenComparison, compare_tokens

LAYERS = {"small": 2, "large": 3}


def make_norms(
    layers=None, *, docs=8, length=30, words=6, shared=0.0, smooth=0.0, seed=0, ids=None
) -> pd.DataFrame:
    """Return a norm frame of models whose log norms share so much of a series in all layers, white or smooth."""
    rng, frames = np.random.default_rng(seed), []
    shape = (docs, length + 50)

    def series() -> np.ndarray:
        values = rng.normal(size=shape)
        for at in range(1, shape[1]):
            values[:, at] += smooth * values[:, at - 1]
        return (values[:, 50:] / values[:, 50:].std()).ravel()

    common = series()
    ids = rng.integers(0, words, docs * length) if ids is None else ids
    for model, n_layers in (layers or LAYERS).items():
        for layer in range(n_layers):
            log_norm = shared * common + series()
            frame = {"model": model, "hook": "attn_out", "layer": layer, "depth": (layer + 0.5) / n_layers}
            frame |= {"doc": np.repeat([f"d{doc}" for doc in range(docs)], length), "window": 0}
            frame |= {"position": np.tile(np.arange(length), docs), "token_id": ids, "norm": np.exp(log_norm)}
            frames.append(pd.DataFrame(frame))
    return pd.concat(frames, ignore_index=True)


def compare(norms: pd.DataFrame, **options) -> TokenComparison:
    return compare_tokens(norms, **({"draws": 99} | options))


def log_norms(norms: pd.DataFrame, model: str, layer: int) -> pd.Series:
    return norms.query("model == @model and layer == @layer and position > 0")["norm"].reset_index(drop=True)


def cut(spans: list[list[tuple[int, int]]], model: str, *, layers=1, seed=0, skipped=True) -> pd.DataFrame:
    """Return a norm frame of documents cut so, a document a list of spans, after a token that is not of its text."""
    rows = [
        {
            "model": model,
            "hook": "attn_out",
            "layer": layer,
            "depth": (layer + 0.5) / layers,
            "doc": f"d{doc}",
        }
        | {"window": 0, "position": position, "token_id": position, "char_start": start, "char_end": end}
        for layer in range(layers)
        for doc, own in enumerate(spans)
        for position, (start, end) in enumerate([(-1, -1), *own])
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(norm=np.random.default_rng(seed).permutation(len(frame)) + 1.0)


# What is correlated


def test_without_effects_it_is_spearmans_correlation_of_all_layers():
    norms = make_norms(shared=0.5)
    cells = compare(norms, effects=()).cells
    for cell in cells.itertuples():
        expected = stats.spearmanr(
            log_norms(norms, "small", cell.layer_a), log_norms(norms, "large", cell.layer_b)
        )[0]
        assert cell.estimate == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("effects", ["doc", ("position",), ("doc", "token"), ("doc", "position", "token")])
def test_effects_are_projected_out_of_the_ranks_as_dummies_would(effects):
    norms = make_norms(shared=0.5)
    found = compare(norms, effects=effects)
    one = norms.query("model == 'small' and layer == 0 and position > 0")
    names = {"doc": "doc", "position": "position", "token": "token_id"}
    dummies = [np.ones((len(one), 1))]
    for effect in [effects] if isinstance(effects, str) else effects:
        dummies.append(pd.get_dummies(one[names[effect]], dtype=float).to_numpy())
    design = np.hstack(dummies)
    ranks = np.column_stack(
        [stats.rankdata(log_norms(norms, model, layer)) for model, layer in (("small", 1), ("large", 2))]
    )
    left = ranks - design @ np.linalg.lstsq(design, ranks, rcond=None)[0]
    cell = found.cells.query("layer_a == 1 and layer_b == 2").iloc[0]
    assert cell["estimate"] == pytest.approx(np.corrcoef(left.T)[0, 1], abs=1e-9)


def test_equal_models_agree_wholly():
    norms = make_norms({"a": 3})
    found = compare(pd.concat([norms, norms.assign(model="b")]))
    same = found.cells.query("layer_a == layer_b")
    np.testing.assert_allclose(same[["estimate", "conf_low", "conf_high"]], 1.0, atol=1e-12)
    assert found.pairs["estimate"].iloc[0] == pytest.approx(1.0)
    assert (found.matched["p_value"] == 0.01).all()
    assert same["matched"].all()


def test_a_token_that_is_alone_in_its_group_is_left_out():
    ids = np.random.default_rng(0).integers(0, 6, 240)
    ids[40] = 99
    found = compare(make_norms(ids=ids, shared=1.0))
    assert found.pairs["n"].iloc[0] == 8 * 29 - 1
    assert compare(make_norms(ids=ids), effects="doc").pairs["n"].iloc[0] == 8 * 29


@pytest.mark.parametrize("unit", ["token", "span"])
def test_an_increasing_function_of_the_measure_and_the_order_of_rows_change_no_digit(unit):
    norms = make_norms(shared=0.5)
    norms = norms.assign(char_start=norms["position"] // 2 * 2, char_end=norms["position"] // 2 * 2 + 2)
    first = compare(norms, unit=unit)
    moved = norms.assign(size=-1 / (5 + norms["norm"])).sample(frac=1.0, random_state=1)
    second = compare(moved, unit=unit, column="size")
    for name in ("cells", "matched", "pairs"):
        one, other = (getattr(found, name).drop(columns="column") for found in (first, second))
        pd.testing.assert_frame_equal(one, other, check_exact=True)


# Alignment


def test_spans_are_the_shortest_pieces_that_are_whole_in_both():
    # The second tokenizer writes a space of its own before the text, and gives a character of two bytes two tokens.
    first = [[(0, 2), (2, 3), (3, 6), (6, 7), (7, 9)]] * 6
    second = [[(0, 0), (0, 1), (1, 3), (3, 4), (4, 6), (6, 7), (6, 7), (7, 9)]] * 6
    one, other = cut(first, "a"), cut(second, "b", seed=1)
    found = compare(pd.concat([one, other]), unit="span", effects=(), match="best")
    units = {"a": [0, 0, 1, 2, 3], "b": [-1, 0, 0, 1, 1, 2, 2, 3]}
    means = []
    for frame, model in ((one, "a"), (other, "b")):
        frame = frame[frame["position"] > 0].assign(unit=units[model] * 6)
        frame = frame[frame["unit"] >= 0]
        frame = frame.assign(rank=frame["norm"].rank())
        means.append(frame.groupby(["doc", "unit"])["rank"].mean())
    assert found.pairs["n"].iloc[0] == 24
    assert found.cells["estimate"].iloc[0] == pytest.approx(stats.spearmanr(*means)[0], abs=1e-9)


def test_words_are_compared_whole_and_tokens_of_none_are_left_out():
    one = cut([[(0, 2), (2, 4), (4, 5), (5, 9)]] * 12, "a").assign(word=[-1, 0, 0, -1, 1] * 12)
    other = cut([[(0, 4), (4, 5), (5, 7), (7, 9)]] * 12, "b", seed=1).assign(word=[-1, 0, -1, 1, 1] * 12)
    found = compare(pd.concat([one, other]), unit="word", effects=())
    assert found.pairs["n"].iloc[0] == 24
    means = []
    for frame in (one, other):
        frame = frame[frame["word"] >= 0]
        means.append(frame.assign(rank=frame["norm"].rank()).groupby(["doc", "word"])["rank"].mean())
    assert found.cells["estimate"].iloc[0] == pytest.approx(stats.spearmanr(*means)[0], abs=1e-9)


# Chance


@pytest.mark.parametrize(("smooth", "match"), [(0.0, "depth"), (0.8, "depth"), (0.8, "best")])
def test_unrelated_series_are_called_alike_as_rarely_as_said(smooth, match):
    many = {f"m{at}": 1 + at % 2 for at in range(10)}
    frames = (make_norms(many, docs=6, smooth=smooth, seed=seed) for seed in range(2))
    p = np.concatenate(
        [compare(frame, effects=("doc", "position"), match=match).pairs["p_value"] for frame in frames]
    )
    assert np.sum(p <= 0.05) <= 11
    assert 0.4 < np.mean(p) < 0.6


@pytest.mark.parametrize("match", ["depth", "best"])
def test_a_shared_series_is_found(match):
    found = compare(make_norms(shared=1.0, smooth=0.8), match=match)
    assert (found.cells["p_adjusted"] == 0.01).all()
    assert (found.matched["estimate"] > found.matched["null_high"]).all()
    assert (found.matched["conf_low"] > 0).all()


def test_the_best_match_finds_layers_in_another_order_and_is_chosen_in_the_null_too():
    norms = make_norms({"a": 3})
    other = norms.assign(model="b", layer=2 - norms["layer"]).assign(depth=lambda f: (f["layer"] + 0.5) / 3)
    both = pd.concat([norms, other])
    best, nearest = compare(both, match="best"), compare(both)
    assert best.matched["layer_b"].tolist() == [2, 1, 0]
    np.testing.assert_allclose(best.matched["estimate"], 1.0)
    assert nearest.matched["layer_b"].tolist() == [0, 1, 2]
    assert (best.matched["null_mean"] > nearest.matched["null_mean"] + 0.02).all()


def test_intervals_cover_no_correlation_in_most_simulations():
    many = {f"m{at}": 1 for at in range(8)}
    cells = pd.concat(
        [compare(make_norms(many, docs=12, seed=seed), effects="doc").cells for seed in range(2)]
    )
    assert 0.85 < ((cells["conf_low"] < 0) & (cells["conf_high"] > 0)).mean() < 1.0
    assert (cells["sim_low"] <= cells["conf_low"]).all()


# Yardsticks


def test_random_weights_are_compared_with_those_of_other_frames():
    norms = make_norms(shared=1.0)
    # One frame alone would have the same series in both models; different frames have nothing in common.
    random = [make_norms({"small": 2, "large": 3}, seed=seed, ids=norms["token_id"][:240]) for seed in (5, 6)]
    for frame in random:
        of_layer = frame.query("model == 'small' and layer == 0")["norm"].to_numpy()
        frame["norm"] = np.tile(of_layer, 5)
    row = compare(norms, random_weights=random).pairs.iloc[0]
    assert abs(row["random_weights"]) < 0.2
    assert row["over_random"] == pytest.approx(row["estimate"] - row["random_weights"])
    assert row["over_random_low"] > 0.1
    assert "training adds to what text and architecture share in 1 of 1 pair" in repr(
        compare(norms, random_weights=random)
    )


def test_seeds_of_a_group_are_the_yardstick():
    alike, other = make_norms({"s": 2, "s-b": 2}, shared=2.0), make_norms({"m": 2}, seed=1)
    norms = pd.concat([alike, other.assign(token_id=np.tile(alike["token_id"][:240], 2))])
    found = compare(norms, groups={"s": "s", "s-b": "s", "m": "m"})
    table = found.yardstick.set_index("comparison")
    pairs = found.pairs
    assert pairs["same_group"].tolist() == [False, False, True]
    assert table.loc["within groups", "estimate"] == pytest.approx(pairs["estimate"].iloc[2])
    assert table.loc["between groups", "estimate"] == pytest.approx(pairs["estimate"].iloc[:2].mean())
    assert table.loc["difference", "conf_low"] > 0.3
    assert "Seeds of one group share" in found.verdict[-1]
    assert "no yardstick" in compare(norms).verdict[-1]
    assert (
        "All models are of one group" in compare(norms, groups={"s": "s", "s-b": "s", "m": "s"}).verdict[-1]
    )
    apart = compare(norms, groups={"s": "s", "s-b": "t", "m": "m"})
    assert apart.yardstick.empty
    assert "No group has two models (seeds)" in apart.verdict[-1]


# Refusals

SPANS = "Join the spans of tokenize"


@pytest.mark.parametrize(
    ("change", "options", "error", "says"),
    [
        (lambda f: f.drop(columns="norm"), {}, SchemaError, "needs the column 'norm'"),
        (lambda f: f[f["model"] == "small"], {}, InputError, "compares models; there is one, small"),
        (
            lambda f: f[f["doc"] < "d5"],
            {},
            InputError,
            "needs 6 or more with shared tokens; small, large share 5",
        ),
        (lambda f: f[f["position"] < 3], {}, InputError, "degrees of freedom after the effects"),
        (lambda f: f.assign(token_id=f["token_id"] + (f["model"] == "large")), {}, InputError, SPANS),
        (lambda f: f, {"unit": "span"}, InputError, "needs the columns"),
        (lambda f: f.iloc[1:], {}, InputError, "every token once in every layer; small"),
        (lambda f: pd.concat([f, f]), {}, InputError, "every token once in every layer"),
        (
            lambda f: f.assign(norm=f["norm"].where(f.index != 3)),
            {},
            NumericalError,
            "finite numbers as 'norm'",
        ),
        (
            lambda f: f.assign(norm=f["norm"].where(f["layer"] != 1, 2.0)),
            {},
            NumericalError,
            "layer 1 of small",
        ),
        (lambda f: pd.concat([f, f.assign(hook="z")]), {}, InputError, "Choose with hook="),
        (lambda f: f, {"hook": "mlp_out"}, InputError, "no rows of the hook 'mlp_out'"),
        (lambda f: f, {"effects": ("doc", "doc")}, InputError, "each once"),
        (lambda f: f, {"draws": 9}, InputError, "draws must be a whole number, 99 or more"),
        (lambda f: f, {"groups": {"small": "s"}}, InputError, "a group for each of the models"),
        (lambda f: f, {"random_weights": [make_norms()]}, InputError, "needs two frames or more"),
        (
            lambda f: f,
            {"random_weights": [make_norms({"small": 2})] * 2},
            InputError,
            "for large it differs",
        ),
        (
            lambda f: f.replace("large", "large[folded]"),
            {},
            InputError,
            "reload them with the same processing=",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_with_what_to_do(change, options, error, says):
    with pytest.raises(error) as refused:
        compare(change(make_norms()), **options)
    assert says in str(refused.value)


def test_a_wrong_option_is_refused():
    # TypeError: where the tests run under jaxtyping's checks, these see a wrong Literal first.
    for option, value in {"match": "depths", "unit": "spans", "effects": "docs"}.items():
        with pytest.raises((InputError, TypeError), match=option):
            compare(make_norms(), **{option: value})


# The map


def test_the_map_draws_every_cell_and_frames_the_matched_ones():
    found = compare(make_norms(shared=0.4))
    spec = plot_token_agreement(found).to_dict()
    (panel,) = spec["concat"]
    cells, _, crosses, framed = (
        pd.DataFrame(
            spec["datasets"][layer["data"]["name"]] if "name" in layer["data"] else layer["data"]["values"]
        )
        for layer in panel["layer"]
    )
    np.testing.assert_allclose(cells["estimate"], found.cells["estimate"], atol=5e-5)
    expected = found.cells.query("matched")[["layer_a", "layer_b"]]
    assert framed[["layer_a", "layer_b"]].values.tolist() == expected.values.tolist()
    assert crosses["unsure"].tolist() == (found.cells["p_adjusted"] > 0.05).tolist()
    assert panel["layer"][2]["transform"][-1] == {"filter": "datum.unsure"}
    assert "8 documents, after effects of doc, position, token" in " ".join(spec["title"]["subtitle"])


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda f: f.iloc[:0], InputError, "at least one row"),
        (lambda f: pd.concat([f, f]), InputError, "Were two tables concatenated"),
        (lambda f: pd.concat([f, f.assign(match="best")]), InputError, "one match at a time"),
        (lambda f: f.assign(depth_b=1.5), InputError, "'depth_b' between 0 and 1"),
        (lambda f: f.assign(estimate=np.nan), NumericalError, "finite numbers"),
    ],
)
def test_a_frame_that_is_no_map_is_refused(change, error, says):
    with pytest.raises(error) as refused:
        plot_token_agreement(change(compare(make_norms()).cells))
    assert says in str(refused.value)
