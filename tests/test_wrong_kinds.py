"""Options of a wrong kind get one sentence, whatever they are; a single one is taken wherever several may be."""

import warnings

import jaxtyping
import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pytest

import mechreg as mr
from mechreg import nulls
from mechreg.regression import LagSums
from mechreg.robustness import lag_order, specification_curve
from mechreg.schema import InputError, MechregError
from mechreg.universality import compare_profiles

WRONG = [
    -1,
    1.5,
    True,
    "x",
    b"x",
    [],
    ["x"],
    {"a": 1},
    object(),
    float("nan"),
    np.array([1, 2]),
    ("lag1",),
    10**12,
]


def made() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.MultiIndex.from_product(
        [["a", "b"], ["attn_out"], [0, 1], [f"d{i}" for i in range(6)], [0], range(12)],
        names=["model", "hook", "layer", "doc", "window", "position"],
    ).to_frame(index=False)
    return frame.assign(
        depth=(frame["layer"] + 0.5) / 2,
        token_id=rng.integers(0, 9, len(frame)),
        norm=rng.lognormal(size=len(frame)),
    )


NORMS = made()
LAGGED = mr.add_lags(NORMS)
FITS = mr.fit_lagged(LAGGED)
SUMS = LagSums.from_frame(LAGGED)
ONE = NORMS.query("model == 'a' and layer == 0")

CALLS = {
    "fit_lagged": (
        lambda **o: mr.fit_lagged(LAGGED, **o),
        "cov adjust cluster by hac_lags conf_level seed formula",
    ),
    "max-t": (lambda **o: mr.fit_lagged(LAGGED, adjust="max-t", **o), "seed"),
    "LagSums": (lambda **o: LagSums.from_frame(LAGGED, **o), "cluster max_lag by formula"),
    "coefficients": (lambda **o: SUMS.coefficients(**o), "cov adjust hac_lags conf_level seed"),
    "summary": (lambda **o: FITS.summary(**{"model": "a", "layer": 0} | o), "model layer hook head"),
    "regression_table": (lambda **o: mr.regression_table(FITS, **o), "format show p terms layers digits"),
    "specification_curve": (
        lambda **o: specification_curve(LAGGED, **{"specifications": "baseline", "folds": 3} | o),
        "specifications extra_lags folds conf_level seed formula",
    ),
    "lag_order": (lambda **o: lag_order(NORMS, **{"max_lag": 2, "folds": 3} | o), "max_lag folds skip seed"),
    "shuffle_norms": (lambda **o: nulls.shuffle_norms(NORMS, **o), "skip seed"),
    "shuffle_tokens": (lambda **o: nulls.shuffle_tokens(ONE, **o), "seed"),
    "token_means": (lambda **o: nulls.token_means(NORMS, **o), "skip"),
    "null_norms": (
        lambda **o: nulls.null_norms(NORMS, **{"nulls": "norm_order"} | o),
        "nulls repeats skip seed",
    ),
    "compare_to_nulls": (
        lambda **o: nulls.compare_to_nulls(FITS, {"same": [NORMS]}, **{"draws": 99} | o),
        "skip draws conf_level seed",
    ),
    "compare_profiles": (
        lambda **o: compare_profiles(FITS, **{"draws": 199} | o),
        "term hook groups margin bins draws conf_level seed",
    ),
}
ACCEPTED = {  # what is right among them
    ("fit_lagged", "by"): [[]], ("LagSums", "by"): [[]],
    **{(name, option): [10**12] for name in CALLS for option in ("seed", "skip")},
    ("regression_table", "terms"): [("lag1",)], ("fit_lagged", "cluster"): [("lag1",)],
    ("compare_profiles", "margin"): [1.5, 10**12],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "option"), [(n, o) for n, (_, options) in CALLS.items() for o in options.split()]
)
def test_a_wrong_kind_gets_one_sentence(name, option):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for value in WRONG:
            if any(
                type(value) is type(right) and value == right for right in ACCEPTED.get((name, option), [])
            ):
                continue
            # Where the tests run under jaxtyping's checks, these may say it first.
            with pytest.raises((MechregError, jaxtyping.TypeCheckError)) as refused:
                CALLS[name][0](**{option: value})
            if isinstance(refused.value, MechregError):
                assert "\n" not in str(refused.value)


