"""``mechreg diff``: which numbers moved between two runs, and what in their provenance differs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mechreg.cli.options import Verbs, add_number
from mechreg.cli.terminal import say
from mechreg.words import count

if TYPE_CHECKING:
    import pandas as pd

EXAMPLES = (
    "mechreg diff runs/before runs/after --within 1e-6\n\n"
    "Exit code: 0 if no number moved (whatever the provenance says), 1 if some did, 2 for an error."
)


def declare(verbs: Verbs) -> None:
    """Add the verb and its options."""
    made = verbs.add(diff, example=EXAMPLES)
    made.add_argument("run_a", type=Path, metavar="RUN_A")
    made.add_argument("run_b", type=Path, metavar="RUN_B")
    within = "smaller moves count as equal: in standard errors for estimates, relative for others"
    add_number(made, "--within", within, default=0.0, least=0)
    made.add_argument("--out", type=Path, help="a .csv or .parquet table of every number that moved")


def diff(args: argparse.Namespace) -> int:
    """Show which numbers moved between two runs, and what in their provenance differs."""
    from mechreg.diff import diff_runs
    from mechreg.store import TABLES, check_place, write_table

    if args.out is not None:
        check_place(args.out, endings=TABLES)
    differences = diff_runs(args.run_a, args.run_b, within=args.within)
    moved, largest = differences.numbers, differences.largest_moves()
    for table, rows in moved.groupby("table", sort=False):
        _say_unpaired(str(table), rows, args)
        if (largest["table"] == table).any():
            shown = largest[largest["table"] == table].drop(columns="table")
            say(f"{table}: the largest moves, {args.run_a} to {args.run_b}\n")
            say(shown.to_string(index=False, float_format="{:.3g}".format, na_rep=""), end="\n\n")
    if len(differences.provenance):
        _say_provenance(differences.provenance, args)
    if args.out is not None:
        write_table(moved, args.out)
        say(f"Table: {args.out}")
    unpaired = int((moved["present"] != "both").sum())
    said = f"{count(len(moved) - unpaired, 'number')} moved"
    said += f", {count(unpaired, 'number')} in one run only" if unpaired else ""
    say(f"{said}." if len(moved) else "No number moved.")
    return 1 if len(moved) else 0


def _say_unpaired(table: str, moved: "pd.DataFrame", args: argparse.Namespace) -> None:
    """Print how many rows of a table one run has and the other lacks."""
    keys = [key for key in ("model", "hook", "layer", "head", "term") if key in moved]
    for present, folder in (("only a", args.run_a), ("only b", args.run_b)):
        alone = moved.loc[moved["present"] == present, keys].drop_duplicates()
        if len(alone):
            say(
                f"{table}: {count(len(alone), 'row')} in {folder} only ({', '.join(alone['model'].unique())})"
            )


def _say_provenance(differs: "pd.DataFrame", args: argparse.Namespace) -> None:
    """Print what differs in the provenance; a model of one run only is one line."""
    from mechreg.store import read_provenance

    say("Provenance:")
    folders = (args.run_a, args.run_b)
    models = [{model["name"] for model in read_provenance(folder)["models"]} for folder in folders]
    for folder, own in zip(folders, (models[0] - models[1], models[1] - models[0]), strict=True):
        for model in sorted(own):
            say(f"  models.{model}: in {folder} only")
            differs = differs[~differs["key"].str.startswith(f"models.{model}.")]
    for key, a, b in differs.itertuples(index=False):
        say(f"  {key}: {a} -> {b}")
