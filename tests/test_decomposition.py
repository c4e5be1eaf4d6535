"""Decompositions against pyfixest, dense dummies, and what a change of documents does to them.

PYFIXEST holds what pyfixest 0.60.0 gave for short_panel() below, by:
    fit = pyfixest.feols("y ~ x + w + w2 + C(doc) + C(position)", short_panel())
    groups = {"controls": ["w", "w2"], "doc": re.compile(r"C\\(doc\\)"), "position": re.compile(r"C\\(position\\)")}
    fit.decompose(decomp_var="x", combine_covariates=groups, agg_first=True, only_coef=True).results.absolute

Tolerances: pyfixest solves to 1e-10 or so; a numerical derivative of step 1e-5 is right to 1e-7; standard deviations of
400 bootstrap draws have a standard error of 4%, and those of 40 documents differ from the first-order ones by a few
per cent more.
"""

import itertools

import numpy as np
import pandas as pd
import pytest
from panels import panel

from mechreg.lags import add_lags
from mechreg.robustness import decompose
from mechreg.schema import InputError, NumericalError, SchemaError

PYFIXEST = {
    "short": 0.2237608878341224,
    "doc": -0.0074443117579781615,
    "position": -0.020574772055136664,
    "controls": -0.0011328384510623651,
    "long": 0.2529128100982996,
}
CONTROLS = {"controls": "w + w2"}


def short_panel() -> pd.DataFrame:
    frame = panel()
    return frame[frame["position"] < 20].assign(w2=lambda rows: rows["w"] ** 2)


def many(docs=40, tokens=12, seed=0) -> pd.DataFrame:
    """Return a panel whose x goes with documents, positions and w."""
    rng = np.random.default_rng(seed)
    doc, position = np.repeat(np.arange(docs), tokens), np.tile(np.arange(tokens), docs)
    level, trend = rng.normal(size=docs)[doc], np.sqrt(position)
    x = level + trend + rng.normal(size=len(doc))
    w = 0.5 * x + rng.normal(size=len(doc))
    y = 0.5 * x + w + level - 0.5 * trend + rng.normal(size=docs)[doc] * rng.normal(size=len(doc))
    place = {"model": "m", "hook": "attn_out", "layer": 0, "depth": 0.5, "window": 0}
    return pd.DataFrame(place | {"doc": doc, "position": position, "x": x, "w": w, "w2": w**2, "y": y})


def by_dummies(frame: pd.DataFrame, weight: np.ndarray) -> np.ndarray:
    """Return short, doc, position, controls and long from dense dummies, documents weighted."""
    root = np.sqrt(weight)[frame["doc"].to_numpy()][:, None]
    short = root * np.column_stack([np.ones(len(frame)), frame["x"]])
    dummies = [pd.get_dummies(frame[name]).to_numpy(float) for name in ("doc", "position")]
    groups = [root * group for group in (*dummies, frame[["w", "w2"]].to_numpy())]
    y, long = root[:, 0] * frame["y"].to_numpy(), np.column_stack([short, *groups])
    b = np.linalg.lstsq(long, y, rcond=None)[0]
    ends = np.cumsum([2, *(group.shape[1] for group in groups)])
    fitted = [long[:, begin:end] @ b[begin:end] for begin, end in itertools.pairwise(ends)]
    parts = np.linalg.lstsq(short, np.column_stack([y, *fitted]), rcond=None)[0][1]
    return np.append(parts, b[1])


def test_pyfixest_gives_the_same_parts():
    table = decompose(short_panel(), "y ~ x", term="x", controls=CONTROLS)
    assert table["part"].tolist() == list(PYFIXEST)
    np.testing.assert_allclose(table["estimate"], list(PYFIXEST.values()), atol=1e-9)
    assert (table[["n", "n_docs"]] == [132, 8]).all(axis=None)


