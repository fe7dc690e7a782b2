"""Every benchmark, one after the other: ``make bench``."""

from __future__ import annotations

from benchmarks import export_seed, latency, session_overhead


def main() -> None:
    """Run them; each prints its tables and saves its figures."""
    for benchmark in (session_overhead, export_seed, latency):
        print(f"\n{(benchmark.__doc__ or '').splitlines()[0]}\n", flush=True)
        benchmark.main()


if __name__ == "__main__":
    main()
