"""Texts to tagged words: universal parts of speech by a spaCy pipeline, recorded beside every document."""

from typing import Any

import pandas as pd

from mechreg.corpus.reading import as_documents
from mechreg.outside import any_frames
from mechreg.schema import InputError

TAGGER = "en_core_web_sm"


@any_frames
def tag_words(documents: Any, *, tagger: Any = TAGGER) -> pd.DataFrame:
    """Return the documents frame with the words of every text, their tags, and what made them.

    A pipeline's tags are guesses: measure them on text like yours before you trust a difference between parts of
    speech. Needs ``pip install mechreg[pos]`` and the pipeline's package.

    Parameters
    ----------
    documents : documents frame, or what `read_corpus` takes
        Without words.
    tagger : str, Path or spaCy pipeline
        The name of an installed pipeline, its folder, or what ``spacy.load`` gave; it must give universal tags.

    Returns
    -------
    pandas.DataFrame
        The same documents in the same order, with ``words`` (form, start and end in the text's characters, upos and
        the pipeline's own xpos of each word; none for documents that cannot be read) and ``tagger`` (pipeline,
        version, licence, and spaCy's version).

    Examples
    --------
    >>> tag_words(["One text."], tagger="no_such_pipeline")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    mechreg.schema.InputError: ...
    """
    documents = as_documents(documents)
    if "words" in documents.columns:
        raise InputError(
            "tag_words would replace the documents' tags; skip it, or pass documents.drop(columns='words')."
        )
    nlp = load_tagger(tagger)
    usable = documents["problem"] == ""
    words: list[list[dict[str, Any]]] = [[] for _ in range(len(documents))]
    tagged = nlp.pipe(documents.loc[usable, "text"])
    for row, doc in zip(usable.to_numpy().nonzero()[0], tagged, strict=True):
        words[row] = [
            {"form": token.text, "start": token.idx, "end": token.idx + len(token.text)}
            | {"upos": token.pos_, "xpos": token.tag_}
            for token in doc
            if not token.is_space
        ]
        if any(not word["upos"] for word in words[row]):
            raise InputError(
                f"The pipeline {nlp.meta['name']!r} gives no universal tags (it has {', '.join(nlp.pipe_names)}); "
                "use one that does, for example en_core_web_sm."
            )
    import spacy

    about = nlp.meta
    licence = f" ({about['license']})" if about.get("license") else ""
    made_by = f"{about['lang']}_{about['name']} {about['version']}{licence}, spaCy {spacy.__version__}"
    return documents.assign(words=words, tagger=made_by)


def load_tagger(tagger: Any) -> Any:
    """Return a spaCy pipeline, loaded unless it is one."""
    try:
        import spacy
    except ImportError as error:
        raise InputError(
            "Tagging needs spaCy and a pipeline: pip install 'mechreg[pos]', then the pipeline's package. "
            "Documents from .conllu, and read_corpus('demo', tags=True), have tags already."
        ) from error
    if isinstance(tagger, spacy.Language):
        return tagger
    try:
        return spacy.load(tagger)
    except (OSError, ValueError, TypeError) as error:
        have = ", ".join(spacy.util.get_installed_models()) or "none"
        raise InputError(
            f"spaCy cannot load the pipeline {str(tagger)!r}; installed are: {have}. Name one of those, or "
            "install the pipeline's package."
        ) from error
