# %% [markdown]
# Question: do fit_lagged's intervals and p values keep their promises when documents are few, of unequal length, and
# differ in how strongly an update follows from the ones before it? And how often does some layer of twelve come out
# significant where nothing is?
#
# Simulated, since only then is the right answer known. In document d
#     log_norm[t] = b1[d] log_norm[t-1] + b2[d] log_norm[t-2] + e[t],    e normal with variance 1,
# and a toss of a coin makes b1 + .1 or b1 - .1 of it, in all layers alike: tokens of one document err together, as they
# do in texts. Lengths are lognormal (median 60 tokens, sd of logs .8, cut at 15 and 400), so that a few documents have
# most of the tokens. Layers l and m have errors that correlate by .9^|l - m|. What least squares on all documents
# estimates, the pooled coefficients, follows from the two kinds' autocovariances.
#
# Then: which estimator finds b1 + b2 where documents have levels, slopes and a trend in common? Each table prints what
# a referee's own simulation gave beside ours; his designs are known in words only ("harsh": t errors, documents' levels
# and slopes, variances of token types, a sink), so that those rows agree in kind.
#
# Runs in seconds with few replications, which decide nothing; `python analyses/06_coverage.py --replications 500`
# (half an hour) is what the figure was drawn from; `--tables` prints the two tables alone.

# %%
import argparse
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType
from scipy import stats

import mechreg as mr
from mechreg.charts.theme import OKABE_ITO, PALE_INK, figure_title

FIGURES = Path(__file__).resolve().parents[1] / "figures"
DOCUMENTS = (10, 30, 100)
LAYERS = 12
LEVEL = 0.05
SPREAD = 0.1
UNEVEN = 0.8  # sd of the log lengths
# Both kinds of documents, (b1, b2) each. Without an effect b2 is what makes the autocovariance at lag 2 zero, so that
# both pooled coefficients are zero while the documents' own b1 are not.
EFFECT = ((0.4 + SPREAD, 0.2), (0.4 - SPREAD, 0.2))
NO_EFFECT = tuple((b1, (1 - np.sqrt(1 + 4 * SPREAD**2)) / 2) for b1 in (SPREAD, -SPREAD))
COVARIANCES = {"crv3": "crv3, effective df", "crv1": "crv1, t(G-1)", "nonrobust": "tokens independent"}
ADJUSTMENTS = {"none": "unadjusted", "bh": "Benjamini-Hochberg", "max-t": "max-T"}

# What a referee found, in percent: crv1, crv3 with t(G - 1), crv3, WCR-S; and the length of crv3's interval over that
# with t(G - 1). Of 1,500 replications.
REFEREE_COVERAGE = {
    ("mild", 6): (88.5, 91.7, 96.1, 94.9, 1.40),
    ("mild", 10): (90.5, 91.9, 94.7, 94.6, 1.18),
    ("mild", 30): (92.9, 94.0, 94.9, 95.5, 1.04),
    ("mild", 100): (94.1, 94.4, 94.4, 95.2, 1.01),
    ("harsh", 10): (85.3, 92.3, 95.5, 93.0, 1.46),
    ("harsh", 30): (88.9, 92.3, 94.1, 93.9, 1.21),
    ("harsh", 100): (92.0, 93.2, 93.6, 94.1, 1.10),
    ("equal lengths", 10): (94.2, 94.5, 94.9, 94.3, 1.004),
}
# b1 + b2, truly .6: pooled, document effects, document and position effects, mean group without and with the jackknife.
REFEREE_ESTIMATES = {
    "levels and slopes, T 230": (0.80, 0.62, 0.62, 0.58, 0.60),
    "trend only": (0.77, 0.76, 0.59, 0.58, 0.60),
    "all three": (0.85, 0.77, 0.62, 0.58, 0.60),
    "all three, T 60": (0.84, 0.74, 0.58, 0.52, 0.60),
    "all three, lognormal T": (0.86, 0.76, 0.59, 0.50, 0.61),
}

Kinds = Sequence[tuple[float, float]]


def pooled_coefficients(kinds: Kinds) -> dict[str, float]:
    """Return what least squares on all documents tends to: the kinds' autocovariances, averaged, then solved."""
    left, right = np.zeros((2, 2)), np.zeros(2)
    for b1, b2 in kinds:
        rho1 = b1 / (1 - b2)
        rho2 = b1 * rho1 + b2
        variance = 1 / (1 - b1 * rho1 - b2 * rho2)
        left += variance * np.array([[1, rho1], [rho1, 1]])
        right += variance * np.array([rho1, rho2])
    return dict(zip(("lag1", "lag2"), np.linalg.solve(left, right).tolist(), strict=True))


