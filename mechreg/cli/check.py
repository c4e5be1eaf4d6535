"""``mechreg check``: every number of a model against raw Hugging Face hooks."""

import argparse

from mechreg.cli.options import Verbs, add_model, load
from mechreg.cli.terminal import say


def declare(verbs: Verbs) -> None:
    """Add the verb and its options."""
    add_model(verbs.add(check, example="mechreg check mini-s"))


def check(args: argparse.Namespace) -> int:
    """Check every number of a model against raw Hugging Face hooks."""
    model = load(args)
    from mechreg.check import check_model

    table = check_model(model)
    shown = table.assign(passed=table["passed"].map({True: "ok", False: "FAILED"}))
    say(shown.to_string(index=False, float_format="{:.1e}".format))
    return 0 if table["passed"].all() else 1
