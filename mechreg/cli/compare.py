"""``mechreg compare``: a term's profile over depth in all models of one run or several."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mechreg.cli.options import Verbs, add_number
from mechreg.cli.terminal import say
from mechreg.schema import InputError

if TYPE_CHECKING:  # the command line must start fast
    from mechreg.regression import LagSums

EXAMPLES = (
    "mechreg compare runs/demo --margin 0.1\n"
    "         mechreg compare runs/a runs/b --groups mini-s=small,mini-s-b=small,mini-m=medium --out compared"
)
LEAST_DRAWS = 199  # as compare_profiles has it, which is not imported to refuse


def declare(verbs: Verbs) -> None:
    """Add the verb and its options."""
    made = verbs.add(compare, example=EXAMPLES)
    made.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    made.add_argument("--term", default="lag1", help="the term compared (default: lag1)")
    made.add_argument("--hook", help="which hook point, where the runs have several")
    margin = "coefficients closer than this count as equal; without it, no equivalence"
    add_number(made, "--margin", margin, least=0, strict=True, example=0.1)
    groups = "MODEL=GROUP,... for every model: models of one group are seeds"
    made.add_argument("--groups", type=_pairs, help=groups)
    add_number(
        made,
        "--draws",
        "bootstrap draws of the documents",
        default=1999,
        least=LEAST_DRAWS,
        most=1_000_000,
        whole=True,
    )
    add_number(made, "--seed", "of the bootstrap", default=0, least=0, whole=True)
    made.add_argument("--out", type=Path, help="folder of the tables (default: the run folder, if it is one)")


def compare(args: argparse.Namespace) -> int:
    """Say whether a term's profile over depth is the same in all models of one run or several."""
    from mechreg.store import check_place, open_run, require_no_links, write_table, write_text

    for folder in args.runs:  # before anything heavy is imported
        open_run(folder)
    if args.out is None and len(args.runs) > 1:
        raise InputError("To compare several runs, name a folder for the tables with --out FOLDER.")
    out = args.runs[0] if args.out is None else args.out
    if args.out is not None:
        check_place(args.out / "universality.csv")
    if (out / "spec.toml").is_file():
        require_no_links(out)
    from mechreg.charts import plot_profiles, save_chart
    from mechreg.universality import compare_profiles

    options = {key: getattr(args, key) for key in ("term", "hook", "margin", "groups", "draws", "seed")}
    compared = compare_profiles(_sums_of_runs(args.runs), **options)
    # Pairwise agreement is the main table; the others have their own name as a suffix.
    write_table(compared.agreement, out / "universality.csv")
    for name in ("profiles", "binned", "differences", "equivalence", "meta", "yardstick", "leave_one_out"):
        if len(table := getattr(compared, name)):
            write_table(table, out / f"universality_{name}.csv")
    write_text("\n".join(compared.verdict) + "\n", out / "universality.txt")
    save_chart(
        plot_profiles(compared.profiles), out / "figures" / "universality_profiles", formats=("html", "svg")
    )
    say("\n".join(compared.verdict))
    say(f"\nTables: {out / 'universality.csv'} and universality_*.csv beside it")
    say(f"Figure: {out / 'figures' / 'universality_profiles.html'}")
    return 0


def _sums_of_runs(folders: list[Path]) -> "LagSums":
    """Return the sums of all models' regressions."""
    from mechreg.run import run_moments
    from mechreg.run.refit_stored import merged
    from mechreg.store import open_run, read_provenance, stored_spec

    parts: dict[str, LagSums] = {}
    options: dict[str, object] = {}
    for folder in folders:
        facts, spec, run = read_provenance(folder), stored_spec(folder), open_run(folder)
        run.require_all()
        keys = ("formula", "effects", "skip", "drop_sinks", "cov", "prepend_bos")
        of_run = {key: getattr(spec, key) for key in keys}
        of_run["corpus"] = facts["corpus"]["sha256"]
        options = options or of_run
        for key, value in of_run.items():
            if options[key] != value:
                raise InputError(
                    f"{str(folder)!r} differs from {str(folders[0])!r} in its {key}, so that their coefficients are "
                    "not comparable; compare runs that share it."
                )
        for name in run.models:
            if name in parts:
                raise InputError(
                    f"The model {name!r} is in more than one of the runs; give each model in one run only."
                )
            parts[name] = run_moments(folder, models=[name])
    return merged(parts.values())


def _pairs(text: str) -> dict[str, str]:
    pairs = [entry.partition("=") for entry in text.split(",")]
    if not all(name and equals and group for name, equals, group in pairs):
        raise argparse.ArgumentTypeError(f"must be MODEL=GROUP,MODEL=GROUP,...; got {text!r}")
    return {name: group for name, _, group in pairs}
