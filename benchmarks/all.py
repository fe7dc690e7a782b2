"""Every benchmark, one after the other: ``make bench``."""

from __future__ import annotations

from benchmarks import (
    conformance,
    export_seed,
    head_pruning,
    hugging_face_folders,
    kernels,
    latency,
    position_bias,
    quantization,
    session_overhead,
    sparse_attention,
)

BENCHMARKS = (
    session_overhead,
    conformance,
    hugging_face_folders,
    position_bias,
    sparse_attention,
    head_pruning,
    kernels,
    export_seed,
    latency,
    quantization,
)


def main() -> None:
    """Run them; each prints its tables and saves its figures."""
    for benchmark in BENCHMARKS:
        print(f"\n{(benchmark.__doc__ or '').splitlines()[0]}\n", flush=True)
        benchmark.main()


if __name__ == "__main__":
    main()
