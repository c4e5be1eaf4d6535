# %% [markdown]
# Question: how much of the lag coefficients is there with no context at work? What would they be if the model read the
# same tokens in random order, if the norms were shuffled after it read, if its weights were random, and if every token
# had the norm that it usually has elsewhere? And because of what: of patterns that neighbours share, or of the values
# that they read; of documents, positions, words, or the layer below?
#
# Runs on two miniatures in a minute, the first part on every third document of the demo corpus;
# `python analyses/07_nulls.py gpt2` where those weights can be loaded.

# %%
import sys
from pathlib import Path

import pandas as pd

import mechreg as mr

MODELS = sys.argv[1:] or ["mini-s", "mini-m"]
FIGURES = Path(__file__).resolve().parents[1] / "figures"
EFFECTS = ("doc", "position")
# lag1 + lag2 beside EFFECTS, and the overlap, as another program than this one found them.
FOUND_ELSEWHERE = {
    "mini-s": {
        "clean": [0.58, 0.73, 0.55, 0.56],
        "values permuted": [0.69, 0.80, 0.62, 0.59],
        "uniform pattern": [0.97, 0.99, 0.98, 1.00],
        "overlap": [0.79, 0.72, 0.62, 0.60],
    }
}
everything = mr.read_corpus("demo")
documents = everything.iloc[::3]

# %% The norms as they are, and those of each null: five frames of what is random, one of what is not.
models = [mr.load_model(name) for name in MODELS]
norms = mr.extract_norms(models, documents, progress=False)
made = mr.nulls.null_norms(norms, models, repeats=5, seed=0)
nulls = {name: list(frames) for name, frames in made.items()}

# %% Every coefficient beside its nulls, with the same documents drawn in all of them.
fits = mr.fit_lagged(mr.add_lags(norms))
table = mr.compare_to_nulls(fits, nulls, draws=999)
mr.save_chart(mr.plot_nulls(table, term="lag1"), FIGURES / "nulls")

# %% Both lags together: how much of this token's norm goes with the two before it, whichever of them.
keys = ["model", "layer", "null"]
total = table.groupby(keys, sort=False)[["estimate", "null_estimate"]].sum().reset_index()
wide = total.pivot(index=["model", "layer"], columns="null", values="null_estimate")
wide.insert(0, "as read", total.groupby(["model", "layer"])["estimate"].first())
print("lag1 + lag2:")
print(wide.to_string(float_format="{:.2f}".format))

# %% The same beside levels of documents and positions, which every null is given too; and what word order adds to lag1.
within = mr.compare_to_nulls(mr.fit_lagged(mr.add_lags(norms), effects=EFFECTS), nulls, draws=999)
both = within.groupby(keys, sort=False)[["estimate", "null_estimate"]].sum().reset_index()
wide = both.pivot(index=["model", "layer"], columns="null", values="null_estimate")
wide.insert(0, "as read", both.groupby(["model", "layer"])["estimate"].first())
print("lag1 + lag2 beside levels of documents and positions:")
print(wide.to_string(float_format="{:.2f}".format))
order = within.query("term == 'lag1' and null == 'token_order'")
print(order[["model", "layer", "excess", "conf_low", "conf_high", "p_value"]].round(3).to_string(index=False))

# %% Answer.
for model, rows in table.groupby("model", sort=False):
    sums = total[total["model"] == model]
    as_read = sums.drop_duplicates("layer")["estimate"]
    print(f"{model}: as read, lag1 + lag2 is {as_read.min():.2f} to {as_read.max():.2f} over the layers.")
    for null, part in rows.groupby("null", sort=False):
        of_null = sums.loc[sums["null"] == null, "null_estimate"]
        lag1, lag2 = (part[part["term"] == term] for term in ("lag1", "lag2"))
        beyond = int((lag1["p_value"] < 0.05).sum())
        print(
            f"  {null.replace('_', ' ')}: {of_null.min():.2f} to {of_null.max():.2f}. Compared with it lag1 is "
            f"{lag1['excess'].min():+.2f} to {lag1['excess'].max():+.2f} (p < .05 in {beyond} of {len(lag1)} layers), "
            f"lag2 {lag2['excess'].min():+.2f} to {lag2['excess'].max():+.2f}."
        )
