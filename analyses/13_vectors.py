# %% [markdown]
# Question: in how many directions do attention updates move, and how much of an update, as a vector, do the updates
# before it explain, beyond what the same tokens in random order explain?
#
# Runs on mini-s; `python analyses/13_vectors.py FOLDER 0 10 20 29` on layers of any other model. One pass over the
# text and one over the shuffled text; no vector is kept.

# %%
import sys
from pathlib import Path

import altair as alt
import pandas as pd

import mechreg as mr

NAME = sys.argv[1] if len(sys.argv) > 1 else "mini-s"
LAYERS = [int(layer) for layer in sys.argv[2:]] or None
FIGURES = Path(__file__).resolve().parents[1] / "figures"
SHARE = "share explained in documents held out"

# %% Sums of products at the hook: a_t, and a_t with the one or two before it.
model = mr.load_model(NAME)
tokens = mr.tokenize(model, mr.read_corpus("demo"))
orders = {"as it is": tokens, "tokens shuffled": mr.nulls.shuffle_tokens(tokens, seed=0)}
dimensions, shares = [], []
for order, of_order in orders.items():
    for lags in ((1,), (1, 2)):
        covariances = mr.norms.vector_covariances(model, of_order, layers=LAYERS, lags=lags)
        shares.append(covariances.explained().assign(order=order))
    dimensions.append(covariances.effective_dimension().assign(order=order))
dimension, explained = pd.concat(dimensions), pd.concat(shares)

# %% A panel a question.
one = explained[explained["lags"] == 1]
panels = []
for rows, column, title in ((dimension, "effective_dimension", "effective dimension"), (one, "held_out", SHARE)):
    base = alt.Chart(rows).encode(
        alt.X("layer:O", axis=alt.Axis(labelAngle=0)),
        alt.Y(f"{column}:Q", title=title),
        alt.Color("order:N", title=None, sort=list(orders)),
    )
    panels.append(base.mark_line(point=True).properties(width=240, height=200))
n, d_model = dimension["n"].iloc[0], dimension["d_model"].iloc[0]
title = f"Attention updates of {model.cfg.model_name} as vectors of {d_model} numbers, {n:,} tokens"
caption = "Left: participation ratio of the covariance. Right: the update before explains the update, by ridge."
chart = alt.hconcat(*panels).properties(
    title=alt.Title(title, subtitle=caption), description=f"{title}. {caption}"
)
mr.save_chart(chart, FIGURES / ("vectors" if len(sys.argv) < 2 else f"vectors_{model.cfg.model_name}".lower()))

# %% Answer.
print(dimension.pivot(index="layer", columns="order", values="effective_dimension").round(1).to_string())
columns = ["in_sample", "held_out", "penalty"]
print(explained.pivot(index=["lags", "layer"], columns="order", values=columns).round(4).to_string())
middle = {order: rows["held_out"].median() for order, rows in one.groupby("order", sort=False)}
print(
    f"{model.cfg.model_name}: updates move in {dimension['effective_dimension'].min():.0f} to "
    f"{dimension['effective_dimension'].max():.0f} of {d_model} directions; the update before explains "
    f"{middle['as it is']:.0%} of an update in documents held out (median layer), and {middle['tokens shuffled']:.0%} "
    f"with the tokens in random order ({n:,} tokens of {one['n_docs'].iloc[0]} documents)."
)
