# %% [markdown]
# Question: do two models update the same tokens strongly, beyond what the document, the position and the token itself
# say, and do sizes differ by more than two training runs of one size do?
#
# Runs on the miniatures, two seeds of two sizes included; `python analyses/12_tokens.py gpt2 gpt2-medium` where those
# weights can be loaded. Models of several tokenizers, such as `python analyses/12_tokens.py mini-l FOLDER`, are
# compared by the shortest pieces of text that are whole in all of them.

# %%
import sys
from pathlib import Path

import pandas as pd

import mechreg as mr

NAMES = sys.argv[1:] or ["mini-s", "mini-m", "mini-l", "mini-s-b", "mini-m-b"]
FIGURES = Path(__file__).resolve().parents[1] / "figures"

# Declared before looking: a layer's counterpart is the one nearest in relative depth; the best match comes second.
MATCH = "depth"

# %% The same documents for every model, with the characters of every token.
documents = mr.read_corpus("demo")
models = [mr.load_model(name) for name in NAMES]
norms = mr.extract_norms(models, documents, progress=False)
names = list(norms["model"].unique())
spans = [
    mr.tokenize(model, documents, spans=True).assign(model=name)
    for model, name in zip(models, names, strict=True)
]
norms = mr.join_annotations(norms, pd.concat(spans), columns=["char_start", "char_end"])

# %% What remains with random weights: two networks of each shape.
random = list(mr.nulls.null_norms(norms, models, nulls="random_weights", repeats=2)["random_weights"])

# %% Seeds of one size are the yardstick: their names differ by "-b".
options = {
    "unit": "span",
    "groups": {name: name.removesuffix("-b") for name in names},
    "random_weights": random,
}
plain = mr.compare_tokens(norms, effects=(), match=MATCH, **options)
within = mr.compare_tokens(norms, effects=("doc", "position"), match=MATCH, **options)
same = mr.compare_tokens(norms, match=MATCH, **options)
best = mr.compare_tokens(norms, match="best", **options)
mr.save_chart(mr.plot_token_agreement(same), FIGURES / "token_agreement")
mr.save_chart(mr.plot_token_agreement(best), FIGURES / "token_agreement_best")

# %% The tables behind the answer.
columns = ["estimate", "conf_low", "conf_high", "null_high", "p_value", "random_weights", "over_random"]
columns = ["model_a", "model_b", *columns]
print(same.pairs[columns].round(3).to_string(index=False))

# %% Answer.
for effects, found in {"none": plain, "document, position": within, "all, best match": best}.items():
    means = found.pairs["estimate"]
    print(f"Effects taken out: {effects}; mean over matched layers {means.min():.2f} to {means.max():.2f}.")
print("\n".join(same.verdict))
