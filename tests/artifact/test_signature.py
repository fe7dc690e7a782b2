"""An artifact is of a trusted key, or nothing in it is used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from artifact_files import fill, rewrite
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from omnigraph.artifact import MANIFEST, Artifact, publish, staging
from omnigraph.artifact.sealing import SIGNATURE
from omnigraph.artifact.signature import Signer
from omnigraph.cli.main import main
from omnigraph.errors import ArtifactError, UsageError

PLAIN = serialization.NoEncryption()


def private_pem(key, password=PLAIN) -> bytes:
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(pem, pkcs8, password)


def key_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """The paths of a new private and public key."""
    key = ed25519.Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (folder / f"{name}.pem").write_bytes(private_pem(key))
    (folder / f"{name}.pub").write_bytes(public)
    return folder / f"{name}.pem", folder / f"{name}.pub"


@pytest.fixture
def maker(tmp_path: Path) -> tuple[Path, Path]:
    return key_pair(tmp_path, "maker")


@pytest.fixture(params=["net", "net.omni"])
def signed(request, tmp_path: Path, maker) -> Path:
    out = tmp_path / request.param
    with staging(out) as directory:
        fill(directory)
        Signer(maker[0]).sign(directory)
        publish(directory, out)
    return out


def test_a_signed_artifact_is_taken_by_its_key(signed: Path, maker, tmp_path: Path):
    _, other = key_pair(tmp_path, "other")
    for trusted in (maker[1], str(maker[1]), maker[1].read_bytes(), [other, maker[1]]):
        assert Artifact(signed, trusted=trusted).read("a.onnx").tobytes() == b"graph"
    assert not Artifact(signed).foreign_files()


@pytest.mark.parametrize("keys", [[], ["other"]])
def test_another_key_is_refused(signed: Path, tmp_path: Path, keys: list[str]):
    trusted = [key_pair(tmp_path, name)[1] for name in keys]
    with pytest.raises(ArtifactError, match="a key that is not trusted"):
        Artifact(signed, trusted=trusted)


def test_an_artifact_without_a_signature_is_refused(tmp_path: Path, maker):
    fill(tmp_path / "net")
    with pytest.raises(ArtifactError, match="is not signed"):
        Artifact(tmp_path / "net", trusted=[maker[1]])


def test_a_manifest_that_was_changed_is_refused_whatever_its_hash(tmp_path: Path, maker):
    directory = fill(tmp_path / "net")
    Signer(maker[0]).sign(directory)
    fields = json.loads((directory / MANIFEST).read_text())
    rewrite(directory, {**fields, "name": "another"})
    Artifact(directory)
    with pytest.raises(ArtifactError, match="was changed after it was signed"):
        Artifact(directory, trusted=[maker[1]])


def test_files_that_were_changed_are_refused_even_if_hashes_are_not_asked_for(
    tmp_path: Path, maker
):
    directory = fill(tmp_path / "net")
    Signer(maker[0]).sign(directory)
    (directory / "a.onnx").write_bytes(b"grapX")
    Artifact(directory, check_hashes=False)
    with pytest.raises(ArtifactError, match="sha256 differs"):
        Artifact(directory, check_hashes=False, trusted=[maker[1]])


def test_a_key_in_the_signature_is_not_the_key_that_counts(tmp_path: Path, maker):
    """An attacker who signs with a key of his own, and writes the maker's beside it."""
    directory = fill(tmp_path / "net")
    Signer(key_pair(tmp_path, "thief")[0]).sign(directory)
    fields = json.loads((directory / SIGNATURE).read_text())
    Signer(maker[0]).sign(directory)
    own = json.loads((directory / SIGNATURE).read_text())
    (directory / SIGNATURE).write_text(json.dumps({**own, "signature": fields["signature"]}))
    with pytest.raises(ArtifactError, match="was changed after it was signed"):
        Artifact(directory, trusted=[maker[1]])


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"null", b"[1]", b"\xff", b'{"algorithm": "ed25519"}', b"[" * 99_999]
)
def test_a_damaged_signature_is_refused(tmp_path: Path, maker, data: bytes):
    directory = fill(tmp_path / "net")
    (directory / SIGNATURE).write_bytes(data)
    with pytest.raises(ArtifactError, match=r"signature of .* is damaged"):
        Artifact(directory, trusted=[maker[1]])


def test_a_manifest_is_not_read_before_its_signature(tmp_path: Path, maker):
    directory = fill(tmp_path / "net")
    Signer(maker[0]).sign(directory)
    (directory / MANIFEST).write_text("{")
    with pytest.raises(ArtifactError, match="was changed after it was signed"):
        Artifact(directory, trusted=[maker[1]])


def test_keys_that_cannot_be_used_are_refused(tmp_path: Path, maker, signed: Path):
    other = tmp_path / "ec.pem"
    other.write_bytes(private_pem(ec.generate_private_key(ec.SECP256R1())))
    locked = tmp_path / "locked.pem"
    password = serialization.BestAvailableEncryption(b"secret")
    locked.write_bytes(private_pem(ed25519.Ed25519PrivateKey.generate(), password))
    for path in (tmp_path / "none.pem", maker[1], other, locked):
        with pytest.raises(UsageError, match=r"openssl genpkey"):
            Signer(path)
    for path in (tmp_path / "none.pub", maker[0], b"no key"):
        with pytest.raises(UsageError, match=r"openssl genpkey"):
            Artifact(signed, trusted=[path])
    for what in ([3], 3, [None]):
        with pytest.raises(UsageError, match="neither a path nor bytes"):
            Artifact(signed, trusted=what)  # type: ignore[arg-type]


def test_cryptography_is_imported_only_when_it_is_asked_for(signed: Path):
    code = """
import sys
from omnigraph.artifact import Artifact
Artifact(sys.argv[1])
assert "cryptography" not in sys.modules
sys.modules["cryptography"] = None
try:
    Artifact(sys.argv[1], trusted=[b"key"])
except Exception as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(signed)], capture_output=True, text=True, check=True
    )
    assert "pip install 'omnigraph[sign]'" in done.stdout


def test_export_signs_and_the_commands_check(tmp_path: Path, maker, capsys):
    out, model = tmp_path / "net.omni", ["omninet", "--config", "tiny", "--set", "kind=encoder"]
    _, other = key_pair(tmp_path, "other")

    def run(*arguments: object) -> tuple[int, str]:
        status = main([str(argument) for argument in arguments])
        return status, capsys.readouterr().err

    export = ["export", *model, "--target", "onnx", "--programs", "encode", "--out", out]
    assert run(*export, "--sign", maker[0])[0] == 0
    for command in (["verify"], ["inspect"], ["run", "--input", "input_ids=1,2,3"]):
        assert run(command[0], out, *command[1:], "--trusted", maker[1])[0] == 0
        status, said = run(command[0], out, *command[1:], "--trusted", other)
        assert status == 2 and "not trusted" in said
    status, said = run(*export, "--sign", maker[1])
    assert status == 2 and "no key that signatures are made with" in said
    assert Artifact(out, trusted=[maker[1]])
