"""Running artifacts: one Session API over each vendor's runtime. Imports no torch and no onnx."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from omnigraph.artifact import Artifact
from omnigraph.artifact.signature import Key
from omnigraph.errors import ContractError, DeviceError

if TYPE_CHECKING:
    from omnigraph.runtimes.base import Session

__all__ = ["load", "session_class"]


def session_class(target: str) -> type[Session]:
    """The Session of a target: ``SESSION`` of the module here that is called like the target.

    Those of other packages are registered as entry points of the group ``omnigraph.runtimes``.

    Raises:
        DeviceError: no runtime of that name is installed.
    """
    own = f"{__name__}.{target}"
    exists = target.isidentifier() and importlib.util.find_spec(own) is not None
    kind = getattr(importlib.import_module(own), "SESSION", None) if exists else None
    if kind is not None:
        return kind
    from importlib.metadata import entry_points

    found = {e.name: e for e in entry_points(group="omnigraph.runtimes")}
    if target not in found:
        raise DeviceError(
            f"No runtime is installed for target {target!r}",
            expected=", ".join(found) or "a package that registers one",
            hint="install the package that provides this target",
        )
    return found[target].load()


def load(
    path: str | os.PathLike[str] | Artifact,
    *,
    device: str = "auto",
    threads: int | None = None,
    program: str | None = None,
    variant: str = "auto",
    verify: bool = False,
    check_hashes: bool = True,
    trusted: Key | Sequence[Key] | None = None,
) -> Session:
    """Open an artifact, ready to run.

    Args:
        path: the directory or ``.omni`` file that ``omnigraph export`` wrote.
        device: "auto", or a device of the target's runtime such as "cpu", "cuda", "gpu", "npu".
        threads: threads of one run; None leaves it to the vendor's runtime.
        program: the default program of this session; None is the artifact's own.
        variant: which variant answers: "auto" chooses for each request, "whole" is the model with
            all its heads, "heads=12" the one with 12 heads an attention (``Session.run``).
        verify: run the golden pair of each program here before returning.
        check_hashes: compare the sha256 of every file, not only its size.
        trusted: public keys, each a PEM file or its bytes. One of them must have signed the
            artifact (``export --sign``), or nothing in it is used; all hashes are then compared.

    Raises:
        ArtifactError: no artifact, damaged, changed, unsafe, or not signed by a trusted key.
        DeviceError: the vendor's runtime or the device is not here.
        ContractError: with ``verify``, numbers beyond the tolerance on this machine.
    """
    if isinstance(path, Artifact) and trusted is None:
        artifact = path
    else:
        where = path.path if isinstance(path, Artifact) else path
        artifact = Artifact(where, check_hashes=check_hashes, trusted=trusted)
    session = session_class(artifact.target)(
        artifact, device=device, threads=threads, program=program, variant=variant
    )
    if verify:
        try:
            _check_contract(session)
        except BaseException:
            session.close()
            raise
    return session


def _check_contract(session: Session) -> None:
    """Refuse a session that fails a golden pair here, or has a program without one."""
    if failed := [check for check in session.verify() if not check.passed]:
        raise ContractError(
            f"{session.artifact.path} does not keep its contract on this machine: {failed[0]}",
            hint="`omnigraph verify` lists every output; export again on this machine",
        )
