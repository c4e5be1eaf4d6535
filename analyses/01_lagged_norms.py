# %% [markdown]
# Question: does the size of the attention update to a token follow from the updates to the two tokens before it,
# in every layer, and in models of other sizes as well? (Mike X Cohen, "The Anatomy of the Least Squares Method,
# Part Four: Modeling GPT activations".)
#
# Runs on the miniatures; `python analyses/01_lagged_norms.py gpt2 gpt2-xl` where those weights can be loaded.

# %%
import sys
from pathlib import Path

import mechreg as mr
from mechreg.report import headline, result_table

MODELS = sys.argv[1:] or ["mini-s", "mini-m", "mini-l"]
FIGURES = Path(__file__).resolve().parents[1] / "figures"

# %% The text, as the first model sees it.
documents = mr.read_corpus("demo")
tokens = mr.tokenize(mr.load_model(MODELS[0]), documents)
print(
    f"{documents['text'].str.len().sum():,} characters in {len(documents)} documents, {len(tokens):,} tokens"
)
print(tokens.head(12).to_string(index=False))

# %% One number a token and layer: the norm of what attention adds to the residual stream.
norms = mr.extract_norms(MODELS, documents, hooks=("attn_out",))
mr.save_chart(mr.plot_norms(norms), FIGURES / "norms")

# %% log_norm[t] on log_norm[t-1] and log_norm[t-2], in every layer; position 0 is left out as outcome and as lag.
lagged = mr.add_lags(norms, lags=(1, 2), skip=1)
fits = mr.fit_lagged(lagged, "log_norm ~ lag1 + lag2")
mr.save_chart(mr.plot_betas(fits), FIGURES / "betas")
print(fits.summary(model=fits.coefficients["model"].iloc[0], layer=0))

# %% The article's own inference, which takes tokens for independent, beside clusters of documents.
naive = mr.fit_lagged(lagged, "log_norm ~ lag1 + lag2", cov="nonrobust")
both = fits.coefficients.assign(naive_std_error=naive.coefficients["std_error"])
slopes = both[both["term"] != "Intercept"]
print((slopes["std_error"] / slopes["naive_std_error"]).describe()[["min", "50%", "max"]].to_string())

# %% numpy's least squares gives the same betas.
print(
    "largest difference to numpy.linalg.lstsq:",
    mr.regression.lstsq_check(fits, lagged)["difference"].abs().max(),
)

# %% Answer.
results = result_table(fits.coefficients)
print(results.to_string(index=False, float_format="{:.3f}".format))
print("\n".join(headline(results)))
