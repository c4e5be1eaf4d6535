"""``mechreg inspect``: a model's architecture, and a text's tokens."""

import argparse

from mechreg.cli.options import Verbs, add_model, load
from mechreg.cli.terminal import say
from mechreg.schema import InputError
from mechreg.words import count


def declare(verbs: Verbs) -> None:
    """Add the verb and its options."""
    made = verbs.add(inspect, example='mechreg inspect mini-s --text "Hello"')
    add_model(made)
    made.add_argument("--text", help="a text whose tokens are listed")


def inspect(args: argparse.Namespace) -> int:
    """Show a model's architecture, and a text's tokens."""
    if args.text is not None and not args.text.strip():
        raise InputError("--text is empty; give a text to tokenize.")
    model = load(args)
    from mechreg.corpus import tokenize
    from mechreg.models import describe_model

    tokens = None if args.text is None else tokenize(model, [args.text])
    say(describe_model(model))
    if tokens is not None:
        table = tokens[["token_id", "token"]].assign(token=[repr(token) for token in tokens["token"]])
        say(f"\n{count(len(args.text), 'character')}, {count(len(tokens), 'token')}\n")
        say(table.rename_axis("index").reset_index().to_string(index=False))
    return 0
