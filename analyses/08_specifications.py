# %% [markdown]
# Question: does the coefficient of the update before (lag1) survive other reasonable regressions: levels of their own
# for documents and positions, documents' own slopes, more lags, word frequency and repetition, the first tokens kept?
# And how many lags are worth having?
#
# Some specifications change two things at once: more lags also leave out the first tokens that lack them, and the mean
# group has both effects and slopes of documents' own. Each is therefore compared with the one that it differs from in
# one thing; more lags with the baseline on the same rows.
#
# Runs on two miniatures and the whole demo corpus; `python analyses/08_specifications.py gpt2` where those weights can
# be loaded.

# %%
import sys
from pathlib import Path

import pandas as pd

import mechreg as mr

MODELS = sys.argv[1:] or ["mini-s", "mini-m"]
FIGURES = Path(__file__).resolve().parents[1] / "figures"

# %% One frame for all specifications: position 0 is left out as outcome and as lag, but where it is kept on purpose.
norms = mr.extract_norms(MODELS, mr.read_corpus("demo"), progress=False)
lagged = mr.add_lags(norms, lags=(1, 2), skip=1)
table = mr.specification_curve(lagged, "log_norm ~ lag1 + lag2")
mr.save_chart(mr.plot_specifications(table, term="lag1"), FIGURES / "specifications")

# %% What each differs from in one thing. The rows of four lags are fewer: the baseline is fitted on them as well.
SAME_ROWS = "baseline, rows of more_lags"
few = mr.add_lags(norms, lags=(1, 2, 3, 4), skip=1).dropna(subset=["lag4"])
fits = mr.fit_lagged(few, "log_norm ~ lag1 + lag2", cov="crv3")
table = pd.concat([table, fits.coefficients.query("term != 'Intercept'").assign(specification=SAME_ROWS)])
DIFFERS_FROM = {
    "document_effects": "baseline",
    "document_position_effects": "document_effects",
    "mean_group": "document_position_effects",
    SAME_ROWS: "baseline",
    "more_lags": SAME_ROWS,
    **dict.fromkeys(
        ("position", "log_frequency", "is_repeat", "covariates", "first_tokens_kept"), "baseline"
    ),
}

# %% How many lags: what the criteria pick, and what the picks gain over two lags in documents that were not fitted.
orders = mr.robustness.lag_order(lagged, max_lag=8)
keys = ["model", "layer"]
picks = orders[keys].drop_duplicates().set_index(keys)
for name in ("aic", "bic", "held_out"):
    picks[name] = orders[orders[f"{name}_pick"]].set_index(keys)["order"]
held_out = orders.pivot(index=keys, columns="order", values="held_out_r_squared")
picks["r_squared_of_2"] = held_out[2]
picks["gain_of_8"] = held_out[8] - held_out[2]
print(picks.to_string(float_format="{:.3f}".format))

# %% Medians over layers: of lag1, of b1 + b2 (the persistence), and in how many layers lag1's interval leaves out zero.
keys = ["model", "specification"]
lags = table[table["term"].isin(["lag1", "lag2"])]
persistence = lags.groupby([*keys, "layer"], sort=False)["estimate"].sum().groupby(keys, sort=False).median()
lag1 = table[table["term"] == "lag1"].assign(
    beyond=lambda rows: (rows["conf_low"] > 0) | (rows["conf_high"] < 0)
)
summary = lag1.groupby(keys, sort=False).agg(
    lag1=("estimate", "median"),
    low=("estimate", "min"),
    high=("estimate", "max"),
    beyond_zero=("beyond", "sum"),
    layers=("layer", "size"),
    tokens=("n", "median"),
    held_out_r_squared=("held_out_r_squared", "mean"),
)
summary.insert(3, "b1_plus_b2", persistence)
changed = pd.Series(DIFFERS_FROM).reindex(summary.index.get_level_values("specification"))
before = pd.MultiIndex.from_arrays([summary.index.get_level_values("model"), changed])
summary["change"] = summary["lag1"].to_numpy() - summary["lag1"].reindex(before).to_numpy()
print(summary.to_string(float_format="{:.3f}".format))

# %% Answer.
for model, rows in summary.groupby("model", sort=False):
    rows = rows.droplevel("model")
    survive = rows["beyond_zero"] == rows["layers"]
    most = rows["change"].abs().idxmax()
    raw, within = rows.loc["baseline"], rows.loc["document_position_effects"]
    change = f"{most} (beside {DIFFERS_FROM[most]})".replace("_", " ")
    docs = lag1["n_docs"].max()
    print(
        f"{model} ({docs} documents): lag1's interval leaves out zero in every layer under {survive.sum()} "
        f"of {len(rows)} regressions. The median over layers of lag1 is {raw['lag1']:.2f} pooled over documents and "
        f"{within['lag1']:.2f} within documents and positions, that of b1 + b2 {raw['b1_plus_b2']:.2f} and "
        f"{within['b1_plus_b2']:.2f}. Of single changes, {change} "
        f"moves lag1 most: {rows.loc[most, 'change']:+.2f}."
    )
print(
    f"BIC picks {picks['bic'].min()} to {picks['bic'].max()} lags of at most 8; eight in place of two add "
    f"{picks['gain_of_8'].min():.3f} to {picks['gain_of_8'].max():.3f} to the R2 of documents left out."
)