def test_a_single_one_is_taken_wherever_several_may_be():
    table = mr.regression_table
    assert table(FITS, layers=0) == table(FITS, layers=[0])
    assert table(FITS, terms="lag1") == table(FITS, terms=["lag1"])
    frame = LAGGED.assign(source=np.where(LAGGED["doc"] < "d3", "x", "y"))
    of_one, of_several = (LagSums.from_frame(frame, by=by).coefficients() for by in ("source", ["source"]))
    pd.testing.assert_frame_equal(of_one, of_several)
    assert list(nulls.null_norms(NORMS, nulls="norm_order")) == ["norm_order"]


def test_the_sentences_name_the_remedy():
    for call, message in (
        (
            lambda: mr.fit_lagged(LAGGED, adjust="max-t", seed=-1),
            r"seed must be a whole number, 0 or more; got -1\.",
        ),
        (lambda: mr.regression_table(FITS, layers=9), "layers must be one of 0, 1; got 9"),
        (lambda: mr.fit_lagged(LAGGED, hac_lags=2), r"hac_lags=2 needs cov='hac'; got cov='auto'\."),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_the_lags_come_first_in_what_the_nulls_are_asked():
    frame = NORMS.assign(pos=np.where(NORMS["token_id"] < 4, "NOUN", "VERB"))
    formula = "log_norm ~ (lag1 + lag2) * C(pos)"
    fits = mr.fit_lagged(mr.add_lags(frame), formula)
    table = nulls.compare_to_nulls(fits, {"same": [frame], "again": [frame]}, draws=99)
    for _, rows in table.groupby(["model", "layer", "null"]):
        assert rows["term"].tolist()[:2] == ["lag1", "lag2"]
        assert len(rows) == 5


TEXTS = pd.DataFrame(
    {"doc": ["d0", "d1"], "text": ["The old ship lay there.", "Waves came and went."], "year": [1, 2]}
)
YEARS = pd.DataFrame({"doc": [f"d{doc}" for doc in range(6)], "year": range(6)})
TAKEN = {
    "add_lags": lambda to: mr.add_lags(to(NORMS)),
    "fit_lagged": lambda to: mr.fit_lagged(to(LAGGED)).coefficients,
    "augment": lambda to: FITS.augment(to(LAGGED)),
    "LagSums": lambda to: LagSums.from_frame(to(LAGGED)).coefficients(),
    "regression_table": lambda to: mr.regression_table(to(FITS.coefficients)),
    "autocorrelation": lambda to: mr.autocorrelation(to(NORMS), max_lag=2, draws=99).lags,
    "decompose": lambda to: mr.decompose(to(LAGGED)),
    "lag_order": lambda to: lag_order(to(NORMS), max_lag=2, folds=3),
    "specification_curve": lambda to: specification_curve(to(LAGGED), specifications="baseline", folds=3),
    "shuffle_norms": lambda to: nulls.shuffle_norms(to(NORMS)),
    "compare_to_nulls": lambda to: mr.compare_to_nulls(FITS, {"same": [to(NORMS)]}, draws=99),
    "compare_tokens": lambda to: mr.compare_tokens(to(NORMS.assign(token_id=NORMS["position"] % 5)), draws=99).pairs,
    "group_norms": lambda to: mr.group_norms(to(NORMS.assign(pos="NOUN"))),
    "join_annotations": lambda to: mr.join_annotations(to(NORMS), to(YEARS)),
    "read_corpus": lambda to: mr.read_corpus(to(TEXTS)),
    "tokenize": lambda to: mr.tokenize("mini-s", to(TEXTS)),
    "extract_norms": lambda to: mr.extract_norms("mini-s", to(TEXTS)),
    "plot_norms": lambda to: mr.plot_norms(to(NORMS)).to_dict(),
    "plot_betas": lambda to: mr.plot_betas(to(FITS.coefficients)).to_dict(),
    "plot_heatmap": lambda to: mr.plot_heatmap(to(ONE.assign(token="a", layer=0)), doc="d0").to_dict(),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_frames_of_other_libraries_are_taken_wherever_frames_are(name):
    def values(result):
        return result.to_dict("list") if isinstance(result, pd.DataFrame) else result

    expected = values(TAKEN[name](lambda frame: frame))
    for to in (pa.Table.from_pandas, polars.from_pandas, lambda frame: polars.from_pandas(frame).lazy()):
        result = TAKEN[name](to)
        assert not isinstance(result, polars.DataFrame | pa.Table)
        assert str(values(result)) == str(expected)
