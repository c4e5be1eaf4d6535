"""Mean groups: each document's regression by numpy, and simulated documents with levels, slopes and a trend."""

import numpy as np
import pandas as pd
import pytest
from panels import panel

from mechreg.lags import add_lags
from mechreg.regression import fit_lagged, mean_group
from mechreg.schema import InputError


def of_documents(frame) -> np.ndarray:
    """Return the slopes of y on x and w of every document, with a constant."""
    slopes = []
    for _, rows in frame.groupby("doc"):
        design = np.column_stack([np.ones(len(rows)), rows["x"], rows["w"]])
        slopes.append(np.linalg.lstsq(design, rows["y"], rcond=None)[0][1:])
    return np.array(slopes)


def test_estimates_are_means_of_every_documents_own_slopes():
    frame = panel().query("doc != 2").sort_values(["doc", "position"])  # it has 9 rows
    rank = frame.groupby("doc").cumcount()
    second = 2 * rank >= frame.groupby("doc")["x"].transform("size")
    halves = (of_documents(frame[~second]) + of_documents(frame[second])) / 2
    own = 2 * of_documents(frame) - halves
    table = mean_group(frame.sample(frac=1, random_state=0), "y ~ x + w", effects=())
    np.testing.assert_allclose(table["estimate"], own.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(table["std_error"], own.std(axis=0, ddof=1) / np.sqrt(7), rtol=1e-9)
    np.testing.assert_allclose(table["uncorrected"], of_documents(frame).mean(axis=0), rtol=1e-9)
    pooled = fit_lagged(frame, "y ~ x + w").coefficients.set_index("term")["estimate"]
    within = fit_lagged(frame, "y ~ x + w", effects="doc").coefficients["estimate"]
    np.testing.assert_allclose(table["pooled"], pooled[["x", "w"]], rtol=1e-12)
    np.testing.assert_allclose(table["within"], within, rtol=1e-12)


def test_short_documents_are_left_out_and_counted():
    frame = panel()
    short = frame[(frame["doc"] > 2) | (frame["position"] < 8)]
    table = mean_group(short, "y ~ x + w", effects=())
    assert table["n_docs_short"].eq(3).all()
    assert table["n_docs"].eq(5).all()
    np.testing.assert_allclose(
        table["estimate"], mean_group(frame[frame["doc"] > 2], "y ~ x + w", effects=())["estimate"], rtol=1e-9
    )
    with pytest.raises(InputError, match="needs two documents or more with 5 complete rows in each half"):
        mean_group(frame[frame["position"] < 8], "y ~ x + w")


def test_levels_slopes_and_a_trend_do_not_move_it():
    # 200 documents of 120 tokens: the standard error of the sum is near .01, and pooling is off by ten of it.
    rng = np.random.default_rng(0)
    docs, tokens, before = 200, 120, 40
    first, level = 0.4 + 0.1 * rng.normal(size=docs), 0.3 * rng.normal(size=docs)
    values = np.zeros((docs, tokens + before))
    for t in range(2, tokens + before):
        values[:, t] = level + first * values[:, t - 1] + 0.2 * values[:, t - 2] + rng.normal(size=docs)
    values = values[:, before:] + 3 * np.exp(-np.arange(tokens) / 30)
    doc, position = (axis.ravel() for axis in np.indices(values.shape))
    place = {"model": "m", "hook": "attn_out", "layer": 0, "doc": doc, "window": 0, "position": position}
    table = mean_group(add_lags(pd.DataFrame(place | {"norm": np.exp(values.ravel())}), skip=0))
    error = np.sqrt((table["std_error"] ** 2).sum())
    assert abs(table["estimate"].sum() - 0.6) < 4 * error < 0.06
    assert table["pooled"].sum() > 0.75
    assert 0.07 < table["spread"][0] < 0.13  # truly .1
    assert table["spread"][1] < 0.05  # truly 0
