"""The command line: a file a verb; everything heavy is imported by the verb that needs it."""

import argparse
import logging
import sys
from collections.abc import Sequence

from mechreg import __version__
from mechreg.cli import check, compare, completion, diff, init, inspect, intervene, replicate, report, run
from mechreg.cli.options import Parser, Verbs, add_debug
from mechreg.cli.terminal import (
    ReaderGone,
    TerminalFormatter,
    begin_again_in_utf8,
    error_sentence,
    open_standard_files,
    say,
)

START = """mechreg: is the attention update to a token predicted by the updates to the tokens before it?

Try these, in this order; all of it is offline:

  mechreg demo
      The study on three small trained models and sixty short texts: betas by layer, and runs/demo/report.html.
  mechreg inspect mini-s --text "Hungarian rock"
      What a model is made of, the hook points that can be read, and the tokens of a text. Then try gpt2.
  mechreg check mini-s
      Every number of a model against plain Hugging Face hooks. Do it with yours before you trust one.
  mechreg compare runs/demo --margin 0.1
      Is it the same in all models of the run? A verdict in sentences, tables, and a figure.

mechreg --help lists all commands; mechreg COMMAND --help has examples of each.
"""
VERBS = (run, init, inspect, check, compare, intervene, diff, completion, replicate, report)


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command and return its exit code: 0 done, 1 a check failed or runs differ, 2 refused."""
    if argv is None:
        begin_again_in_utf8()
    debug, output_is_open = "--debug" in (sys.argv if argv is None else argv), open_standard_files()
    # Ours alone: the libraries show their own notes themselves.
    notes, log = logging.StreamHandler(sys.stderr), logging.getLogger("mechreg")
    notes.setFormatter(TerminalFormatter("mechreg: %(message)s"))
    log.addHandler(notes)
    try:
        args = parser().parse_args(argv)
        code = args.verb(args)
        say(end="", flush=True)
        if not output_is_open:
            print("mechreg: standard output is closed; everything but printing was done.", file=sys.stderr)
        return code
    except ReaderGone:
        return 141
    except Exception as error:
        if debug:
            raise
        print(f"mechreg: {error_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        said = "mechreg: interrupted; what was written is kept, and the same command continues from there."
        print(said, file=sys.stderr)
        return 130
    finally:
        log.removeHandler(notes)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    made = Parser(
        prog="mechreg",
        description="Is the attention update to a token predicted by the updates to the tokens before it?",
        epilog="Start with: mechreg demo",
    )
    made.add_argument("--version", action="version", version=f"mechreg {__version__}")
    made.set_defaults(verb=_start)
    add_debug(made)
    verbs = Verbs(made.add_subparsers(title="commands", metavar="COMMAND"))
    for module in VERBS:
        module.declare(verbs)
    return made


def _start(args: argparse.Namespace) -> int:
    say(START, end="")
    return 0