def simulated(
    rng: np.random.Generator, *, documents: int, layers: int, kinds: Kinds, uneven: float = UNEVEN
) -> pd.DataFrame:
    """Return a lagged frame of so many documents in so many layers."""
    length = np.clip(rng.lognormal(np.log(60), uneven, documents), 15, 400).astype(int)
    b1, b2 = np.array(kinds)[rng.integers(0, 2, documents)].T
    before = 50  # tokens that are forgotten, so that documents begin anywhere
    log_norm = rng.normal(size=(layers, documents, before + length.max()))
    for layer in range(1, layers):
        log_norm[layer] = 0.9 * log_norm[layer - 1] + np.sqrt(1 - 0.9**2) * log_norm[layer]
    for token in range(2, log_norm.shape[-1]):
        log_norm[..., token] += b1 * log_norm[..., token - 1] + b2 * log_norm[..., token - 2]
    doc, position = np.nonzero(np.arange(length.max()) < length[:, None])
    layer = np.repeat(np.arange(layers), len(doc))
    norms = pd.DataFrame(
        {
            "model": pd.Categorical.from_codes(np.zeros(len(layer), int), ["simulated"]),
            "hook": pd.Categorical.from_codes(np.zeros(len(layer), int), ["attn_out"]),
            "layer": layer,
            "depth": (layer + 0.5) / layers,
            "doc": np.tile(doc, layers),
            "window": 0,
            "position": np.tile(position, layers),
            "norm": np.exp(log_norm[:, doc, before + position]).ravel(),
        }
    )
    return mr.add_lags(norms, lags=(1, 2), skip=0)


def coverage(
    documents: int, replications: int, *, kinds: Kinds, seed: int, uneven: float = UNEVEN
) -> pd.DataFrame:
    """Return, for each covariance and lag, how often the interval of one layer holds the pooled coefficient."""
    rng = np.random.default_rng([seed, documents])
    truth = pooled_coefficients(kinds)
    held = []
    for _ in range(replications):
        frame = simulated(rng, documents=documents, layers=1, kinds=kinds, uneven=uneven)
        moments = mr.LagSums.from_frame(frame, max_lag=None)
        for cov in COVARIANCES:
            table = moments.coefficients(cov=cov, adjust="none", conf_level=1 - LEVEL).set_index("term")
            for term, right in truth.items():
                low, high = table.loc[term, ["conf_low", "conf_high"]]
                held.append((cov, term, low <= right <= high))
    return _rates(held, ["cov", "term"], documents)


def family_wise_error(documents: int, replications: int, *, seed: int) -> pd.DataFrame:
    """Return, for each adjustment, how often any lag of any layer has p < .05 where all pooled coefficients are 0."""
    rng = np.random.default_rng([seed, documents])
    found = []
    for replication in range(replications):
        frame = simulated(rng, documents=documents, layers=LAYERS, kinds=NO_EFFECT)
        moments = mr.LagSums.from_frame(frame, max_lag=None)
        for adjust in ADJUSTMENTS:
            table = moments.coefficients(cov="crv3", adjust=adjust, seed=replication)
            found.append((adjust, bool((table["p_adjusted"] <= LEVEL).any())))
    return _rates(found, ["adjust"], documents)


def harsh(rng: np.random.Generator, documents: int) -> pd.DataFrame:
    """Return documents with levels and slopes of their own, heavy-tailed errors, token types' variances and sinks."""
    length = np.clip(rng.lognormal(np.log(60), UNEVEN, documents), 15, 400).astype(int)
    shape = (documents, 50 + length.max())
    spread = np.exp(0.5 * rng.normal(size=40))[rng.zipf(1.5, shape) % 40]
    error = spread * rng.standard_t(3, shape) / np.sqrt(3)
    return _documents(rng, length, error, level=0.2, slope=0.1, sinks=0.002)


@cache
def harsh_truth(seed: int) -> float:
    """Return the pooled lag1 of so many harsh documents that its error does not count."""
    sums = mr.LagSums.from_frame(harsh(np.random.default_rng(seed), 3000), max_lag=None)
    return float(sums.coefficients(cov="crv1")["estimate"][1])


