"""Absorbed effects: the regression with a dummy for every level, and what pyfixest says of the same panel.

PYFIXEST holds what pyfixest 0.60.0 gave, by:
    for effects in PYFIXEST:
        for vcov in ("iid", {"CRV1": "doc"}, {"CRV3": "doc"}):
            fit = pyfixest.feols(f"y ~ x + w | {' + '.join(effects)}", panel(), vcov=vcov, fixef_rm="singleton")
            print(fit._N, fit.coef(), fit.se(), fit._r2_within, fit._adj_r2_within)
TWO_WAY is feols("y ~ x + w", panel(), vcov={"CRV1": "doc + word"}), then the same with | doc.

Tolerances: dummies agree to 1e-9; pyfixest demeans to a relative 1e-6 and agrees to 1e-6. Its crv3 has the factor
G/(G-1) (n-1)/(n-k), ours (G-1)/G as summclust.
"""

import numpy as np
import pandas as pd
import pytest
from oracle import bell_mccaffrey
from panels import panel

from mechreg.regression import LagSums, fit_lagged, wild_bootstrap
from mechreg.regression.fixed_effects import make_effects, project
from mechreg.schema import InputError, NumericalError

PYFIXEST = {  # effects: n, estimates, errors (iid, crv1, crv3), R2 within, adjusted, and their number of parameters
    ("doc",): (
        149, [0.2103870641654204, -0.16908630842624062], [0.1586929954627024, 0.06593363905474585],
        [0.10039199803366423, 0.07214646372206403], [0.11659167626102157, 0.10866220306696103],
        0.055781868163468196, 0.04219599576294264, 3,
    ),
    ("position",): (
        144, [0.23445103760648467, -0.1905644881126275], [0.16395158980217517, 0.08425227638355576],
        [0.09942226978616546, 0.06945451669835712], [0.14281664601944125, 0.15414252707505313],
        0.06428787612875464, 0.04829279708822054, 27,
    ),
    ("doc", "position"): (
        144, [0.22362388636100128, -0.1864115478314312], [0.17832187698144145, 0.0788353750360763],
        [0.1614879415470953, 0.06857942052495339], [0.22584156930741697, 0.16151417453750103],
        0.062337791699540235, 0.04528938791225923, 27,
    ),
    ("doc", "position", "word"): (
        144, [0.250296473099096, -0.2280468126992833], [0.18711195352442922, 0.08021961176357259],
        [0.16090749547121153, 0.07212919266570235], [0.2258198429154014, 0.16350381422001437],
        0.0880681267761162, 0.07018710965407937, 35,
    ),
}  # fmt: skip

TWO_WAY = {  # effects: errors and p
    (): (
        [0.24521531984853626, 0.049685025385789554, 0.09000923974592732],
        [0.8782493571980174, 0.0027575619526960526, 0.13000730410771277],
    ),
    ("doc",): ([0.1255171998846907, 0.06984221876914216], [0.13761158958239328, 0.04602620199397789]),
}


@pytest.mark.parametrize("effects", PYFIXEST, ids="+".join)
def test_pyfixest_says_the_same(effects):
    n, estimate, *errors, r_squared, adjusted, parameters = PYFIXEST[effects]
    for cov, error in zip(("nonrobust", "crv1", "crv3"), errors, strict=True):
        factor = 1.0
        if cov == "crv3":
            factor = 7 / 8 / (8 / 7 * (n - 1) / (n - parameters))
        table = fit_lagged(panel(), "y ~ x + w", effects=effects, cov=cov).coefficients
        assert table["term"].tolist() == ["x", "w"]
        assert (table["n"] == n).all()
        np.testing.assert_allclose(table["estimate"], estimate, rtol=1e-6)
        np.testing.assert_allclose(table["std_error"], np.sqrt(factor) * np.array(error), rtol=1e-6)
        np.testing.assert_allclose(table["r_squared"], r_squared, rtol=1e-6)
        np.testing.assert_allclose(table["adj_r_squared"], adjusted, rtol=1e-6)


@pytest.mark.parametrize(
    "effects", [("doc",), ("position",), ("doc", "position", "word"), ("word", "position")]
)
def test_a_dummy_for_every_level_gives_the_same_without_each_document_too(effects):
    fits = fit_lagged(panel(), "y ~ x + w", effects=effects)
    rows = panel()[fits.augment(panel())["residual"].notna()]  # without singletons
    dummies = [pd.get_dummies(rows[name]).to_numpy(float) for name in effects]
    design, y = np.column_stack([rows["x"], rows["w"], *dummies]), rows["y"].to_numpy()
    doc, table = rows["doc"].to_numpy(), fits.coefficients
    estimate = np.linalg.lstsq(design, y, rcond=None)[0]
    np.testing.assert_allclose(table["estimate"], estimate[:2], rtol=1e-9)
    np.testing.assert_allclose(fits.augment(panel())["residual"].dropna(), y - design @ estimate, atol=1e-9)
    without = [np.linalg.lstsq(design[doc != d], y[doc != d], rcond=None)[0][:2] for d in np.unique(doc)]
    error = np.sqrt(7 / 8 * ((np.array(without) - estimate[:2]) ** 2).sum(axis=0))
    np.testing.assert_allclose(table["std_error"], error, rtol=1e-8)
    np.testing.assert_allclose(table["df"], bell_mccaffrey(design, doc)[:2], rtol=1e-7)
    rank = np.linalg.matrix_rank(design)
    result = fits.result(layer=0)
    assert result.df_resid == len(rows) - rank
    np.testing.assert_allclose(result.bse, table["std_error"], rtol=1e-12)
    assert "x" in fits.summary(layer=0)


