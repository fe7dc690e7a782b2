"""The runtime of tensorrt artifacts, as far as it goes without a GPU, and its errors there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnigraph.artifact import seal
from omnigraph.errors import ArtifactError, DeviceError, InputError
from omnigraph.runtimes import cuda_driver, load
from omnigraph.runtimes.cuda_driver import CudaError, Gpu
from omnigraph.runtimes.tensorrt import _import_vendor, check_limits, choose_gpu

ADA, HOPPER = Gpu(0, "NVIDIA L4", "sm89"), Gpu(1, "NVIDIA H200", "sm90")


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine without NVIDIA's driver, which this one may or may not be."""
    monkeypatch.setattr(cuda_driver, "_LIBRARY", "libcuda-that-is-not-there.so")
    cuda_driver.driver.cache_clear()
    yield
    cuda_driver.driver.cache_clear()


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """An artifact whose manifest is that of an engine for two kinds of GPU."""
    (tmp_path / "forward.engine").write_bytes(b"an engine")
    program = {
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 4]}],
        "files": {"model": "forward.engine"},
        "details": {
            "flavour": "tensorrt_rtx",
            "version": "1.7.1.116",
            "compute": ["sm89", "sm120"],
            "profile": {"x": {"min": [1, 4], "opt": [1, 4], "max": [8, 4]}},
        },
    }
    manifest = {
        "name": "net",
        "target": "tensorrt",
        "device": "cuda",
        "precision": "fp16",
        "requires": {"tensorrt_rtx": "==1.7.1.116"},
        "programs": {"forward": program},
        "default_program": "forward",
        "dimensions": {"batch": [1, None]},
    }
    seal(tmp_path, manifest)
    return tmp_path


def test_loading_without_a_driver_says_so(artifact: Path, no_driver: None) -> None:
    with pytest.raises(DeviceError) as caught:
        load(artifact)
    assert caught.value.message == (
        "This artifact holds TensorRT engines, and there is no NVIDIA GPU here to run them"
    )
    assert caught.value.expected == "an NVIDIA GPU of compute capability sm89 or sm120"
    assert "libcuda-that-is-not-there.so) is not installed" in str(caught.value.found)
    assert "hint: copy the artifact to a machine with such a GPU" in str(caught.value)
    assert isinstance(caught.value.__cause__, CudaError)


def test_driver_without_a_library_is_an_error(no_driver: None) -> None:
    with pytest.raises(CudaError, match="is not installed"):
        cuda_driver.driver()


@pytest.mark.parametrize(("device", "found"), [("auto", ADA), ("cuda", ADA), ("cuda:1", HOPPER)])
def test_device_names_choose_a_gpu(device: str, found: Gpu) -> None:
    assert choose_gpu(device, [ADA, HOPPER], ["sm89", "sm90"]) == found


def test_first_gpu_that_the_engine_was_made_for_is_chosen() -> None:
    assert choose_gpu("auto", [HOPPER, ADA], ["sm89"]) == ADA


def test_gpu_that_the_engine_was_not_made_for_is_refused() -> None:
    with pytest.raises(DeviceError) as caught:
        choose_gpu("auto", [HOPPER], ["sm89", "sm120"])
    assert caught.value.expected == "an NVIDIA GPU of compute capability sm89 or sm120"
    assert caught.value.found == "NVIDIA H200 (sm90)"
    assert "--set compute=" in str(caught.value.hint)


@pytest.mark.parametrize("device", ["cpu", "cuda:first", "gpu"])
def test_other_devices_are_refused(device: str) -> None:
    with pytest.raises(DeviceError, match=f"cannot run on device {device!r}: expected auto, cuda"):
        choose_gpu(device, [ADA], ["sm89"])


def test_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(DeviceError, match="found no such GPU"):
        choose_gpu("cuda:3", [ADA], ["sm89"])


def test_another_version_of_the_runtime_is_refused() -> None:
    with pytest.raises(DeviceError, match=r"another version of tensorrt_rtx: expected 0\.1, found"):
        _import_vendor("tensorrt_rtx", "0.1")


def test_manifest_names_no_other_module_to_import() -> None:
    with pytest.raises(
        ArtifactError, match="expected tensorrt_rtx or tensorrt, found 'antigravity'"
    ):
        _import_vendor("antigravity", "1")
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 0, 4), None),
        ((8, 64, 4), None),
        ((9, 1, 4), "'batch' on axis 0: expected 1 to 8, found 9"),
        ((1, 65, 4), "'past' on axis 1: expected 0 to 64, found 65"),
    ],
)
def test_sizes_beyond_the_engines_are_refused(shape: tuple[int, ...], message: str | None) -> None:
    limits = {"min": [1, 0, 4], "opt": [1, 1, 4], "max": [8, 64, 4]}
    array = np.zeros(shape, np.float32)
    arguments = ("decode", "past_key", ("batch", "past", 4), array, limits)
    if message is None:
        check_limits(*arguments)
        return
    with pytest.raises(InputError, match=message) as caught:
        check_limits(*arguments)
    assert "--dynamic" in str(caught.value.hint)


def test_loading_imports_neither_torch_nor_onnx(artifact: Path) -> None:
    code = (
        "import sys\n"
        "from omnigraph import load, OmniGraphError\n"
        "try:\n"
        f"    load({str(artifact)!r})\n"
        "except OmniGraphError as error:\n"
        "    print(error.kind)\n"
        "print([name for name in ('torch', 'onnx', 'onnx_ir') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["device", "[]"]
