"""``mechreg init``: a spec with comments, to begin with."""

import argparse
import json
from pathlib import Path

from mechreg.cli.options import Verbs
from mechreg.cli.terminal import say
from mechreg.schema import InputError

COMMENTS = {
    "models": 'hub names, folders, .gguf files or miniatures; "name@revision" is a checkpoint',
    "corpus": '"demo", a file, or a glob such as "texts/*.txt", relative to this file',
    "name": "of the run, whose results go to runs/<name>",
    "hooks": "resid_pre, z, result, attn_out, resid_mid, mlp_out, resid_post",
    "measures": "beside the norm: relative, cos_resid, cos_previous, cos_layer_below, cos_mlp, step",
    "lags": "tokens before, that the formula names lag1, lag2, ...",
    "skip": "so many first positions are neither outcome nor lag",
    "drop_sinks": 'also left out: "size", "special", "token_id=0", "position=1"',
    "formula": "every layer is fitted with it",
    "effects": "whose levels are taken off: doc, window, position, token_id",
    "cov": "auto, nonrobust, hc0 to hc3, hac, crv1 to crv3, jackknife",
    "backend": "auto, hooked or bridge",
    "processing": "raw or folded weights",
    "dtype": "float32, float64, bfloat16, float16, bfloat16-autocast",
    "prepend_bos": "begin every window with BOS",
    "tagger": "parts of speech: none, corpus, or a spaCy pipeline",
    "allow_pickle": "read weights that exist only as pickle",
    "keep": "norms, or moments where norms would not fit on the disk",
    "top_tokens": "so many tokens with the largest values are listed, of every measure and layer",
    "nulls": "compared with every coefficient: token_order, norm_order, random_weights, token_identity",
}
ALWAYS = ("models", "corpus", "name", "formula")  # the other keys are there as comments, with their defaults


def declare(verbs: Verbs) -> None:
    """Add the verb and its options."""
    made = verbs.add(init, example="mechreg init spec.toml")
    made.add_argument("spec", type=Path, nargs="?", default=Path("spec.toml"), help="the file to write")


def init(args: argparse.Namespace) -> int:
    """Write a spec with comments, to make your own study of."""
    try:
        with args.spec.open("x", encoding="utf-8") as file:
            file.write(commented_spec())
    except FileExistsError as error:
        raise InputError(f"{str(args.spec)!r} is there already; give another name.") from error
    say(f"Change {args.spec}, then: mechreg run {args.spec}")
    return 0


def commented_spec() -> str:
    """Return a spec that runs as it is, every key with what it may be."""
    from dataclasses import asdict

    from mechreg.spec import Spec

    values = asdict(Spec(models=("mini-s", "mini-m"), corpus="demo", name="study"))
    lines = ["# A study, which `mechreg run` carries out. Keys that begin with # have their defaults.\n"]
    for key in sorted(values, key=lambda key: key not in ALWAYS):
        mark = "" if key in ALWAYS else "# "
        lines.append(f"# {COMMENTS[key]}\n{mark}{key} = {json.dumps(values[key])}\n")
    return "\n".join(lines)
