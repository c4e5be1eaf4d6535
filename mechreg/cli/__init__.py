"""The verbs of the command line; everything heavy is imported by the verb that needs it."""

import argparse
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from mechreg import __version__
from mechreg.cli import comparing, differing, intervening
from mechreg.cli.saying import begin_again_in_utf8, say
from mechreg.outside import for_terminal
from mechreg.schema import InputError, MechregError, require_option

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


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command and return its exit code: 0 done, 1 a check failed or runs differ, 2 refused.

    Examples
    --------
    >>> main(["inspect", "no-such-folder/x/y"])
    2
    """
    if argv is None:
        begin_again_in_utf8()
    parser = _parser()
    debug, heard = False, _opened()
    # Ours alone: the libraries show their own notes themselves.
    notes, log = logging.StreamHandler(sys.stderr), logging.getLogger("mechreg")
    notes.setFormatter(_Note("mechreg: %(message)s"))
    log.addHandler(notes)
    try:
        args = parser.parse_args(argv)
        debug = args.debug
        code = args.verb(args)
        sys.stdout.flush()
        if not heard:
            print(
                "mechreg: standard output is closed: nothing was printed, all else is done.", file=sys.stderr
            )
        return code
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _has_lost_its_reader():
            return 141
        if debug:
            raise
        print(f"mechreg: {_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "mechreg: interrupted; what was written is kept, and the same command goes on from there.",
            file=sys.stderr,
        )
        return 130
    finally:
        log.removeHandler(notes)


def _opened() -> bool:
    """Open what is closed of the three standard files, lest a file gets its number; return whether output was open."""
    heard = sys.stdout is not None
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    return heard


def _has_lost_its_reader() -> bool:
    """Return whether the reader of our output, such as head, has seen enough; there is none from then on."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _sentence(error: Exception) -> str:
    """Return what an error says, on one line and in characters that a terminal can show."""
    said = str(error)
    if isinstance(error, MemoryError):
        said = "the memory is not enough; give smaller documents or --batch-tokens. What was written is kept."
    elif isinstance(error, ConnectionError):
        said = f"a connection broke off ({error.strerror or error}); the same command goes on from what was written."
    elif isinstance(error, OSError):  # what no step foresaw: a full disk, a drive that went away
        place = "" if error.filename is None else f"{str(error.filename)!r}: "
        said = f"{place}{error.strerror or error}; check the path and the disk. What was written is kept."
    elif not isinstance(error, MechregError):
        what = " ".join(f"{type(error).__name__}: {error}".split())
        said = f"failed, unforeseen ({what}); the same command with --debug shows where."
    return for_terminal(said, lines=False)


