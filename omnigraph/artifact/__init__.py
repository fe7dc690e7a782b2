"""The artifact: a manifest and vendor files, in a directory or one file. Imports no compiler."""

from omnigraph.artifact.artifact import (
    MANIFEST,
    Artifact,
    ProgramEntry,
    check_replaceable,
    publish,
    seal,
    staging,
)

__all__ = [
    "MANIFEST",
    "Artifact",
    "ProgramEntry",
    "check_replaceable",
    "publish",
    "seal",
    "staging",
]