def drifting(rng: np.random.Generator, design: str, documents: int = 60) -> pd.DataFrame:
    """Return documents of one of the designs of the table of estimators."""
    level, slope, trend = (0.0, 0.0, 3.9) if design == "trend only" else (0.35, 0.11, 3.9)
    trend = 0.0 if design.startswith("levels") else trend
    length = np.full(documents, 60 if design.endswith("60") else 230)
    if design.endswith("lognormal T"):
        length = np.clip(rng.lognormal(np.log(60), UNEVEN, documents), 15, 400).astype(int)
    error = rng.normal(size=(documents, 50 + length.max()))
    return _documents(rng, length, error, level=level, slope=slope, trend=trend)


def _documents(
    rng: np.random.Generator,
    length: np.ndarray,
    error: np.ndarray,
    *,
    level: float,
    slope: float,
    trend: float = 0.0,
    sinks: float = 0.0,
) -> pd.DataFrame:
    """Return a lagged frame of documents with b1 + b2 = .6 on average; a common trend fades with the position."""
    documents, own = len(length), level * rng.normal(size=len(length))
    first = 0.4 + slope * np.sqrt(3) * rng.uniform(-1, 1, documents)
    values = error
    for t in range(2, values.shape[1]):
        values[:, t] += own + first * values[:, t - 1] + 0.2 * values[:, t - 2]
    values = values[:, 50:] + trend * np.exp(-np.arange(length.max()) / 40)
    values = values + 6.0 * (rng.random(values.shape) < sinks)
    doc, position = np.nonzero(np.arange(length.max()) < length[:, None])
    place = {"model": "simulated", "hook": "attn_out", "layer": 0, "depth": 0.5, "doc": doc, "window": 0}
    norms = pd.DataFrame(place | {"position": position, "norm": np.exp(values[doc, position])})
    return mr.add_lags(norms, lags=(1, 2), skip=0)


def coverage_of(design: str, documents: int, replications: int, *, seed: int) -> tuple[float, ...]:
    """Return coverage in percent of lag1's four intervals, and the length of crv3's over that with t(G - 1)."""
    rng = np.random.default_rng([seed, documents])
    truth = harsh_truth(seed) if design == "harsh" else pooled_coefficients(EFFECT)["lag1"]
    rows = []
    for replication in range(replications):
        uneven = 0.0 if design == "equal lengths" else UNEVEN
        frame = (
            harsh(rng, documents)
            if design == "harsh"
            else simulated(rng, documents=documents, layers=1, kinds=EFFECT, uneven=uneven)
        )
        sums = mr.LagSums.from_frame(frame, max_lag=None)
        crv1, crv3 = (sums.coefficients(cov=cov).set_index("term").loc["lag1"] for cov in ("crv1", "crv3"))
        off = abs(crv3["estimate"] - truth)
        usual = stats.t.ppf(0.975, documents - 1)
        half = stats.t.ppf(0.975, crv3["df"])
        wild = mr.regression.wild_bootstrap(sums, "lag1", value=truth, draws=399, seed=replication)
        rows.append(
            [
                off < usual * crv1["std_error"],
                off < usual * crv3["std_error"],
                off < half * crv3["std_error"],
                wild["p_value"].item() > LEVEL,
                half / usual / 100,
            ]
        )
    return tuple(100 * np.mean(rows, axis=0))


