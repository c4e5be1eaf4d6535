# %% [markdown]
# Question: how much of the lag coefficients is there with no context at work? What would they be if the model read the
# same tokens in random order, if the norms were shuffled after it read, if its weights were random, and if every token
# had the norm that it usually has elsewhere?
#
# Runs on two miniatures and every third document of the demo corpus, to take 20 seconds;
# `python analyses/07_nulls.py gpt2` where those weights can be loaded.

# %%
import sys
from pathlib import Path

import mechreg as mr

MODELS = sys.argv[1:] or ["mini-s", "mini-m"]
FIGURES = Path(__file__).resolve().parents[1] / "figures"
documents = mr.read_corpus("demo").iloc[::3]

# %% The norms as they are, and those of each null: five frames of what is random, one of what is not.
models = [mr.load_model(name) for name in MODELS]
norms = mr.extract_norms(models, documents, progress=False)
nulls = mr.nulls.null_norms(norms, models, repeats=5, seed=0)

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