def test_categories_beside_effects_are_dummies_too():
    fits = fit_lagged(panel(), "y ~ x * C(word == 3)", effects=("doc", "position"))
    plain = fit_lagged(
        panel().query("position < 25"), "y ~ x * C(word == 3) + C(doc) + C(position)", cov="crv1"
    )
    ours = fits.coefficients.set_index("term")["estimate"]
    np.testing.assert_allclose(ours, plain.coefficients.set_index("term")["estimate"][ours.index], rtol=1e-9)


def test_many_levels_are_solved_by_conjugate_gradients(monkeypatch):
    frame = panel()
    codes = {name: frame[name].to_numpy() for name in ("doc", "position", "word")}
    values = frame[["y", "x", "w"]].to_numpy().T
    dense = make_effects(codes, codes["doc"])
    monkeypatch.setattr("mechreg.regression.fixed_effects.MAX_DENSE", 10)
    sparse = make_effects(codes, codes["doc"])
    assert sparse.inverse is None
    assert (sparse.within, sparse.across) == (dense.within, dense.across)
    np.testing.assert_allclose(project(sparse, values), project(dense, values), atol=1e-9)
    with pytest.raises(InputError, match=r"at most 3,000 levels of effects .* Use cov='crv1'"):
        fit_lagged(frame, "y ~ x", effects=("doc", "position"))


def test_streamed_documents_have_their_effects_and_a_file_keeps_them(tmp_path):
    frame, sums = panel(), LagSums("y ~ x + w", effects="doc")
    for part in (frame[frame["doc"] < 3], frame[frame["doc"] == 3], frame[frame["doc"] > 3]):
        other = LagSums("y ~ x + w", effects="doc")
        other.update(part)
        sums = sums.merge(other)
    kept = LagSums.load(sums.save(tmp_path / "sums.npz"))
    fits = fit_lagged(frame, "y ~ x + w", effects="doc")
    for moments in (sums, kept):
        pd.testing.assert_frame_equal(moments.coefficients(), fits.coefficients, rtol=1e-9)
        pd.testing.assert_frame_equal(moments.statistics(), fits.statistics, rtol=1e-9)
    constant = LagSums("y ~ x + level", effects="doc")
    constant.update(frame.assign(level=0.1 * frame["doc"]))
    with pytest.raises(InputError, match="'level' is constant"):
        constant.coefficients()
    with pytest.raises(InputError, match="need all rows at once"):
        LagSums("y ~ x", effects=("doc", "position")).update(frame)
    with pytest.raises(InputError, match="cannot be computed from sums"):
        LagSums.from_frame(frame, "y ~ x", effects="position").coefficients()


@pytest.mark.parametrize(
    ("formula", "options", "error", "message"),
    [
        ("y ~ x + level", {"effects": "doc"}, NumericalError, "take off all of 'level'"),
        ("y ~ 1", {"effects": "doc"}, InputError, "has no other term"),
        ("y ~ x", {"effects": ("doc", "doc")}, InputError, "each once"),
        ("y ~ x", {"effects": "docs"}, InputError, "Did you mean 'doc'"),
        ("y ~ x", {"effects": "doc", "cov": "hc3"}, InputError, "leverage of effects"),
        ("y ~ x", {"effects": "position", "cov": "crv2"}, InputError, "cov='crv3', or cov='crv1'"),
    ],
)
def test_what_has_no_answer_is_refused(formula, options, error, message):
    frame = panel().assign(level=lambda rows: 1.0 * rows["doc"])
    with pytest.raises(error, match=message):
        fit_lagged(frame, formula, **options)


WILD = {
    "x": (3.6253120835636024, 0.00297),
    "w": (-1.7814497196088726, 0.30516),
}  # wildboottest 0.3.2, type "31", Webb


@pytest.mark.parametrize("term", WILD)
def test_wildboottest_says_the_same(term):
    table = wild_bootstrap(fit_lagged(panel(), "y ~ x + w"), term, draws=40_000)
    statistic, p = WILD[term]  # of 99,999 draws
    np.testing.assert_allclose(table["statistic"], statistic, rtol=1e-9)
    # Four standard errors of the difference of both simulations.
    assert abs(table["p_value"].item() - p) < 4 * np.sqrt(p * (1 - p) * (1 / 40_000 + 1 / 99_999))


def test_the_wild_bootstrap_of_effects_within_documents_is_that_of_their_dummies():
    absorbed = fit_lagged(panel(), "y ~ x + w", effects="doc")
    means = panel().groupby("doc")[["y", "x", "w"]].transform("mean")
    centred = panel().assign(**(panel()[["y", "x", "w"]] - means))
    tables = [
        wild_bootstrap(fits, "x", value=0.1, draws=500)
        for fits in (absorbed, fit_lagged(centred, "y ~ 0 + x + w"))
    ]
    assert tables[0]["p_value"].item() == tables[1]["p_value"].item()
    with pytest.raises(InputError, match="effects within documents only"):
        wild_bootstrap(fit_lagged(panel(), "y ~ x", effects="position"), "x")
    with pytest.raises(InputError, match=r"term must be one of .*; got 'X'"):
        wild_bootstrap(absorbed, "X")


def test_augment_knows_no_levels_of_new_documents():
    fits = fit_lagged(panel(), "y ~ x", effects="doc")
    with pytest.raises(InputError, match="needs the frame that was fitted"):
        fits.augment(panel().assign(x=0.5 * panel()["x"]))
