"""``mechreg run`` and ``mechreg demo``: a spec carried out."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mechreg.cli.options import Verbs, add_device, add_number, files_of_corpus, listed, require_places
from mechreg.cli.terminal import say
from mechreg.schema import InputError, require_option

if TYPE_CHECKING:
    from mechreg.spec import Spec

EXAMPLES = (
    "mechreg run spec.toml\n"
    '         mechreg run --models mini-s,mini-m --corpus demo --formula "log_norm ~ lag1" --name one-lag'
)
KEYS = ("models", "corpus", "formula", "effects", "nulls", "name")  # of a spec that is not in a file


def declare(verbs: Verbs) -> None:
    """Add both verbs and their options."""
    made = verbs.add(run, example=EXAMPLES)
    made.add_argument("spec", type=Path, nargs="?", help="a TOML file (mechreg init writes one)")
    made.add_argument(
        "--models", type=listed, help="without a file: hub names, folders or miniatures, with commas"
    )
    made.add_argument("--corpus", help='without a file: "demo", a file, or a glob in quotes')
    made.add_argument("--formula", help="without a file (default: log_norm ~ lag1 + lag2)")
    made.add_argument(
        "--effects", type=listed, help="without a file: levels to take off, such as doc,position"
    )
    made.add_argument(
        "--nulls", type=listed, help="without a file: compared with, such as token_order,norm_order"
    )
    made.add_argument("--name", help="without a file: of the run (default: run)")
    made.add_argument("--resume", action="store_true", help="continue a run; refuse to begin one")
    made.add_argument("--engine", default="local", help="local (this process) or ray (mechreg[ray])")
    add_number(made, "--workers", "of engine ray", default=2, least=1, whole=True)
    add_number(made, "--gpus-per-worker", "of engine ray; 0.5 shares a GPU", default=0, least=0)
    made.add_argument("--address", help="of a running Ray cluster; by default workers start on this machine")
    offline = verbs.add(demo, example="mechreg demo")
    offline.set_defaults(engine="local", resume=False)
    for one in (made, offline):
        one.add_argument("--out", type=Path, help="the run folder (default: runs/<name of the spec>)")
        add_device(one)
        one.add_argument("--device-map", help="split a model over GPUs: auto, balanced, sequential, ...")
        add_number(one, "--batch-tokens", "tokens in a batch", least=1, whole=True)


def run(args: argparse.Namespace) -> int:
    """Carry out a spec: norms, fits, tables, figures, report."""
    from mechreg.spec import Spec, read_spec, spec_beside

    given = {key: value for key in KEYS if (value := getattr(args, key)) is not None}
    if (args.spec is None) == (not given):
        raise InputError(
            "run needs a spec file, or --models and --corpus, not both; `mechreg init` writes a file to begin with."
        )
    if args.spec is not None:
        return _carry_out(args, read_spec(args.spec))
    if not {"models", "corpus"} <= given.keys():
        raise InputError(f"run without a file needs --models and --corpus; got {', '.join(given)}.")
    return _carry_out(args, spec_beside(Spec(**given), Path.cwd()))


def demo(args: argparse.Namespace) -> int:
    """Run the study on the models and texts that ship, offline."""
    from mechreg import miniatures
    from mechreg.spec import read_spec

    return _carry_out(args, read_spec(miniatures.DEMO_SPEC))


def _carry_out(args: argparse.Namespace, spec: "Spec") -> int:
    """Carry out a spec; the slow imports happen here, after it has been read."""
    require_option(args.engine, ("local", "ray"), name="--engine")
    folder = Path("runs") / spec.name if args.out is None else args.out
    if not args.resume and _is_complete(folder, spec):
        say(
            f"{folder} is already complete, and nothing has changed since. Give another --out to do it again."
        )
        say(f"Report: {folder / 'report.html'}")
        return 0
    require_places(spec.models)
    files_of_corpus(spec.corpus)
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


def _is_complete(folder: Path, spec: "Spec") -> bool:
    """Return whether a run of this spec is finished and neither its files nor its inputs have changed since."""
    from mechreg.spec import write_spec

    if spec.corpus.startswith("datasets:"):
        return False  # whether the hub's has changed is not known
    manifest = folder / "_manifest.json"
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        if (folder / "spec.toml").read_text(encoding="utf-8") != write_spec(spec):
            return False
        if any((folder / name).stat().st_size != entry["bytes"] for name, entry in files.items()):
            return False
        older = [*map(folder.joinpath, files), folder / "report.html", *_read_by(spec)]
        return all(path.stat().st_mtime <= manifest.stat().st_mtime for path in older)
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return False  # the run itself reports the problem, or repairs it


def _read_by(spec: "Spec") -> Iterator[Path]:
    """Yield the local files that a run reads, and their folders, whose times show files added or removed."""
    for path in (*files_of_corpus(spec.corpus), *filter(Path.exists, map(Path, spec.models))):
        yield from (path, path.parent, *(path.iterdir() if path.is_dir() else ()))


def _say_results(folder: Path) -> None:
    from mechreg.report import counted_once, headline, legend, result_table, side_by_side
    from mechreg.store import open_run, read_provenance

    opened = open_run(folder)
    persistence = opened.table("persistence.csv")
    results = result_table(opened.coefficients, persistence, effects=opened.spec["effects"])
    if len(results):  # an intercept-only formula has no term to report
        say(legend(results))
        say(side_by_side(results).to_string(index=False))
        say()
    results = counted_once(results, read_provenance(folder)["models"])
    nulls = opened.table("nulls.csv") if (folder / "nulls.csv").exists() else None
    for hook in results["hook"].unique() if len(results) else [None]:
        answer, sample, context = headline(results[results["hook"] == hook], nulls=nulls)
        say(" ".join(filter(None, [f"{hook}:" if hook else "", answer, sample])))
    say(context)
    for note in persistence["note"].dropna().unique():
        say(f"Within documents and positions: {note}")
    problems = opened.table("problems.csv")
    if len(problems):
        say(f"{len(problems)} documents could not be used; see {folder / 'problems.csv'}")
    say(f"Report: {folder / 'report.html'}")
