"""``mechreg intervene``: an edit of a model's updates, and what it changes."""

import argparse
import contextlib
import re
from functools import partial
from pathlib import Path
from typing import Any

from mechreg.cli.options import (
    Verbs,
    add_corpus,
    add_model,
    add_number,
    documents_of,
    listed,
    load,
    require_places,
)
from mechreg.cli.terminal import say
from mechreg.schema import InputError, require_option
from mechreg.words import count

EXAMPLES = (
    "mechreg intervene mini-s --edit scale=0,0.5,2 --layers 0-3 --documents 6 --out scaled.csv\n"
    "         mechreg intervene mini-s --edit ablate=mean --controls random_direction --documents 6\n"
    "         mechreg intervene mini-s --corpus asked.txt --edit patch=other.txt --hook z --heads 0,2 --layers 1"
)

# As Ablate and Patch have them, which are not imported to refuse.
ABLATIONS = ("zero", "mean", "resample")
ALIGNMENTS = ("exact", "start", "end")


def declare(verbs: Verbs) -> None:
    """Add the verb and its options."""
    made = verbs.add(intervene, example=EXAMPLES)
    add_model(made)
    add_corpus(made)
    edit = (
        "scale=FACTOR,... rotate=DEGREES,... ablate=zero|mean|resample, or patch=CORPUS: the vectors of as many other "
        "documents, in order; may be given again"
    )
    made.add_argument("--edit", type=_edit, action="append", required=True, help=edit)
    hook = "where the edit is made (default: attn_out); at z and result, heads are edited"
    made.add_argument("--hook", default="attn_out", help=hook)
    for name, which in (("layers", ""), ("heads", " of hook z or result")):
        text = f"such as 0,3 or 0-5{which}, edited one at a time (default: all)"
        made.add_argument(f"--{name}", type=_whole_numbers, help=text)
    align = "of patch: exact (default) refuses documents of unequal length; start or end has them meet there"
    made.add_argument("--align", default="exact", help=align)
    positions = (
        "all, first, or K for positions K, 2K, ... (default: 1, all but position 0, the attention sink)"
    )
    made.add_argument("--positions", default="1", help=positions)
    controls = "random_direction,other_position,other_layer,direct"
    made.add_argument("--controls", type=listed, default=(), help=controls)
    add_number(made, "--seed", "of controls and ablate=resample", default=0, least=0, whole=True)
    made.add_argument(
        "--out",
        type=Path,
        help="a .csv or .parquet table; beside it a chart of the doses, one for each head",
    )


def intervene(args: argparse.Namespace) -> int:
    """Edit a model's updates and show what changes in its next tokens and later norms."""
    require_places([args.model], revision=args.revision)
    require_option(args.align, ALIGNMENTS, name="--align")
    if args.align != "exact" and all(kind != "patch" for kind, _ in args.edit):
        raise InputError(f"--align {args.align} is of --edit patch=CORPUS, and there is none; leave it out.")
    from mechreg.store import TABLES, check_place, write_table

    if args.out is not None:
        check_place(args.out, endings=TABLES)
    documents = documents_of(args)
    asked = [
        (kind, documents_of(args, dose) if kind == "patch" else dose)
        for kind, doses in args.edit
        for dose in doses
    ]
    from mechreg.charts import plot_dose_response, save_chart
    from mechreg.interventions import Ablate, Patch, Rotate, Scale, intervene

    patch = partial(Patch, align=args.align)
    kinds: dict[str, Any] = {"scale": Scale, "rotate": Rotate, "ablate": Ablate, "patch": patch}
    options = {key: getattr(args, key) for key in ("hook", "layers", "heads", "controls", "seed")}
    effects = intervene(
        load(args),
        documents,
        [kinds[kind](dose) for kind, dose in asked],
        positions=int(args.positions) if args.positions.isdecimal() else args.positions,
        **options,
    )
    last = effects["measured_layer"] == effects["measured_layer"].max()
    shown = effects[(effects["offset"] == -1) & ((effects["measure"] != "norms") | last)]
    shown = shown.assign(dose=shown["dose"].map("{:g}".format).replace("nan", ""))
    index = ["measure", "edit", "dose", *(["control"] if args.controls else [])]
    index += ["head"] if (effects["head"] >= 0).any() else []
    table = shown.pivot_table(index=index, columns="layer", values="estimate", sort=False)
    of = count(int(shown["n_docs"].max()), "document")
    say(
        f"Change by edited layer: loss and kl in nats, top1 as a share, norms of the last layer in logs ({of})\n"
    )
    say(table.to_string(float_format="{:.4f}".format))
    if args.out is not None:
        write_table(effects, args.out)
        say(f"\nTable: {args.out}")
        stem, names = args.out.with_suffix(""), effects["edit"].unique()
        for (edit, head), part in effects.groupby(["edit", "head"], sort=False):
            if part["dose"].nunique() > 1:  # a dose response needs at least two doses
                of_edit = f"_{edit}" if len(names) > 1 else ""
                of_head = f"_head{head}" if effects["head"].nunique() > 1 else ""
                path = stem.with_name(f"{stem.name}{of_edit}{of_head}")
                save_chart(plot_dose_response(part), path, formats=("html", "svg"))
                say(f"Chart: {path}.html and .svg")
    return 0


def _edit(text: str) -> tuple[str, list[Any]]:
    """Return the kind of edit that --edit asks for, and its doses."""
    kind, _, values = text.partition("=")
    doses: list[Any] = values.split(",")
    if kind == "patch" and values:
        return kind, [values]
    if kind == "ablate" and {*doses} <= {*ABLATIONS}:
        return kind, doses
    if kind in ("scale", "rotate"):
        with contextlib.suppress(ValueError):
            return kind, [float(dose) for dose in doses]
    raise argparse.ArgumentTypeError(
        "must be scale=0.5, rotate=30, ablate=mean (zero, resample) or patch=other.txt, or several as in "
        f"scale=0,0.5,2; got {text!r}"
    )


def _whole_numbers(text: str) -> list[int]:
    """Return the whole numbers that a text such as 0,2-4 names."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        ends = [first, last if dash else first]
        # No model has that many layers, and a list of them could exhaust the memory.
        if not all(re.fullmatch("[0-9]{1,5}", end) for end in ends) or int(ends[0]) > int(ends[1]):
            raise argparse.ArgumentTypeError(
                f"must be whole numbers and ranges, such as 0,3 or 0-5; got {text!r}"
            )
        numbers += range(int(ends[0]), int(ends[1]) + 1)
    return numbers
