"""``mechreg replicate``: a published finding, published against obtained."""

import argparse

from mechreg.cli.options import (
    Verbs,
    add_backend,
    add_corpus,
    add_device,
    documents_of,
    listed,
    require_places,
)
from mechreg.cli.terminal import say
from mechreg.schema import InputError, require_option

# As FINDINGS has them, which is not imported to refuse.
NAMES = (
    "lagged_norms",
    "norm_growth",
    "first_token_outlier",
    "massive_activations",
    "sink_rate",
    "baseline_ce",
    "layer_drop",
)


def declare(verbs: Verbs) -> None:
    """Add the verb and its options."""
    made = verbs.add(replicate, example="mechreg replicate norm_growth --models mini-s,mini-m")
    made.add_argument("name", nargs="?", help="a finding; --list shows them")
    made.add_argument("--list", action="store_true", help="show the findings and their sources")
    made.add_argument(
        "--models", type=listed, help="names or folders, with commas (default: the source's own)"
    )
    add_corpus(made)
    bos = "begin texts with BOS (default: as the source did)"
    made.add_argument("--bos", action=argparse.BooleanOptionalAction, help=bos)
    add_backend(made)
    add_device(made)


def replicate(args: argparse.Namespace) -> int:
    """Run a published finding again: published against obtained."""
    if not args.list:  # before anything heavy is imported
        if args.name is None:
            raise InputError(f"replicate needs a finding: {', '.join(NAMES)}. --list says what they are.")
        require_option(args.name, NAMES, name="the finding")
        require_places(args.models or ())
    documents = None if args.list else documents_of(args)
    from mechreg.findings import FINDINGS, described, replicate, shown

    if args.list:
        say("\n\n".join(described(finding) for finding in FINDINGS.values()))
        return 0
    table = replicate(
        args.name,
        models=args.models,
        documents=documents,
        prepend_bos=args.bos,
        backend=args.backend,
        device=args.device,
    )
    say(shown(table))
    for note in filter(None, table["note"].unique()):
        say(f"\n{note}")
    say()
    say(described(FINDINGS[args.name]))
    return 1 if (~table["agrees"].fillna(True)).any() else 0
