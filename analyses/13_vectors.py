# %% [markdown]
# Question: in how many directions do attention updates move, and how much of an update, as a vector, do the updates
# before it explain, beyond what the same tokens in random order explain?
#
# Runs on mini-s; `python analyses/13_vectors.py FOLDER --layers 0 10 20 29` on any other model, whose figure then has
# its name. Two passes over the text and two over the shuffled text; no vector is kept.

# %%
import argparse
from pathlib import Path

import altair as alt
import pandas as pd

import mechreg as mr

parser = argparse.ArgumentParser(description="Updates as vectors.")
parser.add_argument("model", nargs="?", default="mini-s")
parser.add_argument("--layers", type=int, nargs="*", help="all by default")
parser.add_argument("--every", type=int, default=1, help="read every n-th document of the demo corpus")
options = parser.parse_args()
FIGURES = Path(__file__).resolve().parents[1] / "figures"

# %% Sums of products at the hook: a_t beside a_{t-1}, as they are and within windows and positions.
model = mr.load_model(options.model)
tokens = mr.tokenize(model, mr.read_corpus("demo").iloc[:: options.every])
orders = {"tokens in order": tokens, "tokens shuffled": mr.nulls.shuffle_tokens(tokens, seed=0)}
controls = {"no control": (), "within windows and positions": ("window", "position")}
tables = []
for order, of_order in orders.items():
    for control, effects in controls.items():
        sums = mr.norms.vector_covariances(model, of_order, layers=options.layers, effects=effects)
        both = sums.explained().assign(effective_dimension=sums.effective_dimension()["effective_dimension"])
        tables.append(both.assign(order=order, control=control))
table = pd.concat(tables, ignore_index=True)

# %% A panel a question and control.
titles = {"effective_dimension": "effective dimension", "held_out": "share explained"}
rows = []
for column, y_title in titles.items():
    panels = []
    for control in controls:
        base = alt.Chart(table[table["control"] == control], title=control).encode(
            alt.X("layer:O", axis=alt.Axis(labelAngle=0)),
            alt.Y(
                f"{column}:Q",
                title=y_title,
                scale=alt.Scale(domainMin=0, nice=True),
                axis=alt.Axis(labelFlush=True),
            ),
            alt.Color("order:N", title=None, sort=list(orders)),
        )
        panels.append(base.mark_line(point=True).properties(width=240, height=160))
    rows.append(alt.hconcat(*panels).resolve_scale(y="shared"))
name, n = model.cfg.model_name, table["n"].iloc[0]
title = f"Attention updates of {name} as vectors of {model.cfg.d_model} numbers"
caption = [
    f"{n:,} tokens of {table['n_docs'].iloc[0]} documents. Above: participation ratio of the covariance.",
    "Below: share explained of an update by the update before, documents held out.",
]
chart = alt.vconcat(*rows).properties(
    title=alt.Title(title, subtitle=caption), description=f"{title}. {' '.join(caption)}"
)
mr.save_chart(chart, FIGURES / ("vectors" if options.model == "mini-s" else f"vectors_{name}".lower()))

# %% Answer.
columns = ["effective_dimension", "in_sample", "held_out", "penalty"]
print(table.pivot(index="layer", columns=["control", "order"], values=columns).T.round(3).to_string())
for control, of_control in table.groupby("control", sort=False):
    by = of_control.groupby("order", sort=False)
    low, high = of_control["effective_dimension"].min(), of_control["effective_dimension"].max()
    real, shuffled = (by.get_group(order).set_index("layer")["held_out"] for order in orders)
    print(
        f"{name}, {control}: updates move in {low:.1f} to {high:.1f} of {model.cfg.d_model} directions; the update "
        f"before explains {real.min():.2f} to {real.max():.2f} of an update in documents held out, with tokens in "
        f"random order {shuffled.min():.2f} to {shuffled.max():.2f}; the text's order adds "
        f"{(real - shuffled).min():.3f} to {(real - shuffled).max():.3f} ({n:,} tokens)."
    )