closest = (total["estimate"] - total["null_estimate"]).abs().groupby(total["null"]).mean().sort_values()
print(
    f"The null whose lag1 + lag2 is nearest to what was read is {closest.index[0].replace('_', ' ')}, off by "
    f"{closest.iloc[0]:.2f} on average over layers; the one furthest off is {closest.index[-1].replace('_', ' ')} "
    f"({closest.iloc[-1]:.2f}). What a null has too is no evidence that the order of the text was used."
)

# %% Attention nulls: each layer's own patterns with the values of other tokens, and its own values read uniformly.
for model in models:
    name = model.cfg.model_name
    fits = mr.fit_lagged(mr.add_lags(mr.extract_norms(model, everything, progress=False)), effects=EFFECTS)
    attention = {
        "values permuted": (
            mr.nulls.attention_norms(model, everything, replace="values", seed=seed) for seed in range(3)
        ),
        "uniform pattern": [mr.nulls.attention_norms(model, everything, replace="uniform")],
    }
    table = mr.compare_to_nulls(fits, attention, draws=999)
    sums = table.groupby(["layer", "null"], sort=False)[["estimate", "null_estimate"]].sum().reset_index()
    wide = sums.pivot(index="null", columns="layer", values="null_estimate").loc[[*attention]]
    wide.loc["clean"] = sums.groupby("layer")["estimate"].first()
    wide.loc["overlap"] = mr.nulls.pattern_overlap(model, everything)["overlap"]
    wide = wide.loc[["clean", *attention, "overlap"]].rename_axis(None)
    elsewhere = pd.DataFrame(FOUND_ELSEWHERE.get(name, {})).T.rename(index="  found elsewhere, {}".format)
    print(
        f"{name}, lag1 + lag2 beside levels of documents and positions, and overlap with the pattern before:"
    )
    both = pd.concat([wide, elsewhere]) if len(elsewhere) else wide
    print(both.to_string(float_format="{:.2f}".format))
    apart = (wide.loc["values permuted"] - wide.loc["clean"]).abs()
    print(
        f"{name}: with values permuted lag1 + lag2 is within {apart.max():.2f} of what was read (layer "
        f"{apart.idxmax()}; {apart.median():.2f} in the median layer), under a uniform pattern at least "
        f"{wide.loc['uniform pattern'].min():.2f}."
    )

# %% What lag1 is made of: what each control takes off it beside all others.
for model in models:
    frame = mr.extract_norms(model, everything, covariates=["log_frequency"], progress=False)
    lagged = mr.add_lags(frame, layer_below=(0, 1))
    words = {"frequency": "log_frequency"}
    below = words | {"layer below": "layer_below + layer_below_lag1"}
    parts = pd.concat(
        [
            mr.decompose(lagged[lagged["layer"] == 0], effects=EFFECTS, controls=words),
            mr.decompose(lagged[lagged["layer"] > 0], effects=EFFECTS, controls=below),
        ]
    )
    wide = parts.pivot(index="layer", columns="part", values="estimate")
    wide = wide[["short", *EFFECTS, *below, "long"]].rename_axis(None, axis="columns")
    name = model.cfg.model_name
    print(f"{name}, lag1 in parts (standard errors up to {parts['std_error'].max():.2f}):")
    print(wide.to_string(float_format="{:.2f}".format, na_rep=""))
    for _, layers in wide.groupby(
        pd.cut((wide.index + 0.5) / len(wide), [0, 1 / 3, 2 / 3, 1]), observed=True
    ):
        mean = layers.mean()
        share = mean.drop("short").fillna(0.0).sort_values(ascending=False)
        made = ", ".join(f"{value:+.2f} {part}" for part, value in share.drop("long").items())
        print(
            f"{name}, layers {layers.index.min()} to {layers.index.max()}: lag1 of {mean['short']:.2f} is "
            f"{mean['long']:.2f} of neighbours' own, {made}."
        )
