"""Signatures: who made an artifact, by Ed25519 (RFC 8032) of the package cryptography.

The signature is of the manifest's bytes. The manifest holds the sha256 of every other file, and so
an artifact whose files are compared with these is signed whole. Neither signing nor checking is on
unless it is asked for, and only then cryptography is imported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnigraph.artifact.sealing import MANIFEST, SIGNATURE
from omnigraph.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

#: A public key: the path of a PEM file, or its bytes.
Key = str | os.PathLike[str] | bytes

_ALGORITHM = "ed25519"
#: What is signed starts so: no signature of something else is one of an artifact.
_PURPOSE = b"omnigraph-artifact-signature 1\0"
_MAKE = "`openssl genpkey -algorithm ed25519 -out KEY` makes a private key"


class Signer:
    """Signs artifacts with a private key.

    Args:
        path: a PEM file with an Ed25519 private key that has no password.

    Raises:
        UsageError: there is no such key in it, or cryptography is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._key = _private_key(path)

    def sign(self, directory: Path) -> None:
        """Write the signature of a sealed directory."""
        fields = {
            "algorithm": _ALGORITHM,
            "key": _raw(self._key.public_key()).hex(),
            "signature": self._key.sign(_PURPOSE + (directory / MANIFEST).read_bytes()).hex(),
        }
        text = json.dumps(fields, indent=1, sort_keys=True) + "\n"
        (directory / SIGNATURE).write_text(text, encoding="utf-8")


def is_signature(data: bytes) -> bool:
    """Whether some bytes have the form of a signature, right or wrong."""
    return _fields(data) is not None


def check_signature(
    where: Path, manifest: bytes, signature: bytes | None, trusted: Key | Sequence[Key]
) -> None:
    """Refuse a manifest that no trusted key has signed.

    Args:
        where: the artifact.
        signature: the bytes of its signature; None where it has none.
        trusted: public keys.

    Raises:
        ArtifactError: it is not signed, by another key, or was changed after it was signed.
        UsageError: a key cannot be read, or cryptography is not installed.
    """
    keys = [trusted] if isinstance(trusted, str | os.PathLike | bytes) else trusted
    one = (str, os.PathLike, bytes)
    if not isinstance(keys, Iterable) or not all(isinstance(key, one) for key in keys):
        raise UsageError(
            "A trusted key is neither a path nor bytes",
            expected="a path of a PEM file, its bytes, or several of them in a list",
            found=repr(trusted)[:80],
            hint='omnigraph.load(PATH, trusted=["maker.pem"])',
        )
    known = {_raw(key): key for key in map(_public_key, keys)}
    if signature is None:
        raise ArtifactError(
            f"{where} is not signed",
            expected="a signature of a trusted key",
            found="none",
            hint="`omnigraph export --sign KEY` signs; without `trusted`, nothing is asked for",
        )
    fields = _fields(signature)
    if fields is None:
        raise ArtifactError(f"The signature of {where} is damaged", hint="copy the artifact again")
    signer = bytes.fromhex(fields["key"])
    if signer not in known:
        raise ArtifactError(
            f"{where} is signed by a key that is not trusted",
            expected=", ".join(key.hex() for key in known) or "no key at all",
            found=fields["key"],
            hint="do not use it, unless you know that this key is its maker's",
        )
    from cryptography.exceptions import InvalidSignature

    try:
        known[signer].verify(bytes.fromhex(fields["signature"]), _PURPOSE + manifest)
    except InvalidSignature as error:
        raise ArtifactError(
            f"{where} was changed after it was signed",
            hint="do not use it: ask its maker for another copy",
        ) from error


def _fields(data: bytes) -> dict[str, str] | None:
    try:
        fields: Any = json.loads(data)
        right = (
            fields["algorithm"] == _ALGORITHM
            and len(bytes.fromhex(fields["key"])) == 32
            and len(bytes.fromhex(fields["signature"])) == 64
        )
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return fields if right else None


def _private_key(path: str | os.PathLike[str]) -> Ed25519PrivateKey:
    serialization, ed25519 = _cryptography()
    data = _read(path)
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as error:
        raise _no_key(path, "private", error) from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise _no_key(path, "private", type(key).__name__)
    return key


def _public_key(given: Key) -> Ed25519PublicKey:
    serialization, ed25519 = _cryptography()
    data, name = (given, "trusted") if isinstance(given, bytes) else (_read(given), given)
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, TypeError) as error:
        raise _no_key(name, "public", error) from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise _no_key(name, "public", type(key).__name__)
    return key


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes_raw()


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(
            f"The key {os.fspath(path)} cannot be read",
            found=error.strerror,
            hint=_MAKE,
        ) from error


def _no_key(path: str | os.PathLike[str], kind: str, found: object) -> UsageError:
    return UsageError(
        f"{os.fspath(path)} is no key that signatures are made with",
        expected=f"an Ed25519 {kind} key in PEM form, without a password",
        found=str(found).splitlines()[0][:200] if str(found) else "another file",
        hint=f"{_MAKE}, and `openssl pkey -in KEY -pubout -out KEY.pub` its public key",
    )


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise UsageError(
            "Signatures need the package cryptography, which is not installed",
            hint="pip install 'omnigraph[sign]'",
        ) from error
    return serialization, ed25519
