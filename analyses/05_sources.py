# %% [markdown]
# Question: is the lag coefficient the same in news, dialogue, recipes and code comments, or one of some kinds of text?
#
# The article reads one text and asks for "more text from many sources" (Mike X Cohen, "The Anatomy of the Least Squares
# Method, Part Four: Modeling GPT activations").
#
# Runs on the miniatures and the ten registers of the demo corpus; `python analyses/05_sources.py gpt2` where those
# weights can be loaded.

# %%
import sys
from pathlib import Path

import mechreg as mr

MODELS = sys.argv[1:] or ["mini-s", "mini-m", "mini-l"]
FIGURES = Path(__file__).resolve().parents[1] / "figures"
FORMULA = "log_norm ~ lag1 + lag2"

# %% Every document has a source; joined to the norms it is a column like any other.
documents = mr.read_corpus("demo")
norms = mr.join_annotations(mr.extract_norms(MODELS, documents), documents, columns=["source"])
by_source = mr.group_norms(norms, by=("source",))
mr.save_chart(mr.plot_norms(by_source, by="source"), FIGURES / "norms_by_source")

# %% A fit for each source in each layer: six documents a source, so intervals are wide (t with 5 degrees of freedom).
lagged = mr.add_lags(norms, lags=(1, 2), skip=1)
apart = mr.fit_lagged(lagged, FORMULA, by=("source",))
mr.save_chart(mr.plot_betas(apart, by="source"), FIGURES / "betas_by_source")

# %% How far apart are sources, beyond what documents of one source are apart from each other?
# Documents are dealt out to as many groups of the same sizes at random, and the spread of the coefficients compared.
together = mr.fit_lagged(lagged, FORMULA)


def spread(frame, by):
    """Return the standard deviation of lag1 over groups, the mean over layers of each model."""
    betas = mr.fit_lagged(frame, FORMULA, by=(by,), cov="nonrobust").coefficients
    lag1 = betas[betas["term"] == "lag1"]
    return lag1.groupby(["model", "layer"])["estimate"].std().groupby("model").mean()


DEALS = 19
observed = spread(lagged, "source")
at_random = [
    spread(
        lagged.drop(columns="source").merge(
            documents[["doc"]].assign(
                source=documents["source"].sample(frac=1, random_state=seed).to_numpy()
            ),
            on="doc",
        ),
        "source",
    )
    for seed in range(DEALS)
]

# %% Answer.
for model in dict.fromkeys(together.coefficients["model"]):
    lag1 = apart.coefficients.query("term == 'lag1' and model == @model")
    medians = lag1.groupby("source", observed=True)["estimate"].median().sort_values()
    pooled = together.coefficients.query("term == 'lag1' and model == @model")["estimate"].median()
    dealt = [deal[model] for deal in at_random]
    rank = 1 + sum(value >= observed[model] for value in dealt)
    clear = (lag1["p_adjusted"] < 0.05) & (lag1["estimate"] > 0)
    print(
        f"{model}: lag1 is above 0 with p < .05 in {int(clear.sum())} of {len(lag1)} fits to one source; its median "
        f"over layers runs from {medians.iloc[0]:.2f} ({medians.index[0]}) to {medians.iloc[-1]:.2f} "
        f"({medians.index[-1]}), {pooled:.2f} in all text. Sources are {observed[model]:.3f} apart (sd), groups of "
        f"documents dealt at random {sum(dealt) / DEALS:.3f} (p = {rank / (DEALS + 1):.2f})."
    )
print(
    "A p of .05 is the least that 19 deals can give: sources then differ by more than the documents they consist of."
)
