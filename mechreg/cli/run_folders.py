"""What a finished run left in its folder, read for the commands that go on from it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechreg.schema import InputError

if TYPE_CHECKING:  # the command line must start fast
    import pandas as pd

    from mechreg.spec import Spec


def norms_of_run(folder: Path) -> "tuple[Spec, pd.DataFrame]":
    """Return the spec of a run and the norm frame of its models."""
    from mechreg.store import open_run, stored_spec

    provenance_of_run(folder)  # it is written when all shards are there
    spec = stored_spec(folder)
    if spec.keep == "moments":
        raise InputError(f'{str(folder)!r} keeps a sample of its norms; run its spec with keep = "norms".')
    run = open_run(folder)
    run.require_all()
    return spec, run.norms()


def provenance_of_run(folder: Path) -> dict[str, Any]:
    """Return what provenance.json of a finished run holds."""
    from mechreg.store import read_provenance

    return read_provenance(folder)
