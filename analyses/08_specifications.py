# %% [markdown]
# Question: does the coefficient of the update before (lag1) survive other reasonable regressions: levels of their own
# for documents, more lags, position, word frequency and repetition, the first tokens kept? And how many lags are worth
# having?
#
# Runs on two miniatures and the whole demo corpus; `python analyses/08_specifications.py gpt2` where those weights can
# be loaded.

# %%
import sys
from pathlib import Path

import mechreg as mr

MODELS = sys.argv[1:] or ["mini-s", "mini-m"]
FIGURES = Path(__file__).resolve().parents[1] / "figures"

# %% One frame for all specifications: position 0 is left out as outcome and as lag, but where it is kept on purpose.
norms = mr.extract_norms(MODELS, mr.read_corpus("demo"), progress=False)
lagged = mr.add_lags(norms, lags=(1, 2), skip=1)
table = mr.specification_curve(lagged, "log_norm ~ lag1 + lag2")
mr.save_chart(mr.plot_specifications(table, term="lag1"), FIGURES / "specifications")

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

# %% The median over layers of every specification, and how often its interval leaves out zero.
lag1 = table[table["term"] == "lag1"].assign(
    beyond=lambda rows: (rows["conf_low"] > 0) | (rows["conf_high"] < 0)
)
by = lag1.groupby(["model", "specification"], sort=False)
summary = by.agg(
    median=("estimate", "median"),
    low=("estimate", "min"),
    high=("estimate", "max"),
    beyond_zero=("beyond", "sum"),
    layers=("layer", "size"),
    held_out_r_squared=("held_out_r_squared", "mean"),
)
print(summary.to_string(float_format="{:.3f}".format))

# %% Answer.
for model, rows in summary.groupby("model", sort=False):
    rows = rows.droplevel("model")
    moved = (rows["median"] - rows.loc["baseline", "median"]).drop("baseline")
    survive = rows[rows["beyond_zero"] == rows["layers"]]
    most = moved.abs().idxmax()
    lowest, highest = rows["median"].min(), rows["median"].max()
    print(
        f"{model}: lag1 differs from zero in every layer under {len(survive)} of {len(rows)} specifications. Its "
        f"median over layers is {rows.loc['baseline', 'median']:.2f} in the baseline and {lowest:.2f} to "
        f"{highest:.2f} in all; "
        f"{most.replace('_', ' ')} moves it most ({moved[most]:+.2f})."
    )
print(
    f"BIC picks {picks['bic'].min()} to {picks['bic'].max()} lags of at most 8; eight in place of two add "
    f"{picks['gain_of_8'].min():.3f} to {picks['gain_of_8'].max():.3f} to the R2 of documents left out."
)
