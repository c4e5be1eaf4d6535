"""Annotations: token and document columns joined to norms; norms by word and by group."""

from mechreg.annotations.groups import group_norms
from mechreg.annotations.joining import join_annotations
from mechreg.annotations.words import word_norms

__all__ = ["group_norms", "join_annotations", "word_norms"]
