"""Covariances summed at the hook against the vectors themselves: numpy's and statsmodels' answers from them.

Tolerances: the sums are float64 of float32 vectors, so that 1e-6 is far above rounding.
"""

import numpy as np
import pytest
from statsmodels.tsa.api import VAR

from mechreg import extract_vectors
from mechreg.models import load_model
from mechreg.norms import vector_covariances
from mechreg.norms.covariances import PENALTIES
from mechreg.nulls import shuffle_tokens
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
    """Return the forecast of ridge regression by least squares on the rows with the penalty's below them."""
    mean = lags.mean(axis=0)
    size = np.sqrt(penalty * np.square(lags - mean).sum() / lags.shape[1])
    rows = np.vstack([lags - mean, size * np.eye(lags.shape[1])])
    below = np.vstack([outcome - outcome.mean(axis=0), np.zeros((lags.shape[1], outcome.shape[1]))])
    slopes = np.linalg.lstsq(rows, below, rcond=None)[0]
    return lambda others: outcome.mean(axis=0) + (others - mean) @ slopes


def test_documents_that_were_held_out_are_forecast_as_by_ridge_on_the_vectors(model, make_windows):
    # Several batches; one document of two windows, which no lag crosses.
    tokens = make_windows([40, 25, 30, 50, 20, 45, 33, 61])
    tokens.loc[tokens["doc"] == "d1", ["doc", "window"]] = ("d0", 1)
    found = vector_covariances(model, tokens, layers=1, folds=3, batch_tokens=128).explained().iloc[0]
    vectors = extract_vectors(model, tokens, layers=1).values[0].astype(float)
    at = np.flatnonzero(tokens["position"] >= 2)
    outcome, lag, fold = vectors[at], vectors[at - 1], (tokens["doc"].factorize()[0] % 3)[at]
    assert (found["n"], found["n_docs"]) == (len(at), 7)

    def errors(train, test, penalty):
        return np.square(outcome[test] - ridge(outcome[train], lag[train], penalty)(lag[test])).sum()

    left = total = 0.0
    for held in range(3):
        one, other = (fold == number for number in range(3) if number != held)
        inner = [errors(one, other, penalty) + errors(other, one, penalty) for penalty in PENALTIES]
        rest, test = one | other, fold == held
        left += errors(rest, test, PENALTIES[np.argmin(inner)])
        total += np.square(outcome[test] - outcome[rest].mean(axis=0)).sum()
    assert found["held_out"] == pytest.approx(1 - left / total, abs=1e-6)
    assert found["held_out"] < found["in_sample"]


def test_what_has_no_answer_is_refused(model, make_windows):
    with pytest.raises(InputError, match="'z' has one for every head"):
        vector_covariances(model, make_windows([9]), hook="z", folds=1)
    with pytest.raises(InputError, match="folds must be 1, or 3 to the number of documents, 2"):
        vector_covariances(model, make_windows([9, 9]))
    with pytest.raises(InputError, match="no token with 8 others before it"):
        vector_covariances(model, shuffle_tokens(make_windows([9])), lags=8, folds=1)
