"""Which form of a computation a runtime runs fastest: ``python -m benchmarks.kernels``.

Each question is one part of a transformer at the seed's width, in several forms that give the same
numbers. The forms take turns; a form that a runtime refuses, or computes wrongly, is listed so.
The answers are the tables ``kernels.py`` of ``omnigraph/lowering/onnx`` and ``/openvino``.

``--cpu-time`` counts the processor time of one thread, which other work on the machine disturbs
less than it disturbs the wall clock; ``--only WORD`` asks the questions whose name has the word.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx.parser

from benchmarks.kernel_questions import Question, questions
from benchmarks.timing import print_table, save, take_turns
from omnigraph.contract.tolerance import deviation

#: A form whose error is larger is wrong; all are of a few hundred roundings in fp32.
_WRONG = 1e-4


def model_of(question: Question, form: str) -> onnx.ModelProto:
    """One form of a question as a model; its weights are initializers, so that they get packed."""
    model = onnx.parser.parse_model(
        f'<ir_version: 11, opset_import: ["": 24, "com.microsoft": 1]> {question.forms[form]}'
    )
    for name, array in question.weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        given = next((v for v in model.graph.input if v.name == name), None)
        if given is not None:
            model.graph.input.remove(given)
    return model


def onnxruntime_call(
    model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], threads: int
) -> Callable[[], list[np.ndarray]]:
    """A call of onnxruntime, its own optimizations on."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = {value.name for value in session.get_inputs()}
    given = {name: array for name, array in feeds.items() if name in names}
    return lambda: session.run(None, given)


def openvino_call(
    model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], threads: int
) -> Callable[[], list[np.ndarray]]:
    """A call of OpenVINO's CPU plugin in fp32."""
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model.SerializeToString()),
        "CPU",
        {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"},
    )
    request = compiled.create_infer_request()
    names = {name for value in compiled.inputs for name in value.get_names()}
    given = {name: array for name, array in feeds.items() if name in names}

    def call() -> list[np.ndarray]:
        results = request.infer(given, share_inputs=True, share_outputs=True)
        return [results[output] for output in compiled.outputs]

    return call


CALLS = {"onnxruntime": onnxruntime_call, "openvino": openvino_call}


def answer(question: Question, runtime: str, threads: int, seconds: float, clock: Any) -> dict:  # type: ignore[type-arg]
    """Milliseconds of each form on one runtime, and what was refused or wrong."""
    calls: dict[str, Callable[[], object]] = {}
    expected: list[np.ndarray] | None = None
    refused = {}
    for form in question.forms:
        try:
            call = CALLS[runtime](model_of(question, form), question.feeds, threads)
            found = [np.array(array) for array in call()]
        except Exception as error:  # a vendor's refusal is an answer here
            refused[form] = "refused: " + str(error).strip().splitlines()[-1][:160]
            continue
        expected = expected or found
        worst = max(deviation(f, e).rms for f, e in zip(found, expected, strict=True))
        if worst > _WRONG:
            refused[form] = f"wrong: error {worst:.1e}"
        else:
            calls[form] = call
    times = take_turns(calls, seconds=seconds, clock=clock) if calls else {}
    return {"ms": {form: 1e3 * value for form, value in times.items()}, "not": refused}


def rows(figures: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """A row of the table for each question: the time of the first form, and the others' ratios."""
    for name, figure in figures.items():
        times = dict(figure["ms"])
        if not times:
            continue
        first = next(iter(times))
        others = [f"{form} {times[form] / times[first]:.2f}" for form in times if form != first]
        no = [f"{form} {reason.split(':')[0]}" for form, reason in figure["not"].items()]
        yield name, f"{first} {times[first]:.3f}", ", ".join(others + no)


def main() -> None:
    """Ask every question of every runtime."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", choices=sorted(CALLS), action="append")
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--no-save", action="store_true")
    arguments = parser.parse_args()
    # OpenVINO computes in threads of its own, whose time is the process's and not the caller's.
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    figures: dict[str, dict[str, Any]] = {}
    for runtime in arguments.runtime or sorted(CALLS):
        figures[runtime] = {}
        for question in questions():
            if arguments.only in question.name and runtime in question.runtimes:
                figures[runtime][question.name] = answer(
                    question, runtime, arguments.threads, arguments.seconds, clock
                )
        print(f"\n{runtime}, {arguments.threads} thread(s)\n")
        print_table(("question", "the first form (ms)", "times it"), list(rows(figures[runtime])))
    if not arguments.no_save:
        settings = {"threads": arguments.threads, "cpu_time": arguments.cpu_time}
        save("kernels", {"unit": "milliseconds", **settings, "runtimes": figures})


if __name__ == "__main__":
    main()
