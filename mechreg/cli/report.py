"""``mechreg report``: the page of a run, written anew."""

import argparse
from pathlib import Path

from mechreg.cli.options import Verbs
from mechreg.cli.terminal import say


def declare(verbs: Verbs) -> None:
    """Add the verb and its options."""
    made = verbs.add(report, example="mechreg report runs/demo --out demo.html")
    made.add_argument("run", type=Path, help="a run folder")
    made.add_argument("--out", type=Path, help="the page's file (default: report.html in the folder)")


def report(args: argparse.Namespace) -> int:
    """Write the page of a run anew from what its folder holds."""
    from mechreg.report.run_page import run_report
    from mechreg.store import check_place, write_text

    out = args.run / "report.html" if args.out is None else args.out
    if args.out is not None:
        check_place(args.out)
    write_text(run_report(args.run), out)
    say(f"Report: {out}")
    return 0
