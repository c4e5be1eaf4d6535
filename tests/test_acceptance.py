"""The sums (`fit_lagged`) and statsmodels against numbers that we did not compute; `correct_digits` is their table.

NIST's Norris (as scipy ships it), Longley (statsmodels) and Wampler 1-5 (from their definition); Petersen's clustered
errors (statsmodels); Grunfeld by Stata and by R's summclust and sandwich (statsmodels); unbalanced and short panels by
R's plm::vcovNW (linearmodels). ``pytest -s`` prints the table.

Tolerances. Correct digits are -log10 of the relative error, 16 at most; asked are two or three fewer than measured, as
another build of LAPACK rounds otherwise, and never more than were printed: NIST certifies 15 (Wampler's noise, which
grows by 1e4, hides the coefficients), Stata's and R's tables have 7 to 8 in estimates and errors, plm's numbers 15.
Petersen prints four decimals: half a unit of the last.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import linearmodels
import numpy as np
import pandas as pd
import pytest
import scipy
import statsmodels
import statsmodels.api as sm
from oracle import by_statsmodels
from statsmodels.regression.tests.results import results_grunfeld_ols_robust_cluster as grunfeld_results

from mechreg.regression import fit_lagged
from mechreg.schema import NumericalError

ENGINES = {"statsmodels": by_statsmodels, "moments": fit_lagged}
ONE_GROUP = {"model": "m", "hook": "attn_out", "layer": 0}

LONGLEY_ESTIMATES = [-3482258.63459582, 15.0618722713733, -0.358191792925910e-01, -2.02022980381683]
LONGLEY_ESTIMATES += [-1.03322686717359, -0.511041056535807e-01, 1829.15146461355]
LONGLEY_ERRORS = [890420.383607373, 84.9149257747669, 0.334910077722432e-01, 0.488399681651699]
LONGLEY_ERRORS += [0.214274163161675, 0.226073200069370, 455.478499142212]
WAMPLER_NOISE = np.array([759, -2048, 2048, -2048, 2523, -2048, 2048, -2048, 1838, -2048, 2048], float)
WAMPLER_NOISE = np.r_[WAMPLER_NOISE, WAMPLER_NOISE[-2::-1]]
WAMPLER_ERRORS = np.array(
    [
        2152.32624678170,
        2363.55173469681,
        779.343524331583,
        101.475507550350,
        5.64566512170752,
        0.112324854679312,
    ]
)
POLYNOMIAL = "y ~ x + I(x**2) + I(x**3) + I(x**4) + I(x**5)"
FILIP = json.loads("""[
[0.8116,-6.860120914],[0.9072,-4.324130045],[0.9052,-4.358625055],[0.9039,-4.358426747],[0.8053,-6.955852379],
[0.8377,-6.661145254],[0.8667,-6.355462942],[0.8809,-6.118102026],[0.7975,-7.115148017],[0.8162,-6.815308569],
[0.8515,-6.519993057],[0.8766,-6.204119983],[0.8885,-5.853871964],[0.8859,-6.109523091],[0.8959,-5.79832982],
[0.8913,-5.482672118],[0.8959,-5.171791386],[0.8971,-4.851705903],[0.9021,-4.517126416],[0.909,-4.143573228],
[0.9139,-3.709075441],[0.9199,-3.499489089],[0.8692,-6.300769497],[0.8872,-5.953504836],[0.89,-5.642065153],
[0.891,-5.031376979],[0.8977,-4.680685696],[0.9035,-4.329846955],[0.9078,-3.928486195],[0.7675,-8.56735134],
[0.7705,-8.363211311],[0.7713,-8.107682739],[0.7736,-7.823908741],[0.7775,-7.522878745],[0.7841,-7.218819279],
[0.7971,-6.920818754],[0.8329,-6.628932138],[0.8641,-6.323946875],[0.8804,-5.991399828],[0.7668,-8.781464495],
[0.7633,-8.663140179],[0.7678,-8.473531488],[0.7697,-8.247337057],[0.77,-7.971428747],[0.7749,-7.676129393],
[0.7796,-7.352812702],[0.7897,-7.072065318],[0.8131,-6.774174009],[0.8498,-6.478861916],[0.8741,-6.159517513],
[0.8061,-6.835647144],[0.846,-6.53165267],[0.8751,-6.224098421],[0.8856,-5.910094889],[0.8919,-5.598599459],
[0.8934,-5.290645224],[0.894,-4.974284616],[0.8957,-4.64454848],[0.9047,-4.290560426],[0.9129,-3.885055584],
[0.9209,-3.408378962],[0.9219,-3.13200249],[0.7739,-8.726767166],[0.7681,-8.66695597],[0.7665,-8.511026475],
[0.7703,-8.165388579],[0.7702,-7.886056648],[0.7761,-7.588043762],[0.7809,-7.283412422],[0.7961,-6.995678626],
[0.8253,-6.691862621],[0.8602,-6.392544977],[0.8809,-6.067374056],[0.8301,-6.684029655],[0.8664,-6.378719832],
[0.8834,-6.065855188],[0.8898,-5.752272167],[0.8964,-5.132414673],[0.8963,-4.811352704],[0.9074,-4.098269308],
[0.9119,-3.66174277],[0.9228,-3.2644011]]""")

# Least digits of (estimates, standard errors, statistics) that are asked of each engine.
ASKED = {
    "Norris": {"statsmodels": (12, 11, 11), "moments": (12, 11, 11)},
    "Longley": {"statsmodels": (10, 11, 11), "moments": (12, 12, 12)},
    "Wampler 1": {"statsmodels": (9, None, None), "moments": (11, None, None)},
    "Wampler 2": {"statsmodels": (9, None, None), "moments": (11, None, None)},
    "Wampler 3": {"statsmodels": (9, 10, None), "moments": (11, 12, None)},
    "Wampler 4": {"statsmodels": (9, 10, None), "moments": (10, 12, None)},
    "Wampler 5": {"statsmodels": (8, 10, None), "moments": (8, 11, None)},
    "Petersen, White": dict.fromkeys(ENGINES, (None, 2.5, None)),
    "Petersen, by firm": dict.fromkeys(ENGINES, (None, 2.5, None)),
    "Petersen, by year": dict.fromkeys(ENGINES, (None, 2.5, None)),
    "Grunfeld, Stata cluster": dict.fromkeys(ENGINES, (6, 6, 6)),
    "Grunfeld, Stata newey lag(4)": dict.fromkeys(ENGINES, (6, 6, 6)),
    "Grunfeld, R summclust CRV3": dict.fromkeys(ENGINES, (6, 6, 6)),
    "Grunfeld, R sandwich vcovJK": dict.fromkeys(ENGINES, (6, 6, 6)),
    "Grunfeld, R summclust jackknife": dict.fromkeys(ENGINES, (6, 6, 6)),
    "plm vcovNW, unbalanced": dict.fromkeys(ENGINES, (None, 9, None)),
    "plm vcovNW, short": dict.fromkeys(ENGINES, (None, 9, None)),
}


def packaged(package, path) -> Path:
    return Path(package.__file__).parent / path


def digits(ours, theirs) -> float:
    """Return the smallest number of correct digits."""
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    error = np.abs(ours - theirs) / np.where(theirs == 0, 1, np.abs(theirs))
    return float(-np.log10(np.maximum(error, 1e-16)).min())


Found = tuple[float | None, float | None, float | None]


def norris(engine) -> Iterator[tuple[str, Found]]:
    lines = packaged(scipy, "stats/tests/data/nist_linregress/Norris.dat").read_text().splitlines()
    y, x = np.array([line.split() for line in lines[60:96]], float).T
    fits = engine(pd.DataFrame({**ONE_GROUP, "y": y, "x": x}), "y ~ x", cov="nonrobust")
    row = fits.statistics.iloc[0]
    statistics = digits(
        row[["residual_sd", "r_squared", "f_statistic"]].astype(float),
        [0.884796396144373, 0.999993745883712, 5436385.54079785],
    )
    yield (
        "Norris",
        (
            digits(fits.coefficients["estimate"], [-0.262323073774029, 1.00211681802045]),
            digits(fits.coefficients["std_error"], [0.232818234301152, 0.429796848199937e-03]),
            statistics,
        ),
    )


def longley(engine) -> Iterator[tuple[str, Found]]:
    data = sm.datasets.longley.load_pandas().data.assign(**ONE_GROUP)
    formula = "TOTEMP ~ GNPDEFL + GNP + UNEMP + ARMED + POP + YEAR"
    fits = engine(data, formula, cov="nonrobust")
    row = fits.statistics.iloc[0]
    statistics = digits(
        row[["residual_sd", "r_squared", "f_statistic"]].astype(float),
        [304.854073561965, 0.995479004577296, 330.285339234588],
    )
    assert fits.coefficients["df"].eq(9).all()
    yield (
        "Longley",
        (
            digits(fits.coefficients["estimate"], LONGLEY_ESTIMATES),
            digits(fits.coefficients["std_error"], LONGLEY_ERRORS),
            statistics,
        ),
    )


def wampler(engine) -> Iterator[tuple[str, Found]]:
    x = np.arange(21.0)
    for number, (base, noise) in enumerate(((1, 0), (10, 0), (1, 1), (1, 100), (1, 1e4)), 1):
        y = sum((x / base) ** k for k in range(6)) + noise * WAMPLER_NOISE
        frame = pd.DataFrame({**ONE_GROUP, "y": y, "x": x})
        table = engine(frame, POLYNOMIAL, cov="nonrobust").coefficients
        right = np.array([float(base) ** -k for k in range(6)])
        if not noise:  # certified as zero
            assert (table["std_error"] < 1e-7 * right).all()
        errors = digits(table["std_error"], noise * WAMPLER_ERRORS) if noise else None
        yield f"Wampler {number}", (digits(table["estimate"], right), errors, None)


def petersen(engine) -> Iterator[tuple[str, Found]]:
    frame = pd.read_csv(
        packaged(statsmodels, "stats/tests/test_data.txt"), sep=r"\s+", names=["firm", "year", "x", "y"]
    ).assign(**ONE_GROUP)
    for name, cov, cluster, printed in (  # Petersen's page: standard errors of the constant and of x
        ("White", "hc0", "firm", (0.0284, 0.0284)),
        ("by firm", "crv1", "firm", (0.0670, 0.0506)),
        ("by year", "crv1", "year", (0.0234, 0.0334)),
    ):
        table = engine(frame, "y ~ x", cov=cov, cluster=cluster).coefficients
        np.testing.assert_allclose(table["std_error"], printed, rtol=0, atol=5e-5)
        if cov == "crv1":
            assert table["df"].eq(frame[cluster].nunique() - 1).all()
            assert table["cov_type"].eq(f"crv1 ({cluster})").all()
        yield f"Petersen, {name}", (None, digits(table["std_error"], printed), None)


def grunfeld(engine) -> Iterator[tuple[str, Found]]:
    data = sm.datasets.grunfeld.load_pandas().data.iloc[:200]
    frame = data.assign(**ONE_GROUP, doc=data["firm"], window=0, position=data["year"].astype(int))
    for name, cov, reference in (
        ("Stata cluster", "crv1", grunfeld_results.results_cluster),
        ("Stata newey lag(4)", "hac", grunfeld_results.results_nw_panel4),
        ("R summclust CRV3", "crv3", grunfeld_results.results_cluster_crv3),
        ("R sandwich vcovJK", "crv3", grunfeld_results.results_cluster_crv3_sandwich_r),
        ("R summclust jackknife", "jackknife", grunfeld_results.results_cluster_crv_jk),
    ):
        lags: dict[str, Any] = {"hac_lags": 4} if cov == "hac" else {}
        table = engine(frame, "invest ~ value + capital", cov=cov, **lags).coefficients
        table = table.set_index("term").loc[["value", "capital", "Intercept"]]
        theirs = pd.DataFrame(reference.params_table).to_numpy()
        if cov in ("crv1", "hac"):  # R's tables have t(G - 1) for all
            np.testing.assert_allclose(table["p_value"], theirs[:, 3], rtol=1e-5)
            np.testing.assert_allclose(table[["conf_low", "conf_high"]], theirs[:, 4:6], rtol=1e-6)
            assert table["df"].eq(197 if cov == "hac" else 9).all()
        columns = ("estimate", "std_error", "statistic")
        yield (
            f"Grunfeld, {name}",
            tuple(digits(table[column], theirs[:, i]) for i, column in enumerate(columns)),  # type: ignore[misc]
        )


def plm(engine) -> Iterator[tuple[str, Found]]:
    # Bandwidths up to beyond the longest of the short windows; plm has no small-sample factor, we n/(n-k).
    folder = packaged(linearmodels, "tests/panel/results")
    for name, file, lags in (
        ("unbalanced", "ac-covariance", (0, 1, 2, 3)),
        ("short", "ac-short-entities", (1, 2, 3, 5, 8, 10)),
    ):
        panel = pd.read_csv(folder / f"{file}-panel.csv")
        reference = pd.read_csv(folder / f"{file}-reference.csv").rename(columns={"maxlag": "bandwidth"})
        reference = reference[(reference["model"] == "pooling") & (reference["row"] == reference["column"])]
        if "kernel" in reference:
            reference = reference[reference["kernel"] == "bartlett"]
        frame = panel.assign(**ONE_GROUP, doc=panel["entity"], window=0, position=panel["time"])
        found = []
        for bandwidth in lags:
            table = engine(frame, "y ~ x1 + x2", cov="hac", hac_lags=bandwidth).coefficients
            ours = table["std_error"] * np.sqrt((len(frame) - 3) / len(frame))
            theirs = reference.loc[reference["bandwidth"] == bandwidth, "value"]
            found.append(digits(ours, np.sqrt(theirs)))
            assert table["cov_type"].eq(f"hac({bandwidth})").all()
        yield f"plm vcovNW, {name}", (None, min(found), None)


CASES = (norris, longley, wampler, petersen, grunfeld, plm)


def correct_digits(engines=ENGINES, cases=CASES) -> pd.DataFrame:
    """Return the smallest number of correct digits of every data set and engine; NaN where nothing is known."""
    table = pd.DataFrame(
        [
            {
                "data": data,
                "engine": engine,
                "estimate": found[0],
                "std_error": found[1],
                "statistics": found[2],
            }
            for case in cases
            for engine in engines
            for data, found in case(ENGINES[engine])
        ]
    )
    return table.astype(dict.fromkeys(("estimate", "std_error", "statistics"), float))


@pytest.fixture(scope="session")
def collected() -> Iterator[list[pd.DataFrame]]:
    """Collect the tables of the session's cases and print them as one (seen with ``-s``)."""
    tables: list[pd.DataFrame] = []
    yield tables
    if tables:
        whole = pd.concat(tables).set_index(["data", "engine"]).unstack("engine", sort=False)
        print(
            "\nCorrect digits, the smallest of each\n"
            + whole.to_string(float_format="{:.1f}".format, na_rep="")
        )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_correct_digits(case, collected):
    table = correct_digits(cases=(case,))
    collected.append(table)
    for row in table.to_dict("records"):
        found = [row["estimate"], row["std_error"], row["statistics"]]
        for have, asked in zip(found, ASKED[row["data"]][row["engine"]], strict=True):
            assert asked is None or have >= asked, row


def test_every_case_is_asked_for_something():
    assert set(correct_digits(engines=("moments",))["data"]) == set(ASKED)


def test_filip_is_refused_and_not_answered_wrongly():
    y, x = np.array(FILIP).T
    frame = pd.DataFrame({**ONE_GROUP, "y": y, "x": x})
    formula = POLYNOMIAL + "".join(f" + I(x**{k})" for k in range(6, 11))
    with pytest.raises(
        NumericalError, match=r"model m, hook attn_out, layer 0 they are collinear \(condition"
    ):
        fit_lagged(frame, formula, cov="nonrobust")
    # The same parabola space, well conditioned, is answered: it is not the number of terms that is refused.
    fits = fit_lagged(frame, "y ~ bs(x, df=10)", cov="nonrobust")
    assert fits.statistics["r_squared"].item() > 0.99