def test_errors_are_those_of_a_change_of_documents_and_near_a_bootstrap():
    frame = many()
    table = decompose(frame, "y ~ x", term="x", controls=CONTROLS)
    np.testing.assert_allclose(table["estimate"], by_dummies(frame, np.ones(40)), atol=1e-10)
    steps = 1e-5 * np.eye(40)
    influence = [(by_dummies(frame, 1 + step) - by_dummies(frame, 1 - step)) / 2e-5 for step in steps]
    error = np.sqrt(40 / 39 * np.square(influence).sum(axis=0))
    np.testing.assert_allclose(table["std_error"], error, rtol=1e-6)
    rng = np.random.default_rng(0)
    draws = rng.multinomial(40, np.full(40, 1 / 40), size=400)
    drawn = np.std([by_dummies(frame, weight.astype(float)) for weight in draws], axis=0)
    np.testing.assert_allclose(table["std_error"], drawn, rtol=0.2)


def test_a_sum_of_terms_has_the_sums_of_their_parts():
    parts = [decompose(panel(), "y ~ x + w", term=term)["estimate"] for term in ("x", "w", "x + w")]
    np.testing.assert_allclose(parts[0] + parts[1], parts[2], atol=1e-12)


@pytest.mark.parametrize("max_dense", [3000, 5])
@pytest.mark.parametrize(
    ("effects", "controls"),
    [
        (("doc", "position", "word"), {"w": "w + w : C(position > 5)", "square": "I(w**2)"}),
        (("position", "word"), {}),
        ("word", None),
        ((), {"w": "w", "position": "position"}),
    ],
)
def test_parts_add_up(effects, controls, max_dense, monkeypatch):
    monkeypatch.setattr("mechreg.regression.fixed_effects.MAX_DENSE", max_dense)
    table = decompose(panel(), "y ~ x", term="x", effects=effects, controls=controls)
    parts = table.set_index("part")["estimate"]
    assert parts["short"] == pytest.approx(parts.drop("short").sum(), abs=1e-10)
    assert (table["std_error"] > 0).all()


def test_what_lag1_owes_to_the_levels_that_were_put_in():
    """An AR(1) around levels of documents: lag1 alone has both, and the part of doc is the levels'."""
    rng = np.random.default_rng(1)
    y = rng.normal(size=(200, 60))
    for t in range(1, 60):
        y[:, t] += 0.4 * y[:, t - 1]
    y += 2 * rng.normal(size=(200, 1))
    place = {"model": "m", "hook": "attn_out", "layer": 0, "doc": np.repeat(range(200), 60), "window": 0}
    norms = pd.DataFrame(place | {"position": np.tile(range(60), 200), "norm": np.exp(y.ravel() / 4)})
    table = decompose(add_lags(norms), "log_norm ~ lag1").set_index("part")
    # Levels of variance 4 beside a process of variance 1 / (1 - .4²): lag1 is the share of both that persists.
    own = 1 / (1 - 0.4**2)
    assert table.loc["short", "estimate"] == pytest.approx((4 + 0.4 * own) / (4 + own), abs=0.02)
    assert table.loc["long", "estimate"] == pytest.approx(0.4 - 1.4 / 60, abs=0.02)  # Nickell's bias
    assert table.loc["position", "conf_low"] < 0 < table.loc["position", "conf_high"]


def test_what_cannot_be_decomposed_is_refused():
    frame = short_panel()
    with pytest.raises(InputError, match="a formula with an intercept and the term 'lag1'; it has"):
        decompose(frame, "y ~ x")
    with pytest.raises(InputError, match=r"other names than .* got \['doc'\]"):
        decompose(frame, "y ~ x", term="x", controls={"doc": "w"})
    with pytest.raises(NumericalError, match="controls that vary within effects"):
        decompose(frame, "y ~ x", term="x", controls={"trend": "position"})
    with pytest.raises(InputError, match="needs two documents or more with complete rows; model m"):
        decompose(frame[frame["doc"] == 0], "y ~ x", term="x", effects=(), controls={"w": "w"})
    with pytest.raises(SchemaError, match="decompose needs the column 'z'"):
        decompose(frame, "y ~ x", term="x", controls={"z": "z"})
