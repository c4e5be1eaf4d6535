"""``mechreg diff``: which numbers moved between two runs, and what in their provenance differs."""

import argparse
from pathlib import Path

from mechreg.cli.saying import say

EXAMPLES = (
    "mechreg diff runs/before runs/after --within 1e-6\n\n"
    "Exit code: 0 if no number moved (whatever the provenance says), 1 if some did, 2 for an error."
)


def options(made: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    made.add_argument("run_a", type=Path, metavar="RUN_A")
    made.add_argument("run_b", type=Path, metavar="RUN_B")
    made.add_argument(
        "--within",
        type=float,
        default=0.0,
        help="smaller moves count as equal: in standard errors for estimates, relative for others (default: 0)",
    )
    made.add_argument("--out", type=Path, help="a .csv or .parquet table of every number that moved")


def diff(args: argparse.Namespace) -> int:
    """Print what moved and what differs; return 1 if a number moved, else 0."""
    from dataclasses import asdict

    import pandas as pd

    from mechreg.diff import largest_moves, number_differences, provenance_differences
    from mechreg.store import TABLES, check_place, open_run, read_provenance, stored_spec, write_table

    if args.out is not None:
        check_place(args.out, endings=TABLES)
    folders = (args.run_a, args.run_b)
    provenance = [read_provenance(folder) | {"spec": asdict(stored_spec(folder))} for folder in folders]
    runs = [open_run(folder) for folder in folders]
    tables = {
        "coefficients": [run.coefficients for run in runs],
        "statistics": [run.statistics for run in runs],
    }
    moved = {name: number_differences(*pair, within=args.within) for name, pair in tables.items()}
    everything = pd.concat([frame.assign(table=name) for name, frame in moved.items()], ignore_index=True)
    for name, frame in moved.items():
        for present, folder in (("only a", args.run_a), ("only b", args.run_b)):
            keys = [key for key in ("model", "hook", "layer", "head", "term") if key in frame]
            alone = frame.loc[frame["present"] == present, keys].drop_duplicates()
            if len(alone):
                say(f"{name}: {len(alone)} rows are in {folder} only ({', '.join(alone['model'].unique())})")
        largest = largest_moves(frame)
        if len(largest):
            say(f"{name}: the largest moves, {args.run_a} to {args.run_b}\n")
            say(largest.to_string(index=False, float_format="{:.3g}".format, na_rep=""), end="\n\n")
    differs = provenance_differences(*provenance)
    if len(differs):
        say("Provenance:")
        models = [{model["name"] for model in made["models"]} for made in provenance]
        for folder, own in zip(folders, (models[0] - models[1], models[1] - models[0]), strict=True):
            for model in sorted(own):
                say(f"  models.{model}: in {folder} only")
                differs = differs[~differs["key"].str.startswith(f"models.{model}.")]
        for key, a, b in differs.itertuples(index=False):
            say(f"  {key}: {a} -> {b}")
    numbers = sum(len(frame) for frame in moved.values())
    if args.out is not None:
        write_table(everything, args.out)
        say(f"Table: {args.out}")
    unpaired = int((everything["present"] != "both").sum())
    told = f"{numbers - unpaired} numbers moved" + (f", {unpaired} are in one run only" if unpaired else "")
    say(f"{told}." if numbers else "No number moved.")
    return 1 if numbers else 0
