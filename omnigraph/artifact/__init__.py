"""The artifact: a manifest and vendor files, in a directory or one file. Imports no compiler."""

from omnigraph.artifact.artifact import Artifact, ProgramEntry
from omnigraph.artifact.publishing import SINGLE_FILE, check_replaceable, publish
from omnigraph.artifact.sealing import MANIFEST, seal
from omnigraph.artifact.staging_folder import staging

__all__ = [
    "MANIFEST",
    "SINGLE_FILE",
    "Artifact",
    "ProgramEntry",
    "check_replaceable",
    "publish",
    "seal",
    "staging",
]
