"""A formula is data: hostile ones are refused before anything runs, right ones mean what statsmodels takes them for."""

import time
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from oracle import by_statsmodels

import mechreg as mr
from mechreg.formulas import formula_columns, names_in, spline_width
from mechreg.regression.evaluation import environment, plain_column
from mechreg.schema import InputError, NumericalError
from mechreg.spec import Spec, parse_spec

# Every one of these ran, or would run if the list let it: the file RAN must not appear.
HOSTILE = [
    # the three that ran
    "I(lag1 * len(str(max([\"__import__('os').system('touch RAN')\"], key=Q(name='__builtins__')['eval']))))",
    "Q(*['__builtins__'])['open']('RAN', 'w')",
    "Q('__builtins' + '__')['open']('RAN', 'w')",
    # names of the interpreter
    "__import__('os').system('touch RAN')",
    "__builtins__['open']('RAN', 'w')",
    "Q('__builtins__')",
    "__builtins__",
    "__name__ == lag1",
    "open('RAN', 'w')",
    "eval(\"open('RAN', 'w')\")",
    "exec('import os')",
    "getattr(lag1, 'to_pickle')('RAN')",
    "globals()",
    "np",
    "I(np)",
    "I(lag1 * len(str(max(['RAN'], key=open))))",
    # ways to a name without saying it
    "Q(f'__{\"builtins\"}__')",
    "Q(name='lag1')",
    "Q(**{'name': '__builtins__'})",
    "Q(Q('lag1'))",
    "Q()",
    "Q('lag1', 'lag2')",
    "Q(b'lag1')",
    "Q('')",
    "C(*[lag1])",
    "I(**{'x': lag1})",
    # attributes and subscripts
    "lag1.to_pickle('RAN')",
    "lag1.to_csv('RAN')",
    "lag1.map(open)",
    "lag1.apply(eval)",
    "lag1.pipe(eval)",
    "lag1.agg('to_pickle')",
    "lag1.__class__",
    "lag1.values.tofile('RAN')",
    "lag1.mean.__globals__",
    "().__class__.__base__.__subclasses__()",
    "np.save('RAN', lag1)",
    "np.ndarray.tofile(lag1, 'RAN')",
    "np.lib.npyio.os.system('touch RAN')",
    "np.ufunc.__subclasses__()",
    "np.fromfile('RAN')",
    "np.memmap('RAN', mode='w+', shape=1)",
    "np.frompyfunc(open, 2, 1)('RAN', 'w')",
    "np.vectorize(open)('RAN', 'w')",
    "np.log.outer(lag1, lag1)",
    "np.add.at(lag1, 0, 1)",
    "np.add(lag1, lag2, log_norm)",  # writes into a column
    "np.log(lag1, out=log_norm)",
    "np.where(lag1 > 0, open, eval)('RAN')",
    "lag1[0]",
    "[exec][0](\"open('RAN', 'w')\")",
    "{'a': open}['a']('RAN', 'w')",
    # syntax
    "I((lambda f: f('RAN', 'w'))(open))",
    "[open('RAN', 'w') for _ in [1]]",
    "I([*lag1])",
    "I(f'{open(chr(82))}')",
    "I((x := lag1))",
    "I(lag1 if lag1 else open)",
    "I('%s' % lag1)",
    "I('a' * 1000000000)",
    "I('{0.__class__}'.format(lag1))",
    "I((yield lag1))",
    "I(await_ if True else 1)",
    "I(lag1 @ lag1)",
    "I(1 << 99999999999)",
    "I(lag1 and lag2)",
    "I(not lag1)",
    "I(0 < lag1 < 1)",
    "I(lag1 in [1])",
    "I(lag1 is None)",
    "I(...)",
    "I(1j * lag1)",
    # what would fill the memory or the time
    "I(lag1 + 9**9**9)",
    "I(lag1**9**9**9)",
    "lag1**9**9**9",
    "I(lag1 * 1e400)",
    "I(lag1 * (9**9)**(9**9))",
    f"({' + '.join(f'x{i}' for i in range(30))})**50",
    "*".join(f"x{i}" for i in range(40)),
    "((lag1 + lag2)**999999999)**999999999",
    f"I({'(' * 400}lag1{')' * 400})",
    f"I({'-' * 5000}lag1)",
    "a:" * 3000 + "b",
    "lag1" + " + lag1" * 4000,
    "bs(position, df=2000)",
    "bs(position, df=lag1)",
    "bs(position, degree=10**9)",
    f"bs(position, knots=[{', '.join(map(str, range(2000)))}])",
    "te(bs(lag1, df=90), bs(lag2, df=90))",
    "te(*[cr(lag1, df=9)] * 9)",
    "te(lag1, lag2)",
    "te()",
    "I(bs(lag1, df=4) * lag2)",  # pandas would align rows with columns
    "I(C(doc) * 2)",
    # arguments that no signature has
    "lag1.std(axis=0)",
    "lag1.std(0)",
    "np.std(lag1, 0)",
    "lag1.rank(0)",
    "lag1.abs(1)",
    "lag1.quantile()",
    "lag1.quantile(lag2)",
    "I(lag1 / lag1.quantile(2))",
    "I(lag1 / np.percentile(lag1, -1))",
    "lag1.rank(method='nope')",
    "lag1.rank(method=open)",
    "np.searchsorted([1], lag1, side='both')",
    "cr(lag1, df=4, constraints=open)",
    "C(source, levels=[open])",
    "te(cr(lag1, df=4), constraints=open)",
    "np.char.multiply('a', 10)",
    "__\uff42uiltins__",  # Python reads it as __builtins__
    "lag1.astype(open)",
    "lag1.astype('object')",
    "lag1.isin(lag2)",
    "center(lag1, lag2)",
    "C(source, open)",
    "C(source, Treatment(lag1))",
    "C(source, contrast=Sum, contrast2=1)",
    "np.repeat(lag1, 1000000000)",
    "np.tile(lag1, 1000000000)",
    "np.ones(1000000000)",
    "lag1.repeat(1000000000)",
    # what is one number, or shifts rows
    "I(lag1.mean())",
    "lag1.median() * lag2",
    "I(1)",
    "lag1.shift(1)",
    "lag1.diff()",
    "lag1**2",  # patsy reads it as lag1
]


