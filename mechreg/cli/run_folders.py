"""What a finished run left in its folder, read for the commands that go on from it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechreg.schema import InputError

if TYPE_CHECKING:  # the command line must start fast
    import pandas as pd

    from mechreg.spec import Spec


def norms_of_run(folder: Path) -> "tuple[Spec, pd.DataFrame]":
    """Return the spec of a run and the norm frame of its models."""
    import pandas as pd

    from mechreg.spec import read_spec
    from mechreg.store import read_norm_shard

    provenance_of_run(folder)  # it is written last: the run is whole
    shards = sorted(folder.glob("norms/*/*/norms-*.parquet"))
    made = {(path.parent, path.stem.split("-")[1]) for path in shards}
    if len(made) > len({parent for parent, _ in made}):
        raise InputError(
            f"{str(folder)!r} has norms of several settings, such as batch sizes; run it into a new --out."
        )
    parts = [read_norm_shard(path).astype({"model": str, "hook": str, "doc": str}) for path in shards]
    norms = pd.concat(parts, ignore_index=True)
    return read_spec(folder / "spec.toml"), norms.astype(dict.fromkeys(("model", "hook", "doc"), "category"))


def provenance_of_run(folder: Path) -> dict[str, Any]:
    """Return what provenance.json of a finished run holds."""
    try:
        return json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{str(folder)!r} is not the folder of a finished run (provenance.json: {error.strerror}); "
            "mechreg run makes one."
        ) from error