class _Note(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return for_terminal(super().format(record))


class _Parser(argparse.ArgumentParser):
    """A parser that refuses like everything else does: one sentence, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help.")


def _batch_tokens(value: str) -> int:
    if not re.fullmatch("0*[1-9][0-9]{0,11}", value):
        raise argparse.ArgumentTypeError(f"must be a positive whole number, got {value!r}")
    return int(value)


def _load(args: argparse.Namespace) -> Any:
    from mechreg.models import load_model

    return load_model(
        args.model, backend=args.backend, revision=args.revision, allow_pickle=args.allow_pickle
    )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mechreg",
        description="Is the attention update to a token predicted by the updates to the tokens before it?",
        epilog="Start with: mechreg demo",
    )
    parser.add_argument("--version", action="version", version=f"mechreg {__version__}")
    parser.set_defaults(verb=_start, debug=False)
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND")

    def verb(name: str, function: object, text: str, example: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"Example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.add_argument("--debug", action="store_true", help="show the traceback of an error")
        made.set_defaults(verb=function)
        return made

    def running(made: argparse.ArgumentParser) -> None:
        made.add_argument("--out", type=Path, help="the run folder (default: runs/<name of the spec>)")
        made.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
        made.add_argument("--device-map", help="split a model over GPUs: auto, balanced, sequential, ...")
        made.add_argument("--batch-tokens", type=_batch_tokens, help="tokens in a batch")

    run = verb(
        "run", _run, "Carry out a spec: norms, fits, tables, figures, report.", "mechreg run spec.toml"
    )
    run.add_argument("spec", type=Path, help="a TOML file")
    run.add_argument(
        "--resume", action="store_true", help="go on with a run that was begun; refuse to begin one"
    )
    run.add_argument("--engine", default="local", help="local (this process) or ray (mechreg[ray])")
    run.add_argument("--workers", type=int, default=2, help="of engine ray")
    run.add_argument("--gpus-per-worker", type=float, default=0, help="of engine ray; 0.5 shares a GPU")
    run.add_argument("--address", help="of a running Ray cluster; by default workers start on this machine")
    running(run)
    running(verb("demo", _demo, "Run the study on the models and texts that ship, offline.", "mechreg demo"))

    def loading(made: argparse.ArgumentParser) -> None:
        made.add_argument("model", help="a hub name, a folder, or a miniature such as mini-s")
        made.add_argument("--backend", default="auto", help="auto, hooked or bridge")
        made.add_argument("--revision", help="branch, tag or commit on the hub")
        made.add_argument("--allow-pickle", action="store_true", help="read weights that are only pickled")

    inspect = verb(
        "inspect",
        _inspect,
        "Show a model's architecture, and a text's tokens.",
        'mechreg inspect mini-s --text "Hello"',
    )
    loading(inspect)
    inspect.add_argument("--text", help="a text whose tokens are listed")
    check = verb(
        "check",
        _check,
        "Check every number of a model against raw Hugging Face hooks.",
        "mechreg check mini-s",
    )
    loading(check)

    comparing.options(
        verb(
            "compare",
            comparing.compare,
            "Say whether a term's profile over depth is the same in all models of one run or several.",
            comparing.EXAMPLES,
        )
    )
    intervene = verb(
        "intervene",
        intervening.intervene,
        "Edit a model's updates and show what changes in its next tokens and later norms.",
        intervening.EXAMPLES,
    )
    loading(intervene)
    intervening.options(intervene)
    differing.options(
        verb(
            "diff",
            differing.diff,
            "Show which numbers moved between two runs, and what in their provenance differs.",
            differing.EXAMPLES,
        )
    )
    completion = verb(
        "completion",
        _completion,
        "Print the script that completes mechreg's commands and options in your shell.",
        "mechreg completion bash > ~/.local/share/bash-completion/completions/mechreg",
    )
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    replicate = verb(
        "replicate",
        _replicate,
        "Run a published finding again: published against obtained.",
        "mechreg replicate norm_growth --models mini-s,mini-m",
    )
    replicate.add_argument("name", nargs="?", help="a finding; --list shows them")
    replicate.add_argument("--list", action="store_true", help="show the findings and their sources")
    replicate.add_argument("--models", help="names or folders, with commas (default: the source's own)")
    intervening.corpus_options(replicate)
    replicate.add_argument(
        "--bos",
        action=argparse.BooleanOptionalAction,
        help="begin texts with BOS (default: as the source did)",
    )
    replicate.add_argument("--backend", default="auto", help="auto, hooked or bridge")
    replicate.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    report = verb(
        "report",
        _report,
        "Write the page of a run anew from what its folder holds.",
        "mechreg report runs/demo --out demo.html",
    )
    report.add_argument("run", type=Path, help="a run folder")
    report.add_argument("--out", type=Path, help="the page's file (default: report.html in the folder)")
    return parser


def _start(args: argparse.Namespace) -> int:
    say(START, end="")
    return 0


def _run(args: argparse.Namespace) -> int:
    from mechreg.spec import read_spec

    return _carry_out(args, read_spec(args.spec))


def _demo(args: argparse.Namespace) -> int:
    from mechreg import miniatures
    from mechreg.spec import read_spec

    return _carry_out(args, read_spec(miniatures.DEMO_SPEC))


def _carry_out(args: argparse.Namespace, spec: object) -> int:
    from mechreg.report import answer, headline, result_table
    from mechreg.run import run_spec
    from mechreg.store import open_run

    options: dict = {"device": args.device, "device_map": args.device_map}
    if args.batch_tokens is not None:
        options["batch_tokens"] = args.batch_tokens
    if args.verb is _run:
        require_option(args.engine, ("local", "ray"), name="--engine")
        options["resume"] = args.resume
    if args.verb is _run and args.engine == "ray":
        from mechreg.cluster import run_on_ray

        options |= {key: getattr(args, key) for key in ("workers", "gpus_per_worker", "address")}
        folder = run_on_ray(spec, out=args.out, **options)  # type: ignore[arg-type]
    else:
        folder = run_spec(spec, out=args.out, **options)  # type: ignore[arg-type]
    run = open_run(folder)
    results = result_table(run.coefficients)
    say(results.to_string(index=False, float_format="{:.3f}".format))
    say()
    say("\n".join(answer(results)))
    say(headline(results)[1])
    problems = run.table("problems.csv")
    if len(problems):
        say(f"{len(problems)} documents could not be used; see {folder / 'problems.csv'}")
    say(f"Report: {folder / 'report.html'}")
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from mechreg.corpus import tokenize
    from mechreg.models import describe_model

    if args.text is not None and not args.text.strip():
        raise InputError("--text is empty; give a text to tokenize.")
    model = _load(args)
    tokens = None if args.text is None else tokenize(model, [args.text])
    say(describe_model(model))
    if tokens is not None:
        table = tokens[["token_id", "token"]].assign(token=[repr(token) for token in tokens["token"]])
        say(f"\n{len(args.text)} characters, {len(tokens)} tokens\n")
        say(table.rename_axis("index").reset_index().to_string(index=False))
    return 0


def _check(args: argparse.Namespace) -> int:
    from mechreg.check import check_model

    table = check_model(_load(args))
    say(
        table.assign(passed=table["passed"].map({True: "ok", False: "FAILED"})).to_string(
            index=False, float_format="{:.1e}".format
        )
    )
    return 0 if table["passed"].all() else 1


def _completion(args: argparse.Namespace) -> int:
    from mechreg.cli.completing import script

    say(script(_parser(), args.shell), end="")
    return 0


def _replicate(args: argparse.Namespace) -> int:
    from mechreg.findings import FINDINGS, described, replicate, shown

    if args.list:
        say("\n\n".join(described(finding) for finding in FINDINGS.values()))
        return 0
    if args.name is None:
        raise InputError(f"replicate needs a finding: {', '.join(FINDINGS)}. --list says what they are.")
    models = None if args.models is None else [name.strip() for name in args.models.split(",")]
    table = replicate(
        args.name,
        models=models,
        documents=intervening.documents_of(args),
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


def _report(args: argparse.Namespace) -> int:
    from mechreg.report import run_report
    from mechreg.store import check_place, write_text

    out = args.run / "report.html" if args.out is None else args.out
    if args.out is not None:
        check_place(args.out)
    write_text(run_report(args.run), out)
    say(f"Report: {out}")
    return 0