@pytest.mark.parametrize("term", HOSTILE)
def test_a_hostile_formula_is_refused_when_it_is_read(term, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    formula = f"log_norm ~ lag1 + {term}"
    began = time.perf_counter()
    for read in (
        formula_columns,
        mr.LagSums,
        lambda f: Spec(models=("m",), corpus="demo", formula=f),
        lambda f: mr.fit_lagged(pd.DataFrame(), f),
        lambda f: formula_columns(f"{term} ~ lag1"),
    ):
        with pytest.raises(InputError, match="formula") as refused:
            read(formula)
        assert len(str(refused.value).splitlines()) == 1
    assert time.perf_counter() - began < 20
    assert not list(tmp_path.iterdir())


def test_a_hostile_spec_is_refused_before_anything_is_loaded():
    text = f"models = ['nowhere']\ncorpus = 'nothing.txt'\nformula = '''log_norm ~ {HOSTILE[0]}'''\n"
    with pytest.raises(InputError, match="calls 'str', which is not known"):
        parse_spec(text)


@pytest.mark.parametrize("name", ["open", "__import__", "eval", "float", "print", "__builtins__", "Spec"])
def test_what_a_formula_is_evaluated_in_has_no_builtins(name):
    # Where the check of the syntax let something through, there would still be nothing to call.
    with pytest.raises(NameError):
        environment().eval(f"{name}('RAN')" if name != "__builtins__" else "open")
    with pytest.raises(NameError):
        environment().subset(["np"]).eval("open('RAN', 'w')")
    assert not hasattr(environment().namespace["np"], "save")


# ---------------------------------------------------------------- what is right stays right


def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = 160
    norms = pd.DataFrame(
        {
            "model": "m", "hook": "attn_out", "layer": 0, "doc": np.repeat(["a", "b", "c", "d"], 40), "window": 0,
            "position": np.tile(range(40), 4), "norm": rng.lognormal(size=rows),
        }
    )  # fmt: skip
    return mr.add_lags(norms).assign(
        pos=rng.choice(["NOUN", "VERB", "ADP"], rows),
        source=pd.Categorical(rng.choice(["x", "y"], rows)),
        x=rng.normal(size=rows) + 3,
        whole=rng.integers(1, 5, rows).astype(np.int32),
        flag=rng.random(rows) > 0.5,
        **{"odd name": rng.normal(size=rows)},
    )


# A term, and the same column by numpy or pandas alone; None: the sums and statsmodels agree, and more is not asked.
ACCEPTED = [
    ("I(x / x.std())", lambda f: f.x / f.x.std(ddof=1)),
    ("I(x / x.std(ddof=0))", lambda f: f.x / np.std(f.x.to_numpy())),
    ("I(x / np.std(x))", lambda f: f.x / np.std(f.x.to_numpy())),
    ("I(x / np.std(x, ddof=1))", lambda f: f.x / f.x.std()),
    ("I(x - x.var())", lambda f: f.x - f.x.var(ddof=1)),
    ("I(lag2.abs())", lambda f: np.abs(f.lag2)),
    ("lag2.abs()", lambda f: np.abs(f.lag2)),
    ("x.rank()", lambda f: f.x.rank()),
    ("x.rank(pct=True)", lambda f: f.x.rank(pct=True)),
    ("I(x - x.median())", lambda f: f.x - np.median(f.x)),
    ("I(x / x.quantile(.25))", lambda f: f.x / np.quantile(f.x, 0.25)),
    ("I(x / np.percentile(x, 25))", lambda f: f.x / np.quantile(f.x, 0.25)),
    ("I(x - max(x) + min(x) * sum(x) / len(x))", lambda f: f.x - f.x.max() + f.x.min() * f.x.mean()),
    ("I((x > 2) & ~(lag2 > 0))", lambda f: ((f.x > 2) & ~(f.lag2 > 0)).astype(float)),
    ("C(pos == 'NOUN')", lambda f: (f.pos == "NOUN").astype(float)),
    ("pos.isin(['NOUN', 'ADP'])", lambda f: f.pos.isin(["NOUN", "ADP"]).astype(float)),
    ("np.isin(pos, ['NOUN'])", lambda f: (f.pos == "NOUN").astype(float)),
    ("np.where(pos == 'NOUN', x, 0)", lambda f: f.x.where(f.pos == "NOUN", 0)),
    ("C(np.where(x > 3, 'low', 'high'))", lambda f: (f.x > 3).astype(float)),
    ("np.digitize(position, [10, 30])", lambda f: np.digitize(f.position, [10, 30])),
    ("np.searchsorted([1, 5, 10], position)", lambda f: np.searchsorted([1, 5, 10], f.position)),
    ("x.clip(1, 3)", lambda f: f.x.clip(1, 3)),
    ("np.clip(x, 1, 3)", lambda f: f.x.clip(1, 3)),
    ("round(x, 1)", lambda f: f.x.round(1)),
    ("x.round(decimals=-1)", lambda f: f.x.round(-1)),
    ("np.cumsum(x)", lambda f: f.x.cumsum()),
    ("I(whole**30 / 4e16)", lambda f: f.whole.astype(float) ** 30 / 4e16),  # int32 would overflow
    ("I(-x % 2 + x // 1)", lambda f: -f.x % 2 + f.x // 1),
    ("I(2**x - 1.5e-3)", lambda f: 2**f.x - 0.0015),
    ("np.log1p(position)", lambda f: np.log1p(f.position)),
    ("np.maximum(x, lag2)", lambda f: np.maximum(f.x, f.lag2)),
    ("Q('odd name')", lambda f: f["odd name"]),
    ("flag", lambda f: f.flag.astype(float)),
    ("flag.astype('float')", lambda f: f.flag.astype(float)),
    ("standardize(x, ddof=1)", lambda f: (f.x - f.x.mean()) / f.x.std()),
    ("center(np.exp(x))", lambda f: np.exp(f.x) - np.exp(f.x).mean()),
    ("C(whole)", None),
    ("C(whole, Treatment(2))", None),
    ("C(pos, Treatment('VERB')) * lag2", None),
    ("C(pos, Sum):C(source) + C(pos, levels=['VERB', 'NOUN', 'ADP']):lag2", None),
    ("C(pos, [[1, 0], [0, 1], [-1, -1]])", None),
    ("C(whole, Poly(scores=[1, 2, 4, 8]))", None),
    ("(lag2 + x + pos)**2 - lag2:x", None),
    ("pos / x", None),
    ("bs(x, knots=[2, 3], degree=2, include_intercept=False)", None),
    ("cr(x, df=3, constraints='center')", None),
    ("te(cr(x, df=3), cr(lag2, df=3), constraints='center')", None),
    ("scale(x, rescale=False)", None),
]


@pytest.mark.parametrize(("term", "column"), ACCEPTED)
def test_the_sums_and_statsmodels_give_what_the_term_says(term, column):
    lagged = frame()
    found = [
        fit(lagged, f"log_norm ~ lag1 + {term}", cov="hc1").coefficients
        for fit in (by_statsmodels, mr.fit_lagged)
    ]
    assert found[0]["term"].tolist() == found[1]["term"].tolist()
    for number in ("estimate", "std_error", "r_squared"):
        np.testing.assert_allclose(found[0][number], found[1][number], rtol=1e-7, atol=1e-12)
    if column is not None:
        rows = lagged[lagged["lag2"].notna() if "lag2" in term else lagged["lag1"].notna()]
        design = np.column_stack([np.ones(len(rows)), rows["lag1"], np.asarray(column(rows), float)])
        expected = np.linalg.lstsq(design, rows["log_norm"].to_numpy(), rcond=None)[0]
        for coefficients in found:  # patsy puts categories before numbers
            by_term = coefficients.set_index("term")["estimate"]
            ours = [by_term.pop("Intercept"), by_term.pop("lag1"), *by_term]
            np.testing.assert_allclose(ours, expected, rtol=1e-7, atol=1e-10)


def test_levels_that_are_whole_numbers_are_named_so():
    lagged = frame()
    lagged["gaps"] = (
        lagged["whole"].astype(float).where(lagged["position"] != 5)
    )  # floats for the missing ones
    terms = mr.fit_lagged(lagged, "log_norm ~ C(whole) + x:C(gaps)", cov="hc1").coefficients
    assert {"C(whole)[T.2]", "x:C(gaps)[3]"} <= set(terms["term"])


@pytest.mark.parametrize(
    ("term", "error", "message"),
    [
        ("I(x * 1e300)", NumericalError, r"values up to .*e\+300, whose squares have no finite sum; scale"),
        ("I(x * 1e200)", NumericalError, "scale them down"),
        ("np.exp(1e3 * x)", NumericalError, "infinite values"),
        ("I(pos * 1000000000)", InputError, "unsupported operand"),  # text is not repeated
        ("I(pos + pos)", InputError, "unsupported operand"),
        ("C(doc_and_position)", InputError, "157 columns, at most 50"),
        ("C(whole) * C(doc_and_position)", InputError, r"columns, at most 50.*C\(doc_and_position\) alone"),
        ("C(np.floor(1000 * x))", InputError, "at most 50"),
        ("bs(x, df=30) * C(pos)", InputError, "at most 50"),
    ],
)
def test_what_cannot_be_fitted_is_one_sentence(term, error, message, monkeypatch):
    monkeypatch.setattr("mechreg.regression.evaluation.MAX_COLUMNS", 50)
    lagged = frame()
    lagged["doc_and_position"] = lagged["doc"] + lagged["position"].astype(str)
    lagged["x"] = lagged["x"].abs() + 0.1
    with pytest.raises(error, match=message):
        mr.fit_lagged(lagged, f"log_norm ~ {term}", cov="hc1")


def test_a_wide_design_is_refused_before_it_is_made():
    rows = 6_000
    lagged = pd.DataFrame(
        {
            "model": "m",
            "hook": "h",
            "layer": 0,
            "doc": np.arange(rows) // 60,
            "position": np.arange(rows) % 60,
        }
    ).assign(y=np.random.default_rng(0).normal(size=rows))
    for formula in ("y ~ C(doc) * C(position)", "y ~ C(doc):C(position)", "y ~ C(y)"):
        tracemalloc.start()
        with pytest.raises(InputError, match=r"its design has up to \d,\d{3} columns, at most 2,000"):
            mr.fit_lagged(lagged, formula, cov="nonrobust")
        assert tracemalloc.get_traced_memory()[1] < 30e6  # the design of the first has 288 MB
        tracemalloc.stop()


def test_sums_that_would_fill_the_memory_are_refused_first(monkeypatch):
    lagged = frame()
    lagged["piece"] = lagged["doc"].astype(str) + (lagged["position"] // 8).astype(str)
    monkeypatch.setattr("mechreg.regression.design.MAX_BYTES", 80_000)
    with pytest.raises(InputError, match="The sums of 21 terms in 20 clusters need"):
        mr.fit_lagged(lagged, "log_norm ~ x + C(piece)", cov="crv1", cluster="piece")
    monkeypatch.setattr("mechreg.regression.design.MAX_BYTES", 5_000)
    with pytest.raises(InputError, match="The sums of 21 terms in 20 combinations of categories need"):
        mr.fit_lagged(lagged, "log_norm ~ x + C(piece)", cov="nonrobust")


def test_what_a_factor_uses_and_how_wide_it_is():
    import ast

    assert names_in("np.where(Q('a b') > 0, lag1, np.log(x))") == ("a b", "lag1", "x")
    widths = {"bs(x, df=7)": 7, "bs(x, knots=[1, 2])": 7, "te(cr(x, df=5), cc(y, 4))": 20, "x": 1, "C(x)": 1}
    for code, width in widths.items():
        assert spline_width(ast.parse(code, mode="eval").body) == width


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (["a", "b"], "category"),
        (pd.array(["a", "b"], dtype="string"), "category"),
        ([1, 2], "float64"),
        (pd.array([1, 2], dtype="Int32"), "float64"),
        (np.array([1, 2], object), "float64"),
        ([True, False], "bool"),
        ([1, "a"], "object"),
    ],
)
def test_a_column_is_seen_in_one_dtype(values, dtype):
    assert plain_column(pd.Series(values)).dtype == dtype


@pytest.mark.parametrize("lags", [range(1, 1_000_001), iter(int, 1)])
def test_endless_lags_are_refused(lags):
    norms = frame()[["model", "hook", "layer", "doc", "window", "position", "norm"]]
    with pytest.raises(InputError, match="lags must be at most 256"):
        mr.add_lags(norms, lags=lags)


def test_a_spec_of_ten_thousand_lags_is_refused():
    with pytest.raises(InputError, match=r"lags must be at most 256.*10,000"):
        Spec(models=("m",), corpus="demo", lags=tuple(range(1, 10_001)))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (lambda x: x * (1 + 1j), "holds complex numbers"),
        (lambda x: x * 1e-160, "whose squares are not 0.*scale them up"),
    ],
)
def test_numbers_that_lose_digits_without_a_word_are_refused(column, message):
    lagged = frame()
    for formula in ("log_norm ~ z", "z ~ lag1"):
        with pytest.raises((InputError, NumericalError), match=message):
            mr.fit_lagged(lagged.assign(z=column(lagged["x"])), formula, cov="hc1")


def test_documents_that_widen_a_design_are_refused_in_a_whole_sentence(monkeypatch):
    monkeypatch.setattr("mechreg.regression.evaluation.MAX_COLUMNS", 50)
    lagged = frame()
    lagged["place"] = lagged["doc"].astype(str) + lagged["position"].astype(str)
    sums = mr.LagSums("log_norm ~ C(place)")

    def update() -> None:
        for _, document in lagged.groupby("doc"):
            sums.update(document)

    with pytest.raises(InputError, match=r"^The formula 'log_norm ~ C\(place\)' .*columns, at most 50"):
        update()
