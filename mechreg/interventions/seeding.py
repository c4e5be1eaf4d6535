"""Random numbers that belong to a token and a site, independent of batches and of other draws."""

import hashlib
import itertools
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

Purpose = Literal[
    "rotate", "random_direction", "donors", "resample", "other_position", "other_layer", "causes"
]


def generator(seed: int, purpose: Purpose, *place: object) -> np.random.Generator:
    """Return the generator of a seed, a purpose and a place (a document, its window, a layer)."""
    digest = hashlib.sha256(repr((int(seed), purpose, *map(str, place))).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16]))


def directions(
    tokens: pd.DataFrame,
    rows: Int[np.ndarray, " rows"],
    d_model: int,
    *,
    seed: int,
    purpose: Purpose,
    site: object,
) -> Float[np.ndarray, "rows d_model"]:
    """Return one standard normal vector for each row of the token frame, the same in every call.

    A window's vectors come from one generator, position after position, so those of its first positions do
    not depend on the number asked for.
    """
    drawn = np.empty((len(rows), d_model))
    for here, position, place in _by_window(tokens, rows):
        drawn[here] = generator(seed, purpose, *place, site).standard_normal((position.max() + 1, d_model))[
            position
        ]
    return drawn


def uniforms(
    tokens: pd.DataFrame, rows: Int[np.ndarray, " rows"], *, seed: int, purpose: Purpose, site: object
) -> Float[np.ndarray, " rows"]:
    """Return one number from [0, 1) for each row of the token frame, the same in every call."""
    drawn = np.empty(len(rows))
    for here, position, place in _by_window(tokens, rows):
        drawn[here] = generator(seed, purpose, *place, site).random(position.max() + 1)[position]
    return drawn


def _by_window(
    tokens: pd.DataFrame, rows: Int[np.ndarray, " rows"]
) -> Iterator[tuple[Int[np.ndarray, " here"], Int[np.ndarray, " here"], tuple[str, str]]]:
    """Yield, for each run of rows of one window, which rows they are, their positions, and document and window."""
    position = tokens["position"].to_numpy(np.int64)[rows]
    start = rows - position  # windows are whole, so it tells them apart
    edges = np.flatnonzero(np.diff(start, prepend=-1, append=-1))
    for first, last in itertools.pairwise(edges):
        here, row = np.arange(first, last), int(start[first])
        yield here, position[here], (str(tokens["doc"].iat[row]), str(tokens["window"].iat[row]))
