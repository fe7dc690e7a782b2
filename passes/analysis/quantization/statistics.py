"""Statistics of the activations of linear layers, from calibration."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from omnigraph.errors import UsageError

_FORMAT = 2
_SCALARS = ("low", "high", "rms")
_ARRAYS = ("lows", "highs", "means", "rows")


@dataclass(frozen=True, eq=False)
class Observation:
    """One activation [..., K] over all samples.

    Args:
        low, high: the range to quantize, as the method chose it.
        rms: the root of the mean square.
        lows, highs: float32 [K], the least and the greatest of each channel.
        means: float32 [K], the mean of each channel.
        rows: float32 [R, K], some positions of the samples, drawn at random.
    """

    low: float
    high: float
    rms: float
    lows: np.ndarray
    highs: np.ndarray
    means: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray) -> Observation:
        """What calibration sees of an activation [positions, K], whose whole range it takes."""
        rms = float(np.sqrt(np.mean(np.square(x))))
        lows, highs = x.min(axis=0), x.max(axis=0)
        return cls(float(x.min()), float(x.max()), rms, lows, highs, x.mean(axis=0), x)

    def joined(self, other: Observation) -> Observation:
        """Of both activations, where one weight multiplies two: a layer that is used twice."""
        return Observation(
            min(self.low, other.low),
            max(self.high, other.high),
            float(np.hypot(self.rms, other.rms) / np.sqrt(2)),
            np.minimum(self.lows, other.lows),
            np.maximum(self.highs, other.highs),
            (self.means + other.means) / 2,
            np.concatenate([self.rows, other.rows]),
        )

    @property
    def least(self) -> float:
        """Of all elements."""
        return float(self.lows.min())

    @property
    def greatest(self) -> float:
        """Of all elements."""
        return float(self.highs.max())


@dataclass(frozen=True, eq=False)
class Statistics:
    """Observations of activations, by the name of the weight that each is multiplied with.

    Weights keep their names in all programs and on all targets, which so use the same statistics.

    Args:
        observations: by the weight's name.
        method: how ranges were chosen: "min-max", "mean", "percentile", "mse".
        source: where the samples came from.
        samples: how many there were.
    """

    observations: Mapping[str, Observation] = field(default_factory=dict)
    method: str = "min-max"
    source: str = ""
    samples: int = 0

    @property
    def digest(self) -> str:
        """SHA-256 of all fields, in hexadecimal."""
        digest = hashlib.sha256(json.dumps([self.method, self.source, self.samples]).encode())
        for name in sorted(self.observations):
            seen = self.observations[name]
            digest.update(name.encode() + b"\0")
            digest.update(_scalars(seen).tobytes())
            for field_ in _ARRAYS:
                digest.update(np.ascontiguousarray(getattr(seen, field_), np.float32).tobytes())
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a ``.npz`` file; it replaces an older file only when it is complete."""
        arrays = {}
        for name, seen in self.observations.items():
            arrays[f"{name}/range"] = _scalars(seen)
            for field_ in _ARRAYS:
                arrays[f"{name}/{field_}"] = np.asarray(getattr(seen, field_), np.float32)
        about = {
            "format": _FORMAT,
            "method": self.method,
            "source": self.source,
            "samples": self.samples,
            "digest": self.digest,
        }
        arrays["about"] = np.array(json.dumps(about))
        target = Path(path)
        partial = target.with_name(f".{target.name}.{os.getpid()}.npz")
        try:
            np.savez(partial, **arrays)  # type: ignore[arg-type]
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Statistics:
        """Read what `save` wrote.

        Raises:
            UsageError: there is no such file, it holds no statistics, or its contents do not match
                its digest.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                names = [n.removesuffix("/range") for n in file.files if n.endswith("/range")]
                observations = {name: _observation(file, name) for name in names}
            found = cls(observations, about["method"], about["source"], about["samples"])
            if about["format"] != _FORMAT or about["digest"] != found.digest:
                raise ValueError("the digest of its contents is not the one written in it")
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise UsageError(
                f"{path} cannot be read as calibration statistics",
                expected="a file that an export with --save-calibration wrote",
                found=f"{type(error).__name__}: {error}",
                hint="calibrate again: --calibration DATA",
            ) from error
        return found

    @staticmethod
    def is_saved(path: object) -> bool:
        """Whether a path is of a file that `save` wrote; it may be damaged."""
        if not isinstance(path, str | os.PathLike) or not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as file:
            return "about.npy" in file.namelist()

    def joined(self, other: Statistics) -> Statistics:
        """These observations, and those of ``other`` for weights that these do not have."""
        return Statistics(
            {**other.observations, **self.observations}, self.method, self.source, self.samples
        )


def _observation(file: Mapping[str, np.ndarray], name: str) -> Observation:
    low, high, rms = map(float, file[f"{name}/range"])
    lows, highs, means, rows = (file[f"{name}/{part}"] for part in _ARRAYS)
    return Observation(low, high, rms, lows, highs, means, rows)


def _scalars(seen: Observation) -> np.ndarray:
    return np.array([getattr(seen, name) for name in _SCALARS], np.float64)
