"""Covariances summed at the hook against the vectors themselves: numpy's and statsmodels' answers from them.

Tolerances: the sums are float64 of float32 vectors, so that 1e-6 is far above rounding.
"""

import numpy as np
import pandas as pd
import pytest
from statsmodels.tsa.api import VAR

from mechreg import extract_vectors
from mechreg.models import load_model
from mechreg.norms import vector_covariances
from mechreg.norms.covariances import PENALTIES
from mechreg.schema import InputError

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def model(make_gpt2):
    return load_model(make_gpt2(n_embd=8, n_head=2), name="narrow")


def test_one_window_is_what_statsmodels_vector_autoregression_of_its_vectors_says(model, make_windows):
    tokens = make_windows([60])
    covariances = vector_covariances(model, tokens, layers=[2, 0], lags=(1, 2), skip=3, folds=1)
    explained, dimension = covariances.explained(), covariances.effective_dimension()
    assert explained["layer"].tolist() == [2, 0]
    assert set(explained["n"]) == {60 - 3 - 2}
    assert explained["held_out"].isna().all()
    for at, vectors in enumerate(extract_vectors(model, tokens, layers=[2, 0]).values[:, 3:].astype(float)):
        fit = VAR(vectors).fit(2)
        share = 1 - np.square(fit.resid).sum() / np.square(vectors[2:] - vectors[2:].mean(axis=0)).sum()
        assert explained["in_sample"][at] == pytest.approx(share, abs=1e-6)
        values = np.linalg.eigvalsh(np.cov(vectors[2:].T))
        ratio = values.sum() ** 2 / (values**2).sum()
        assert dimension["effective_dimension"][at] == pytest.approx(ratio, rel=1e-6)


def ridge(outcome, lags, penalty):
    """Return the slopes of ridge regression: least squares on the rows with the penalty's below them."""
    size = np.sqrt(penalty * np.square(lags).sum() / lags.shape[1])
    rows = np.vstack([lags, size * np.eye(lags.shape[1])])
    below = np.vstack([outcome, np.zeros((lags.shape[1], outcome.shape[1]))])
    return np.linalg.lstsq(rows, below, rcond=None)[0]


@pytest.mark.parametrize("effects", [(), ("window", "position")])
def test_documents_that_were_held_out_are_forecast_as_by_ridge_on_the_vectors(model, make_windows, effects):
    # Several batches; one document of two windows, which no lag crosses; the longest window is longer than any other.
    tokens = make_windows([40, 25, 30, 50, 20, 45, 33, 61])
    tokens.loc[tokens["doc"] == "d1", ["doc", "window"]] = ("d0", 1)
    options = {"layers": 1, "folds": 3, "effects": effects}
    covariances = vector_covariances(model, tokens, batch_tokens=128, **options)
    found = covariances.explained().iloc[0]
    vectors = extract_vectors(model, tokens, layers=1).values[0].astype(float)
    at = np.flatnonzero(tokens["position"] >= 2)
    both, fold = np.hstack([vectors[at], vectors[at - 1]]), (tokens["doc"].factorize()[0] % 3)[at]
    position = np.where("position" in effects, tokens["position"].to_numpy()[at], 0)
    if effects:
        window = (tokens["position"] == 0).cumsum().to_numpy()[at]
        both = both - pd.DataFrame(both).groupby(window).transform("mean").to_numpy()
    assert (found["n"], found["n_docs"]) == (len(at), 7)

    def centred(rows, train):
        means = pd.DataFrame(both[train]).groupby(position[train]).mean().reindex(position[rows])
        return both[rows] - means.fillna(pd.Series(both[train].mean(axis=0))).to_numpy()

    def errors(train, test, penalty):
        own, other = centred(train, train), centred(test, train)
        return np.square(other[:, :8] - other[:, 8:] @ ridge(own[:, :8], own[:, 8:], penalty)).sum()

    left = total = 0.0
    for held in range(3):
        one, other = (fold == number for number in range(3) if number != held)
        inner = [errors(one, other, penalty) + errors(other, one, penalty) for penalty in PENALTIES]
        rest, test = one | other, fold == held
        left += errors(rest, test, PENALTIES[np.argmin(inner)])
        total += np.square(centred(test, rest)[:, :8]).sum()
    assert found["held_out"] == pytest.approx(1 - left / total, abs=1e-6)
    assert found["held_out"] < found["in_sample"]
    values = np.linalg.eigvalsh(np.cov(centred(fold >= 0, fold >= 0)[:, :8].T))
    ratio = covariances.effective_dimension()["effective_dimension"][0]
    assert ratio == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-6)


def test_what_has_no_answer_is_refused(model, make_windows):
    with pytest.raises(InputError, match="'z' has one for every head"):
        vector_covariances(model, make_windows([9]), hook="z", folds=1)
    with pytest.raises(InputError, match="folds must be 1, or 3 to the number of documents, 2"):
        vector_covariances(model, make_windows([9, 9]))
    with pytest.raises(InputError, match="no token with 9 before it"):
        vector_covariances(model, make_windows([9]), lags=8, folds=1)
    for wrong in ({"lags": ()}, {"lags": (1, 1)}, {"layers": ()}, {"layers": (1, 1)}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} must be"):
            vector_covariances(model, make_windows([9]), folds=1, **wrong)
