"""What the libraries raise while a model is loaded, as one sentence with a remedy."""

import contextlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mechreg import miniatures
from mechreg.schema import MechregError, ModelError, did_you_mean
from mechreg.words import first_line

GPT2_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")
# The clients that huggingface_hub has used; their errors are the network's.
_NETWORK = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}


@contextlib.contextmanager
def explained(source: str, device_map: Any = None, *, revision: str | None = None) -> Iterator[None]:
    """Turn what the libraries raise while loading ``source`` into a ModelError."""
    try:
        yield
    except MechregError:
        raise
    except Exception as error:  # errors of a dozen kinds: files, hub, network, pickles, safetensors, configs
        if device_map is not None:
            raise ModelError(
                f"{source!r} could not be loaded with device_map={device_map!r}: {first_line(error)}; give "
                "'auto', 'balanced', a device, or a dict of module names and devices that are here, such as {'': 0}."
            ) from error
        raise ModelError(_sentence(error, source, revision)) from error


def _sentence(error: Exception, source: str, revision: str | None) -> str:
    reason = first_line(error).rstrip(":")
    if isinstance(error, pickle.UnpicklingError):  # torch's own text advises to load it unsafely
        reason = "its weights are a pickle that holds more than weights, and torch's safe loader refuses it"
    if "trust_remote_code" in str(error):
        return (
            f"{source!r} needs code from its repository to run, which mechreg does not execute; use a model of "
            "an architecture that transformers has."
        )
    if os.path.isdir(source):
        return f"The model folder {source!r} could not be loaded: {reason}; save or download it again."
    known, folder = (*miniatures.NAMES, *GPT2_NAMES), _downloaded(source)
    hint = "" if source in known else did_you_mean(source, known)
    if revision is not None:
        if "RevisionNotFoundError" in {type(link).__name__ for link in _chain(error)}:
            return (
                f"{source!r} has no branch, tag or commit {revision!r} on the Hugging Face hub; its page there lists "
                "them under 'Files and versions'."
            )
        source = f"{source}@{revision}"
    if (of_the_hub := _of_the_hub(error, source, hint)) is not None:
        return of_the_hub
    if folder is not None and "does not appear to have" not in reason:
        return (
            f"{source!r} was downloaded from the Hugging Face hub and could not be loaded: {reason}; if its files are "
            f"damaged, remove {str(folder)!r} and they are downloaded again."
        )
    return (
        f"{source!r} is no folder and no miniature, and could not be loaded from the Hugging Face hub: "
        f"{reason}. Check the name and the network, or give a local folder.{hint}"
    )


def _of_the_hub(error: Exception, source: str, hint: str) -> str | None:
    """Return what the hub or the network answered, None where the error has another cause."""
    from huggingface_hub import constants

    chain = list(_chain(error))
    kinds = {type(link).__name__ for link in chain}
    answers = (getattr(getattr(link, "response", None), "status_code", None) for link in chain)
    status = next((answer for answer in answers if answer is not None), None)
    if "GatedRepoError" in kinds or (status in (401, 403) and "RepositoryNotFoundError" not in kinds):
        return (
            f"The Hugging Face hub does not give {source!r} to you ({status}); ask for access on its page there, and "
            "log in with `hf auth login`."
        )
    if status is not None and (status == 429 or status >= 500):
        return (
            f"The Hugging Face hub answers {status} when asked for {source!r}; try again later (what was downloaded "
            "is kept), or give a local folder."
        )
    for link in chain if status is None else ():
        if type(link).__module__.split(".")[0] in _NETWORK or "Consistency check failed" in str(link):
            return (
                f"{source!r} could not be downloaded from the Hugging Face hub: {first_line(link)}. Check "
                "the network and repeat the command, which resumes the download; or give a local folder."
            )
    is_missing = kinds & {"LocalEntryNotFoundError", "OfflineModeIsEnabled"}
    if constants.HF_HUB_OFFLINE and (is_missing or "does not appear to have" in str(error)):
        return (
            f"{source!r} is no folder and no miniature, and not all of it is in the cache while HF_HUB_OFFLINE keeps "
            f"the network away; unset that to download it, or give a local folder.{hint}"
        )
    if is_missing:  # nothing was asked: the hub takes no connections
        return (
            f"{source!r} is no folder, no miniature and not in the cache, and the Hugging Face hub cannot be reached. "
            f"Check the name and the network, or give a local folder.{hint}"
        )
    return None


def _downloaded(source: str) -> Path | None:
    """Return the folder that holds a repository's downloaded files, if there are any."""
    from huggingface_hub import try_to_load_from_cache

    with contextlib.suppress(ValueError):  # a name that no repository can have
        config = try_to_load_from_cache(source, "config.json")
        if isinstance(config, str):
            return Path(config).parents[2]  # .../models--org--name/snapshots/<commit>/config.json
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