def estimates_of(design: str, replications: int, *, seed: int) -> tuple[float, ...]:
    """Return the mean of b1 + b2 by every estimator."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(replications):
        frame = drifting(rng, design)
        table = mr.regression.mean_group(frame)
        of_documents = mr.LagSums.from_frame(frame, effects="doc", max_lag=None).coefficients(cov="crv1")
        sums = table[["pooled", "within", "uncorrected", "estimate"]].sum().tolist()
        rows.append([sums[0], of_documents["estimate"].sum(), *sums[1:]])
    return tuple(np.mean(rows, axis=0))


def print_tables(replications: int, *, seed: int) -> None:
    """Print both tables, ours beside the referee's."""
    print(f"Coverage of 95% intervals for lag1 in %, {replications} replications, ours (the referee's):")
    print("crv1, crv3 with t(G-1), crv3, WCR-S, length of crv3's interval over that with t(G-1)")
    for (design, documents), theirs in REFEREE_COVERAGE.items():
        ours = coverage_of(design, documents, replications, seed=seed)
        pairs = [f"{own:5.1f} ({their})" for own, their in zip(ours[:4], theirs, strict=False)]
        print(f"{design:14} {documents:4} " + "  ".join([*pairs, f"{ours[4]:.2f} ({theirs[4]})"]), flush=True)
    few = max(2, replications // 5)
    print(f"\nb1 + b2, truly .60, {few} replications of 60 documents, ours (the referee's):")
    print("pooled, document effects, document and position effects, mean group, the same with the jackknife")
    for design, theirs in REFEREE_ESTIMATES.items():
        ours = estimates_of(design, few, seed=seed)
        pairs = [f"{own:.2f} ({their:.2f})" for own, their in zip(ours, theirs, strict=True)]
        print(f"{design:26} " + "  ".join(pairs), flush=True)


def _rates(events: list[tuple], keys: list[str], documents: int) -> pd.DataFrame:
    """Return how often each kind of event was true, and the Monte Carlo error of that."""
    rates = pd.DataFrame(events, columns=[*keys, "rate"]).groupby(keys, sort=False)["rate"]
    table = rates.mean().reset_index()
    replications = int(rates.size().iloc[0])
    error = np.sqrt(table["rate"] * (1 - table["rate"]) / replications)
    return table.assign(documents=documents, monte_carlo_error=error, replications=replications)


def figure(covered: pd.DataFrame, size: pd.DataFrame, families: pd.DataFrame) -> ChartType:
    """Return three panels: coverage with an effect, size without one, family-wise error."""
    replications = int(families["replications"].iloc[0])

    def panel(
        table: pd.DataFrame,
        key: str,
        names: dict[str, str],
        heading: str,
        promise: float,
        legend: bool = True,
    ) -> ChartType:
        marks = table.assign(
            method=table[key].map(names),
            low=(table["rate"] - 2 * table["monte_carlo_error"]).clip(lower=0),
            high=(table["rate"] + 2 * table["monte_carlo_error"]).clip(upper=1),
        )
        labels = list(names.values())
        colors = OKABE_ITO[:3] if key == "cov" else OKABE_ITO[3:6]
        key_below = alt.Legend(orient="bottom", direction="vertical", title=None, symbolSize=70)
        color = alt.Color(
            "method:N",
            scale=alt.Scale(domain=labels, range=list(colors)),
            legend=key_below if legend else None,
        )
        shape = alt.Shape(
            "method:N",
            scale=alt.Scale(domain=labels, range=["circle", "square", "triangle"]),
            legend=key_below if legend else None,
        )
        side = alt.XOffset("method:N", scale=alt.Scale(domain=labels, paddingOuter=0.7))
        room = [0.0 if promise < 0.5 else marks["low"].min() - 0.02, min(marks["high"].max() + 0.02, 1.0)]
        y = alt.Y("rate:Q", title=None, scale=alt.Scale(domain=room, zero=False, nice=False))
        x = alt.X("documents:O", title="documents", axis=alt.Axis(labelAngle=0))
        base = alt.Chart(marks).encode(x=x, xOffset=side, color=color)
        promised = alt.Chart(alt.Data(values=[{}])).mark_rule(color=PALE_INK, strokeDash=[4, 3])
        return alt.layer(
            promised.encode(y=alt.datum(promise)),
            base.mark_rule(strokeWidth=1.5).encode(y=alt.Y("low:Q", title=None), y2="high"),
            base.mark_point(filled=True, size=55, opacity=1).encode(
                y=y, shape=shape, tooltip=["method:N", "documents:O", alt.Tooltip("rate:Q", format=".3f")]
            ),
        ).properties(width=185, height=210, title=alt.Title(heading, fontSize=12, offset=8, frame="group"))

    lag1 = {"effect": covered.query("term == 'lag1'"), "none": size.query("term == 'lag1'")}
    size_of = lag1["none"].assign(rate=1 - lag1["none"]["rate"])
    return alt.hconcat(
        panel(lag1["effect"], "cov", COVARIANCES, "coverage of 95% intervals, lag1", 1 - LEVEL),
        panel(size_of, "cov", COVARIANCES, "size of 5% tests, lag1", LEVEL, legend=False),
        panel(families, "adjust", ADJUSTMENTS, f"any of {2 * LAYERS} tests at 5%, crv3", LEVEL),
        spacing=40,
        bounds="flush",
        title=figure_title(
            "What intervals and p values promise, and what they keep",
            [
                f"{replications:,} simulated corpora for every point; bars: two Monte Carlo standard errors; dashed: "
                "what is promised. Documents differ in length and in their own coefficients. Right: lag1 and lag2 of "
                f"{LAYERS} correlated layers where both are zero, unadjusted and adjusted."
            ],
        ),
        description=(
            "Rates by number of documents. Coverage of lag1: "
            + _in_words(lag1["effect"], "cov")
            + ". Size: "
            + _in_words(size_of, "cov")
            + ". Family-wise error: "
            + _in_words(families, "adjust")
            + "."
        ),
    ).resolve_scale(color="independent", shape="independent", xOffset="independent")


def _in_words(table: pd.DataFrame, key: str) -> str:
    wide = table.pivot(index=key, columns="documents", values="rate")
    return "; ".join(
        f"{name} " + ", ".join(f"{rate:.3f}" for rate in row)
        for name, row in zip(wide.index, wide.to_numpy(), strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Coverage, size and family-wise error, simulated.")
    parser.add_argument("--replications", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tables", action="store_true", help="the two tables alone")
    args = parser.parse_args()
    print_tables(args.replications, seed=args.seed + 3)
    if args.tables:
        return
    print()

    # %% One layer: does the interval hold the pooled coefficient?
    runs, seed = args.replications, args.seed
    covered = pd.concat([coverage(n, runs, kinds=EFFECT, seed=seed) for n in DOCUMENTS], ignore_index=True)
    size = pd.concat(
        [coverage(n, runs, kinds=NO_EFFECT, seed=seed + 1) for n in DOCUMENTS], ignore_index=True
    )
    truth = pooled_coefficients(EFFECT)
    wide = {"index": ["term", "cov"], "columns": "documents", "values": "rate"}
    print(f"Coverage of the pooled coefficients, lag1 {truth['lag1']:.3f} and lag2 {truth['lag2']:.3f}:")
    print(covered.pivot_table(**wide, sort=False).to_string(float_format="{:.3f}".format))
    print("\nSize, where both are zero:")
    print((1 - size.pivot_table(**wide, sort=False)).to_string(float_format="{:.3f}".format))

    # %% Twelve layers: does anything come out significant where nothing is?
    families = pd.concat([family_wise_error(n, runs, seed=seed + 2) for n in DOCUMENTS], ignore_index=True)
    wide["index"] = "adjust"
    print(f"\nFamily-wise error over {LAYERS} layers and two lags, crv3:")
    print(families.pivot_table(**wide, sort=False).to_string(float_format="{:.3f}".format))
    mr.save_chart(figure(covered, size, families), FIGURES / "coverage")

    # %% Is it the few documents, or the few long ones among them?
    few, many = DOCUMENTS[0], DOCUMENTS[-1]
    even = coverage(few, runs, kinds=EFFECT, seed=seed, uneven=0.0).query("cov == 'crv3' and term == 'lag1'")

    # %% Answer.
    def rate(table: pd.DataFrame, **which: object) -> float:
        for key, value in which.items():
            table = table[table[key] == value]
        (only,) = table["rate"]
        return float(only)

    held = {
        cov: [f"{rate(covered, documents=n, cov=cov, term='lag1'):.1%}" for n in (few, many)]
        for cov in COVARIANCES
    }
    print(
        f"\nOf {runs:,} intervals for lag1 that promise 95%, {held['crv3'][0]} hold with {few} documents and "
        f"{held['crv3'][1]} with {many} if clusters are documents (crv3), {held['crv1'][0]} and {held['crv1'][1]} with "
        f"crv1, {held['nonrobust'][0]} and {held['nonrobust'][1]} if tokens are taken for independent. With {few} "
        f"documents of the same length crv3 holds {rate(even):.1%}."
    )
    errors = {
        adjust: [rate(families, documents=n, adjust=adjust) for n in DOCUMENTS] for adjust in ADJUSTMENTS
    }
    span = {adjust: f"{min(found):.1%} to {max(found):.1%}" for adjust, found in errors.items()}
    print(
        f"Where nothing is, at least one of {2 * LAYERS} unadjusted tests has p < .05 in {span['none']} of corpora; "
        f"after Benjamini-Hochberg one has in {span['bh']}, after max-T in {span['max-t']}. Two Monte Carlo standard "
        f"errors at 5% are {2 * np.sqrt(LEVEL * (1 - LEVEL) / runs):.1%}."
    )


if __name__ == "__main__":
    main()
