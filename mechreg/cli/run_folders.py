"""What a finished run left in its folder, read for the commands that go on from it."""

from pathlib import Path
from typing import Any

from mechreg.schema import InputError


def provenance_of_run(folder: Path) -> dict[str, Any]:
    """Return what provenance.json of a finished run holds."""
    from mechreg.store import read_json

    try:
        return read_json(folder / "provenance.json")
    except OSError as error:
        raise InputError(
            f"{str(folder)!r} is not the folder of a finished run (provenance.json: {error.strerror}); "
            "mechreg run makes one."
        ) from error
