"""A classifier of texts: does a text give orders to a language model?"""

from __future__ import annotations

import sys

from benchmarks.real_models.figures import label_figures
from benchmarks.real_models.packages import unpacked
from benchmarks.real_models.real_model import TEXT, RealModel, text_feeds, timed_text
from benchmarks.real_models.sentences import sentences

CALIBRATION, TEST = 128, 1600


def nanoguard() -> RealModel:
    """NanoGuard: pre-norm with RMS norms that have no weights, rotary, 4 layers of 512, ReLU².

    It takes a third of the docstrings' sentences for orders, so both labels are common.
    """
    package = unpacked("metatronnanoguard==0.1.0")
    sys.path.insert(0, str(package))  # as its users do: weights and tokenizer come with the code
    from nanoguard.scanner import NanoGuard

    guard = NanoGuard(device="cpu")
    texts = sentences()[: CALIBRATION + TEST]
    feeds = text_feeds([guard.tokenizer.encode(text) for text in texts])
    return RealModel(
        module=guard.model.float().eval(),  # its tables of angles are bfloat16
        axes=TEXT,
        calibration=feeds[:CALIBRATION],
        test=feeds[CALIBRATION:],
        figures=label_figures,
        timed=timed_text(),
    )
