"""DATA in each of its forms, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from omnigraph.errors import UsageError
from omnigraph.frontends.module import program_from_module
from omnigraph.frontends.resolve import resolve
from omnigraph.program import Dim, TensorSpec
from omnigraph.quantization.data import Feeds, open_data, random_data
from omnigraph.quantization.options import Quantization
from omnigraph.quantization.real_inputs import with_real_inputs
from omnigraph.quantization.samples import prepare
from omnigraph.quantization.token_ids import check_ids

INPUTS = (
    TensorSpec("input_ids", "int64", ("batch", "sequence"), role="tokens"),
    TensorSpec("attention_mask", "int64", ("batch", "past + sequence"), 1, role="mask"),
    TensorSpec("past_key", "float32", ("batch", 2, "past", 4), 0, role="past"),
)
IDS = np.arange(12, dtype=np.int32).reshape(3, 4)


def read(data: object, **options: object) -> list[Feeds]:
    return list(open_data(data, **options).feeds(INPUTS))  # type: ignore[arg-type]


def functions() -> Iterator[Feeds]:
    """What file.py:function names, in this very file."""
    yield {"input_ids": IDS[:1]}
    yield {"input_ids": IDS[:2], "attention_mask": np.zeros((2, 4), np.int64)}


def assert_rows(found: list[Feeds]) -> None:
    assert [feeds["input_ids"].tolist() for feeds in found] == [[row] for row in IDS.tolist()]
    for feeds in found:
        assert {name: (a.dtype.name, a.shape) for name, a in feeds.items()} == {
            "input_ids": ("int64", (1, 4)),
            "attention_mask": ("int64", (1, 4)),
            "past_key": ("float32", (1, 2, 0, 4)),
        }
        assert feeds["attention_mask"].all()


def test_rows_of_one_file_and_of_a_folder(tmp_path: Path):
    np.savez(tmp_path / "all.npz", input_ids=IDS)
    assert_rows(read(tmp_path / "all.npz"))
    (tmp_path / "rows").mkdir()
    np.save(tmp_path / "rows" / "input_ids.npy", IDS)
    assert_rows(read(str(tmp_path / "rows")))
    (tmp_path / "samples").mkdir()
    for position, row in enumerate(IDS):
        np.savez(tmp_path / "samples" / f"{position}.npz", input_ids=row[None])
    assert_rows(read(tmp_path / "samples"))
    assert_rows(read([{"input_ids": row[None]} for row in IDS]))
    assert len(read(tmp_path / "samples", samples=2)) == 2


def test_a_function_of_a_file_and_a_callable():
    for data in (functions, f"{__file__}:functions"):
        found = read(data)
        assert [feeds["input_ids"].shape for feeds in found] == [(1, 4), (2, 4)]
        assert not found[1]["attention_mask"].any()
        assert found[1]["past_key"].shape == (2, 2, 0, 4)


def test_text_by_bytes_and_by_a_tokenizer(tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text("ab\n" * 100)
    found = read(path, tokenizer="bytes")
    lengths = [feeds["input_ids"].shape[1] for feeds in found]
    assert lengths == [128, 128, 44]
    assert found[0]["input_ids"][0, :3].tolist() == [97, 98, 10]
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"ab": 5, "?": 0}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    found = read(path, tokenizer=str(tmp_path / "tokenizer.json"))
    assert [feeds["input_ids"].tolist() for feeds in found] == [[[5] * 100]]


def test_beginnings_of_samples_are_samples_too():
    dims = {"sequence": Dim(2, 64)}
    data = open_data([{"input_ids": np.arange(40)[None]}])
    lengths = [feeds["input_ids"].shape[1] for feeds in data.feeds(INPUTS, dims)]
    assert lengths == [40, 2, 4, 16]  # as short as the program takes
    masks = [feeds["attention_mask"].shape[1] for feeds in data.feeds(INPUTS, dims)]
    assert masks == lengths


def checked(data: object) -> list[Feeds]:
    found = open_data(data)
    found.check([type("P", (), {"name": "p", "inputs": INPUTS})()])
    return list(found.feeds(INPUTS))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "have no samples"),
        ([{"ids": IDS}], "lack inputs of every program"),
        ([{"input_ids": IDS[0]}], r"expected int64 \[batch, sequence\], found int32 \[4\]"),
        ([{"input_ids": IDS + 0.5}], "found float64"),
        ([{"input_ids": IDS, "past_key": np.full((3, 2, 1, 4), np.nan)}], "NaN or infinite"),
        ("nothing.npz", "cannot be read"),
        ("nothing", "There are no data"),
        ("nothing.py:f", "There is no file"),
        (
            f"{__file__}:function",
            r"'functions'\? DATA names a function that gives inputs",
        ),
        (3, "in no form that is known"),
    ],
)
def test_what_is_wrong_is_said(data: object, said: str):
    with pytest.raises(UsageError, match=said):
        checked(data)


def test_files_that_are_not_data(tmp_path: Path):
    np.savez(tmp_path / "uneven.npz", input_ids=IDS, attention_mask=np.ones((2, 4)))
    with pytest.raises(UsageError, match="not the same number of rows"):
        read(tmp_path / "uneven.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no data"):
        open_data(tmp_path / "empty")
    (tmp_path / "text.txt").write_text("words")
    with pytest.raises(UsageError, match="--tokenizer bytes"):
        open_data(tmp_path / "text.txt")
    with pytest.raises(UsageError, match=r"tokenizer nothing.json cannot be read"):
        open_data(tmp_path / "text.txt", tokenizer="nothing.json")


def test_what_is_drawn_is_long_and_short():
    program = resolve("omninet", config="tiny", settings={"kind": "decoder"}).programs[1]
    found = random_data(program, 100)
    lengths = {feeds["input_ids"].shape[1] for feeds in found}
    assert len(found) == 16 and {1, 4, 16, 64} <= lengths


def test_inputs_of_the_contract_are_real():
    programs = resolve("omninet", config="tiny", settings={"kind": "encoder-decoder"}).programs
    text = np.arange(100, 140)[None]
    data = open_data([{"input_ids": text, "decoder_input_ids": text + 100}])
    forward, encode, decode = with_real_inputs(programs, data)
    from omnigraph.input_sets import contract_cases

    case = contract_cases(decode)[-1]
    inputs = decode.make_inputs(case)
    assert set(inputs["decoder_input_ids"].reshape(-1).tolist()) <= set(range(200, 240))
    assert case.sizes["past"] > 0
    # What the encoder and the decoder themselves give is far smaller than what is drawn.
    for name in ("past_key_values.0.value", "cross_key_values.0.value"):
        assert inputs[name].std() < 0.5 < programs[2].make_inputs(case)[name].std()
    assert encode.make_inputs(case)["input_ids"].min() >= 100
    assert forward.name == "forward"


class Lookup(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 4)

    def forward(self, input_ids):
        return {"found": self.embedding(input_ids)}


def test_ids_that_the_table_has_no_row_for_are_named():
    program = program_from_module(Lookup(), {"input_ids": torch.ones(2, 6, dtype=torch.int64)})
    check_ids([program], open_data([{"input_ids": IDS}]))
    for wrong in (12, -1):
        samples = [{"input_ids": IDS}, {"input_ids": np.where(IDS == 6, wrong, IDS)}]
        said = rf"'input_ids' .* at \[1, 2\], in sample 2 of .*expected 0 to 11, found {wrong}\."
        with pytest.raises(UsageError, match=said):
            check_ids([program], open_data(samples))
        for given in (
            {"calibration": samples},
            {"calibration": samples[:1], "evaluation": samples},
        ):
            with pytest.raises(UsageError, match=r"'input_ids' .* at \[1, 2\]"):
                prepare(Quantization(**given), [program])
