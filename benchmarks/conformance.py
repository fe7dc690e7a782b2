"""The ONNX project's node tests through each target: passed, refused with a reason, or wrong.

``python -m benchmarks.conformance`` prints the table and writes its sums to
``benchmarks/results/conformance.json``; ``--show refused`` also lists cases with their reasons.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parent.parent / "tests"
RESULTS = Path(__file__).parent / "results" / "conformance.json"


def main() -> None:
    """Run the cases, and print what became of them."""
    sys.path.insert(0, str(TESTS))
    from onnx_cases import node_cases
    from onnx_outcomes import TARGETS, Outcome, outcome, table

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", choices=list(TARGETS), action="append")
    parser.add_argument("--match", default="", help="only cases whose name holds this")
    parser.add_argument("--every", type=int, default=1, help="only every so many cases")
    parser.add_argument("--show", default="", help="also list these kinds: refused,wrong")
    options = parser.parse_args()
    cases = [case for case in node_cases() if options.match in case.name][:: options.every]
    found: list[Outcome] = []
    for target in options.target or TARGETS:
        for case in cases:
            found.append(outcome(target, case))
            if found[-1].kind in options.show.split(","):
                reason = " ".join(found[-1].reason.split())
                print(f"{target} {found[-1].kind} {case.name}: {reason}", flush=True)
    print(table(found))
    if not (options.match or options.target or options.every > 1):
        sums = {t: dict(Counter(o.kind for o in found if o.target == t)) for t in TARGETS}
        RESULTS.write_text(json.dumps({"cases": len(cases), **sums}, indent=1) + "\n")


if __name__ == "__main__":
    main()
