"""The comparison of one term's profiles across models: tables, and what they say in words."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from mechreg.outside import any_frames
from mechreg.regression import LaggedFits, LagSums, sums_by_document
from mechreg.schema import (
    InputError,
    require_conf_level,
    require_number,
    require_shared,
    require_whole_number,
)
from mechreg.universality import tables
from mechreg.universality.pairs import group_of_each
from mechreg.universality.profiles import WHO, joint_profiles
from mechreg.universality.verdict import Worded, verdict

# Fewer draws give no 95% interval of the largest of several deviations.
MIN_DRAWS = 199


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ProfileComparison(Worded):
    """What `compare_profiles` returns: tidy frames, and ``verdict``, the same in words.

    All frames have ``hook``, ``term``, ``conf_level`` and ``n_docs``. ``conf_low`` and ``conf_high`` hold at one place,
    ``sim_low`` and ``sim_high`` at all depths of a profile or pair at once. ``same_group`` is NA without groups.

    Attributes
    ----------
    profiles : pandas.DataFrame
        A row a layer: model, group, layer, depth, estimate, std_error, the bands, n (tokens).
    binned : pandas.DataFrame
        A row a model and slice of depth: bin, depth_low, depth_high, depth, estimate, std_error, the bands.
    differences : pandas.DataFrame
        A row a pair and slice: estimate (model_a - model_b), std_error, the bands, p_value (pointwise, two-sided).
    agreement : pandas.DataFrame
        A row a pair and ``measure``: observed (textbook formula), estimate (without sampling noise), its interval,
        p_value (against shapes as smooth that have nothing to do with each other), bins, note (why p is NaN).
    equivalence : pandas.DataFrame
        A row a pair and slice (``scope`` "bin"), and one for all its slices ("overall", of the largest
        |difference|): estimate, margin, the bands at level 1 - 2 alpha, p_value of two one-sided tests, equivalent.
        Empty without a margin.
    meta : pandas.DataFrame
        A row a slice: n_models, estimate (random-effects mean), std_error, its interval, tau2, i2, q, q_p_value,
        prediction_low, prediction_high.
    yardstick : pandas.DataFrame
        RMS difference between groups, within groups, and their ratio; empty without two models in some group.
    leave_one_out : pandas.DataFrame
        A row a model: rms_to_others and its interval, bins_inside (the others' prediction interval), tau_without.
    verdict : tuple of str
        Sentences.
    """

    profiles: pd.DataFrame
    binned: pd.DataFrame
    differences: pd.DataFrame
    agreement: pd.DataFrame
    equivalence: pd.DataFrame
    meta: pd.DataFrame
    yardstick: pd.DataFrame
    leave_one_out: pd.DataFrame
    verdict: tuple[str, ...]

    def _repr_html_(self) -> str:
        return self._html(self.agreement, ["measure", "estimate", "conf_low", "conf_high", "p_value"])


@any_frames
def compare_profiles(
    fits: LaggedFits | LagSums,
    *,
    term: str = "lag1",
    hook: str | None = None,
    groups: Mapping[str, str] | None = None,
    margin: float | None = None,
    bins: int | None = None,
    draws: int = 1999,
    conf_level: float = 0.95,
    seed: int = 0,
) -> ProfileComparison:
    """Return how alike a term's coefficients are over relative depth in several models.

    Parameters
    ----------
    fits : LaggedFits or LagSums
        What `fit_lagged` gives for two models or more, all their layers (but the first, where the formula has the
        layer below); or the sums of products, clustered by doc. The models are refitted on the documents that all of
        them read.
    term : str
    hook : str, optional
        Which hook point, where there are several.
    groups : mapping of str to str, optional
        A group for every model, such as its size: models of one group are then seeds, by which differences between
        groups are measured.
    margin : float, optional
        Coefficients that differ by less count as equal, in units of the coefficient: a judgement that the data cannot
        supply. Without it, equivalence is not tested.
    bins : int, optional
        Equal slices of relative depth in which models are compared; by default as many as the shallowest model has
        coefficients, which is also the most. Every model's layers are averaged over the slices, by the part of each
        that lies in them: all count, nothing is interpolated.
    draws, seed : int
        Of the bootstrap: documents are drawn with replacement, the same ones in every model and layer.
    conf_level : float
        Of all intervals; 1 - conf_level is the level of the equivalence tests.

    Returns
    -------
    ProfileComparison

    Raises
    ------
    SchemaError, InputError, NumericalError
        A missing column, term or layer, one model only, fewer than six shared documents, a bad option; without some
        document, or in some draw, the terms are collinear.

    Notes
    -----
    Standard errors are CRV3 with t(G - 1); bands over depth are sup-t (`.bands`), agreement is without sampling noise
    (`.agreement`), its null keeps the profiles' smoothness (`.shapes`), and the meta-analysis counts that models
    read the same documents (`.pooling`).

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from mechreg.regression import LagSums
    >>> rng, rows = np.random.default_rng(0), []
    >>> for model, n_layers in {"small": 2, "large": 4}.items():
    ...     for layer in range(n_layers):
    ...         x, noise = rng.normal(size=(2, 400))
    ...         rows.append(pd.DataFrame({"model": model, "hook": "attn_out", "layer": layer,
    ...             "depth": (layer + 0.5) / n_layers, "doc": np.repeat(range(20), 20), "y": 0.3 * x + noise, "x": x}))
    >>> uni = compare_profiles(LagSums.from_frame(pd.concat(rows), "y ~ x"), term="x", margin=0.5, draws=199)
    >>> uni.differences[["model_a", "model_b", "bin", "depth"]]
      model_a model_b  bin  depth
    0   small   large    0   0.25
    1   small   large    1   0.75
    >>> bool(uni.equivalence["equivalent"].all())
    True
    """
    if margin is not None:
        require_number(margin, name="margin", least=0, strict=True, example=0.1)
    require_whole_number(draws, name="draws", least=MIN_DRAWS, most=1_000_000)
    require_shared(seed=seed)
    require_conf_level(conf_level, above=0.5)
    conf_level = float(conf_level)
    profiles = joint_profiles(
        sums_by_document(fits, who=WHO), term=term, hook=hook, draws=int(draws), seed=seed
    )
    comparison = tables.compared(
        profiles,
        term=term,
        groups=group_of_each(groups, list(profiles.n_unshared)),
        bins=_bins(bins, profiles.layers),
        conf_level=conf_level,
    )
    made = {
        "profiles": tables.profile_table(comparison),
        "binned": tables.binned_table(comparison),
        "differences": tables.difference_table(comparison),
        "agreement": tables.agreement_table(comparison, seed=seed),
        "equivalence": tables.equivalence_table(comparison, margin=None if margin is None else float(margin)),
        "meta": tables.pooled_table(comparison),
        "yardstick": tables.yardstick_table(comparison),
        "leave_one_out": tables.leave_one_out_table(comparison),
    }
    for name, table in made.items():
        level = round(2 * conf_level - 1, 12) if name == "equivalence" else conf_level
        made[name] = table.assign(conf_level=level, n_docs=len(profiles.docs))
    sentences = verdict(made, n_unshared=profiles.n_unshared, conf_level=conf_level)
    return ProfileComparison(**made, verdict=sentences)


def _bins(bins: int | None, layers: pd.DataFrame) -> int:
    """Return how many slices of depth there are: with more than a model's layers, one layer would count as several."""
    counts = layers.groupby("model", sort=False).size()
    fewest = int(counts.min())
    if fewest < 2:
        raise InputError(f"{WHO} compares profiles over depth; {counts.idxmin()} has one layer.")
    bins = fewest if bins is None else bins
    require_whole_number(bins, name="bins", least=2, most=fewest)
    return int(bins)
