"""``mechreg intervene``: an edit of a model's updates, and what it changes."""

import argparse
import re
from pathlib import Path
from typing import Any

from mechreg.cli.saying import say
from mechreg.schema import InputError

EXAMPLES = (
    "mechreg intervene mini-s --edit scale=0,0.5,2 --layers 0-3 --documents 6 --out scaled.csv\n"
    "         mechreg intervene mini-s --edit ablate=mean --controls random_direction --documents 6"
)


def options(made: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    corpus_options(made)
    made.add_argument(
        "--edit",
        action="append",
        required=True,
        help="scale=FACTOR,... rotate=DEGREES,... or ablate=zero|mean|resample; may be given again",
    )
    made.add_argument("--hook", default="attn_out", help="where the edit is made (default: attn_out)")
    made.add_argument("--layers", help="such as 0,3 or 0-5, edited one at a time (default: all)")
    made.add_argument(
        "--positions",
        default="1",
        help="all, first, or K for positions K, 2K, ... (default: 1, all but position 0, the attention sink)",
    )
    made.add_argument("--controls", help="random_direction,other_position,other_layer")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", type=Path, help="a .csv or .parquet table; its chart is put beside it")


def corpus_options(made: argparse.ArgumentParser) -> None:
    """Add the options that say which texts a command reads."""
    made.add_argument("--corpus", default="demo", help="a file, a glob, datasets:NAME (default: demo)")
    made.add_argument("--documents", type=int, help="only so many first documents of the corpus")


def documents_of(args: argparse.Namespace) -> Any:
    """Return the texts that a command reads: the corpus as it is named, or its first documents."""
    from mechreg.corpus import read_corpus

    if args.documents is None:
        return args.corpus
    if args.documents < 1:
        raise InputError(f"--documents must be 1 or more; got {args.documents}.")
    return read_corpus(args.corpus).head(args.documents)


def intervene(args: argparse.Namespace) -> int:
    """Intervene, print the effects, save table and charts, and return the exit code."""
    from mechreg.charts import plot_dose_response, save_chart
    from mechreg.interventions import intervene
    from mechreg.models import load_model
    from mechreg.store import TABLES, check_place, write_table

    edits = [edit for text in args.edit for edit in _edits(text)]
    layers = None if args.layers is None else _whole_numbers(args.layers)
    if args.out is not None:
        check_place(args.out, endings=TABLES)
    documents = documents_of(args)
    effects = intervene(
        load_model(args.model, backend=args.backend, revision=args.revision, allow_pickle=args.allow_pickle),
        documents,
        edits,
        hook=args.hook,
        layers=layers,
        positions=int(args.positions) if args.positions.isdecimal() else args.positions,
        controls=args.controls.split(",") if args.controls else (),
        seed=args.seed,
    )
    last = effects["measured_layer"] == effects["measured_layer"].max()
    shown = effects[(effects["offset"] == -1) & ((effects["measure"] != "norms") | last)]
    shown = shown.assign(dose=shown["dose"].map("{:g}".format).replace("nan", ""))
    index = ["measure", "edit", "dose", *(["control"] if args.controls else [])]
    table = shown.pivot_table(index=index, columns="layer", values="estimate", sort=False)
    say(f"Change by edited layer: loss and kl in nats, top1 as a share, norms of the last layer in logs "
          f"({shown['n_docs'].max()} documents)\n")  # fmt: skip
    say(table.to_string(float_format="{:.4f}".format))
    if args.out is not None:
        write_table(effects, args.out)
        say(f"\nTable: {args.out}")
        stem, names = args.out.with_suffix(""), effects["edit"].unique()
        for edit, part in effects.groupby("edit", sort=False):
            if part["dose"].nunique() > 1:  # a response to doses; one has none
                path = stem if len(names) == 1 else stem.with_name(f"{stem.name}_{edit}")
                save_chart(plot_dose_response(part), path, formats=("html", "svg"))
                say(f"Chart: {path}.html and .svg")
    return 0


def _edits(text: str) -> list[Any]:
    """Return the edits that --edit asks for: a kind and its doses."""
    from mechreg.interventions import Ablate, Rotate, Scale

    kind, _, values = text.partition("=")
    need = (
        f"--edit must be scale=0.5, rotate=30 or ablate=mean, or several as in scale=0,0.5,2; got {text!r}."
    )
    if kind not in ("scale", "rotate", "ablate") or not values:
        raise InputError(need)
    if kind == "ablate":
        return [Ablate(value) for value in values.split(",")]  # type: ignore[arg-type]
    try:
        doses = [float(value) for value in values.split(",")]
    except ValueError as error:
        raise InputError(need) from error
    return [Scale(dose) if kind == "scale" else Rotate(dose) for dose in doses]


def _whole_numbers(text: str) -> list[int]:
    """Return the layers that a text such as 0,2-4 names."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        ends = [first, last if dash else first]
        # No model has so many layers; a list of them could have more than the memory.
        if not all(re.fullmatch("[0-9]{1,5}", end) for end in ends) or int(ends[0]) > int(ends[1]):
            raise InputError(f"--layers must be whole numbers and ranges, such as 0,3 or 0-5; got {text!r}.")
        numbers += range(int(ends[0]), int(ends[1]) + 1)
    return numbers
