"""``mechreg run`` and ``mechreg demo``: a spec carried out."""

import argparse
from pathlib import Path

from mechreg.cli.options import Verbs, add_device
from mechreg.cli.terminal import say
from mechreg.schema import require_option


def declare(verbs: Verbs) -> None:
    """Add both verbs and their options."""
    made = verbs.add(run, example="mechreg run spec.toml")
    made.add_argument("spec", type=Path, help="a TOML file")
    made.add_argument("--resume", action="store_true", help="continue a run; refuse to begin one")
    made.add_argument("--engine", default="local", help="local (this process) or ray (mechreg[ray])")
    made.add_argument("--workers", type=int, default=2, help="of engine ray")
    made.add_argument("--gpus-per-worker", type=float, default=0, help="of engine ray; 0.5 shares a GPU")
    made.add_argument("--address", help="of a running Ray cluster; by default workers start on this machine")
    offline = verbs.add(demo, example="mechreg demo")
    offline.set_defaults(engine="local", resume=False)
    for one in (made, offline):
        one.add_argument("--out", type=Path, help="the run folder (default: runs/<name of the spec>)")
        add_device(one)
        one.add_argument("--device-map", help="split a model over GPUs: auto, balanced, sequential, ...")
        one.add_argument("--batch-tokens", type=int, help="tokens in a batch")


def run(args: argparse.Namespace) -> int:
    """Carry out a spec: norms, fits, tables, figures, report."""
    return _carry_out(args, args.spec)


def demo(args: argparse.Namespace) -> int:
    """Run the study on the models and texts that ship, offline."""
    from mechreg import miniatures

    return _carry_out(args, miniatures.DEMO_SPEC)


def _carry_out(args: argparse.Namespace, file: Path) -> int:
    from mechreg.spec import read_spec

    spec = read_spec(file)  # before all that carries it out is imported, which takes seconds
    require_option(args.engine, ("local", "ray"), name="--engine")
    options = {key: getattr(args, key) for key in ("out", "device", "device_map", "resume")}
    if args.batch_tokens is not None:
        options["batch_tokens"] = args.batch_tokens
    if args.engine == "ray":
        from mechreg.cluster import run_on_ray

        options |= {key: getattr(args, key) for key in ("workers", "gpus_per_worker", "address")}
        folder = run_on_ray(spec, **options)
    else:
        from mechreg.run import run_spec

        folder = run_spec(spec, **options)
    _say_results(folder)
    return 0


def _say_results(folder: Path) -> None:
    from mechreg.report import answer, headline, result_table
    from mechreg.store import open_run

    opened = open_run(folder)
    results = result_table(opened.coefficients)
    if len(results):  # a formula of an intercept alone has no term to speak of
        say(results.to_string(index=False, float_format="{:.3f}".format))
        say()
        say("\n".join(answer(results)))
    say(headline(results)[1])
    problems = opened.table("problems.csv")
    if len(problems):
        say(f"{len(problems)} documents could not be used; see {folder / 'problems.csv'}")
    say(f"Report: {folder / 'report.html'}")
