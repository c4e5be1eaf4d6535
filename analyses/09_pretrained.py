# %% [markdown]
# Question: what does a real pretrained model say: the article's paragraph, a corpus with the right controls, and
# the findings that others published?
#
# `make pretrained` fetches SmolLM2-135M and takes a minute; this takes ten. `python analyses/09_pretrained.py gpt2`
# where those weights can be loaded; `--every 1` reads all documents of the demo corpus instead of every third.
# `--article FILE` names a file with the article's paragraph (the first of Wikipedia's "Rock music in Hungary").

# %%
import argparse
from pathlib import Path

import pandas as pd

import mechreg as mr

ROOT = Path(__file__).resolve().parents[1]
parser = argparse.ArgumentParser(description="The study on a real pretrained model.")
parser.add_argument("model", nargs="?", default=str(ROOT / "build" / "pretrained" / "SmolLM2-135M"))
parser.add_argument("--article", type=Path, help="a text file with the article's paragraph")
parser.add_argument("--every", type=int, default=3, help="read every n-th document of the demo corpus")
parser.add_argument("--repeats", type=int, default=3, help="frames of each null")
parser.add_argument(
    "--findings", nargs="*", default=list(dict.fromkeys(mr.findings.list_findings()["finding"]))
)
options = parser.parse_args()
FIGURES = ROOT / "figures" / "pretrained"
model = mr.load_model(options.model)
documents = mr.read_corpus("demo").iloc[:: options.every]


def slopes(fits: mr.LaggedFits) -> pd.DataFrame:
    """Return one row a layer, and the coefficients of both lags as columns."""
    terms = fits.coefficients[fits.coefficients["term"] != "Intercept"]
    return terms.pivot(index="layer", columns="term", values="estimate")


# %% The article's paragraph, with the article's errors: one text, tokens taken for independent.
if options.article:
    paragraph = mr.extract_norms(model, [options.article.read_text(encoding="utf-8")], progress=False)
    fits = mr.fit_lagged(mr.add_lags(paragraph), "log_norm ~ lag1 + lag2", cov="nonrobust")
    mr.save_chart(mr.plot_betas(fits), FIGURES / "article")
    for term, rows in fits.coefficients.query("term != 'Intercept'").groupby("term"):
        below = rows["p_value"] < 0.05
        print(
            f"The article's paragraph, {term}: p < .05 in {below.sum()} of {len(rows)} layers, "
            f"{(below & (rows['estimate'] < 0)).sum()} of them negative."
        )

# %% The demo corpus: the default regression, and the same within documents and positions.
norms = mr.extract_norms(model, documents, progress=False)
lagged = mr.add_lags(norms)
mr.save_chart(mr.plot_norms(norms), FIGURES / "norms")
raw = mr.fit_lagged(lagged, "log_norm ~ lag1 + lag2")
within = mr.fit_lagged(lagged, "log_norm ~ lag1 + lag2", effects=("doc", "position"))
title = f"lag1 and lag2 in {raw.coefficients['model'].iloc[0]}, within documents and positions"
mr.save_chart(mr.plot_betas(within, title=title), FIGURES / "betas")
print(
    pd.concat({"raw": slopes(raw), "within": slopes(within)}, axis=1).to_string(float_format="{:.2f}".format)
)

# %% Does word order matter? The same tokens in random order, and random weights, each with the same controls.
nulls = {"token_order": options.repeats, "random_weights": options.repeats}
made = mr.nulls.null_norms(norms, model, nulls=tuple(nulls), repeats=options.repeats, seed=0)
frames = {name: list(of_null) for name, of_null in made.items()}
mr.save_chart(mr.plot_nulls(mr.compare_to_nulls(within, frames, draws=999), term="lag1"), FIGURES / "nulls")
for fits, label in ((raw, "raw"), (within, "within documents and positions")):
    table = mr.compare_to_nulls(fits, frames, draws=999)
    for (null, term), rows in table[table["term"] != "Intercept"].groupby(["null", "term"], sort=False):
        beyond = rows["p_value"] < 0.05
        more = rows.loc[beyond & (rows["excess"] > 0), "layer"].tolist()
        less = rows.loc[beyond & (rows["excess"] < 0), "layer"].tolist()
        print(
            f"{label}, {term} against {null}: median {rows['estimate'].median():.2f} against "
            f"{rows['null_estimate'].median():.2f}; larger in layers {more}, smaller in {less}."
        )

# %% The findings that others published, which a model of five layers cannot show.
for name in options.findings:
    print(
        mr.replicate(name, models=[options.model], documents=documents.iloc[::2], progress=False).to_string()
    )

# %% Answer.
both = pd.concat({"raw": slopes(raw), "within": slopes(within)}, axis=1)
print(
    f"In {len(both)} layers lag1 is {both['raw', 'lag1'].median():.2f} (median; {both['raw', 'lag1'].min():.2f} to "
    f"{both['raw', 'lag1'].max():.2f}), within documents and positions {both['within', 'lag1'].median():.2f} "
    f"({both['within', 'lag1'].min():.2f} to {both['within', 'lag1'].max():.2f}); lag2 is "
    f"{both['raw', 'lag2'].median():.2f} and {both['within', 'lag2'].median():.2f}."
)
