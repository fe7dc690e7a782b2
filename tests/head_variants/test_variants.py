"""Variants with fewer heads: their numbers, what they share, and which of them a Session takes."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import omnigraph
from omnigraph.artifact import Artifact
from omnigraph.cli.main import main
from omnigraph.errors import ContractError, InputError, UsageError
from omnigraph.head_variants.counts import parse_variants
from omnigraph.head_variants.sites import HeadSite
from omnigraph.models import OmniNet, OmniNetConfig
from omnigraph.models.head_gate import HeadGate
from omnigraph.models.programs import programs
from omnigraph.program import Program
from omnigraph.runtimes.variants import Variant

#: fp32 sums in another order, over two layers: some dozen roundings of numbers around 1.
CLOSE = {"rtol": 1e-4, "atol": 2e-5}
HEADS, VOCABULARY = 4, 256


def model_of(**settings: object) -> OmniNet:
    """A tiny model with large weights, half of whose gates are open for an input."""
    model = OmniNet(OmniNetConfig.named("tiny", **settings), initialize=False).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            around = 1.0 if "norm" in path and path.endswith("weight") else 0.0
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(around + (0.3 if "gate" in path else 0.1) * noise)
    return model


def programs_of(model: OmniNet, *names: str) -> Sequence[Program]:
    return [program for program in programs(model) if program.name in names]


def tokens(batch: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, (batch, length))


def pruned(model: OmniNet, artifact: Artifact, name: str) -> OmniNet:
    """The torch model without the heads that a variant lacks."""
    (choice,) = (c for c in artifact.manifest["variants"]["choices"] if c["name"] == name)
    removed = {
        path.replace(".blocks", "").replace("_attention", ""): set(range(HEADS)) - set(kept)
        for path, kept in choice["kept"].items()
    }
    smaller = copy.deepcopy(model)
    smaller.prune_heads(removed)
    return smaller


# -- an encoder with gates that depend on the input ------------------------------------------------


@pytest.fixture(scope="module")
def gated() -> OmniNet:
    return model_of(kind="encoder", positions="alibi", head_pruning=True)


@pytest.fixture(scope="module")
def gated_paths(gated, tmp_path_factory) -> dict[str, Path]:
    reports = omnigraph.export(
        programs_of(gated, "encode"),
        ["onnx", "openvino"],
        variants="heads=4,3,2",
        out=tmp_path_factory.mktemp("gated"),
    )
    return {report.target: report.path for report in reports}


@pytest.fixture(params=["onnx", "openvino"])
def path(request, gated_paths) -> Path:
    return gated_paths[request.param]


def test_the_artifact_says_what_its_variants_are(path: Path):
    artifact = Artifact(path)
    assert set(artifact.programs) == {"encode", "encode@heads=3", "encode@heads=2", "gates"}
    assert artifact.manifest["default_program"] == "encode"
    variants = artifact.manifest["variants"]
    assert (variants["heads"], variants["gates"], variants["left_whole"]) == (HEADS, "gates", {})
    assert [choice["name"] for choice in variants["choices"]] == ["heads=2", "heads=3"]
    for choice in variants["choices"]:
        assert choice["automatic"] == ["encode"]
        assert {len(kept) for kept in choice["kept"].values()} == {int(choice["name"][-1])}
    smaller, larger = (choice["kept"] for choice in variants["choices"])
    assert all(set(kept) < set(larger[place]) for place, kept in smaller.items())


@torch.no_grad()
def test_a_named_variant_is_the_model_without_the_other_heads(path: Path, gated: OmniNet):
    ids = tokens(3, 7)
    for name in ("heads=3", "heads=2"):
        expected = pruned(gated, Artifact(path), name).encode(torch.from_numpy(ids))[0].numpy()
        with omnigraph.load(path, threads=1, variant=name) as net:
            assert list(net.load_figures) == [f"encode@{name}"]
            found = net.run(input_ids=ids)
            assert list(found) == ["last_hidden_state"]
            np.testing.assert_allclose(found["last_hidden_state"], expected, **CLOSE)
            whole = net.run(input_ids=ids, variant="whole")["last_hidden_state"]
            np.testing.assert_array_equal(
                net.run(input_ids=ids, variant="heads=4").popitem()[1], whole
            )
            assert np.abs(whole - expected).max() > 0.01
            assert net.answered == {}


def test_a_variant_that_is_chosen_gives_what_the_whole_model_does(path: Path):
    requests = [tokens(1 + seed % 2, 2 + seed % 5, seed) for seed in range(40)]
    proposals = []
    with omnigraph.load(path, threads=1) as net:
        assert net.variants == ("whole", "heads=3", "heads=2")
        for ids in requests:
            found = net.run(input_ids=ids)
            whole = net.run(input_ids=ids, variant="whole")
            assert found.keys() == whole.keys()
            for output, array in whole.items():
                np.testing.assert_allclose(found[output], array, **CLOSE)
            proposals.append(net.smallest_variant(input_ids=ids))
        assert sum(net.answered.values()) == len(requests)
        # Each way is taken: the smallest at once, and one that missed a head further up.
        assert set(net.answered) == {"whole", "heads=3", "heads=2"}
        assert net.answered["heads=2"] < proposals.count("heads=2")


@torch.no_grad()
def test_the_gates_are_those_of_the_model(path: Path, gated: OmniNet):
    ids = tokens(4, 5)
    seen = []
    gate = next(m for m in gated.modules() if isinstance(m, HeadGate))
    hook = gate.register_forward_hook(lambda _, __, result: seen.append(result.numpy()))
    gated.encode(torch.from_numpy(ids))
    hook.remove()
    with omnigraph.load(path, threads=1) as net:
        ((path, scores),) = net.run(program="gates", input_ids=ids).items()
        opened = scores > net.artifact.manifest["variants"]["thresholds"][path]
    np.testing.assert_array_equal(opened, seen[0][:, :, 0, 0])
    assert 0 < opened.mean() < 1


def test_the_golden_pairs_of_all_programs_come_out(path: Path):
    with omnigraph.load(path, threads=1, verify=True) as net:
        checked = {check.program for check in net.verify()}
    assert checked == {"encode", "encode@heads=3", "encode@heads=2", "gates"}


def test_only_what_is_smaller_is_stored_again(gated_paths: dict[str, Path], gated: OmniNet):
    files = Artifact(gated_paths["onnx"]).manifest["files"]
    whole = 4 * sum(p.numel() for name, p in gated.named_parameters() if name != "output.bias")
    hidden, size, layers = 64, 16, 2
    attention = sum(4 * 4 * layers * heads * size * hidden for heads in (3, 2))
    # Small constants and the space between aligned tensors: less than a page for each of them.
    tensors = 2 * len(list(gated.named_parameters()))
    assert attention < files["weights.bin"]["bytes"] < whole + attention + 4096 * tensors
    assert files["weights.bin"]["bytes"] < 1.9 * whole


def test_there_is_no_other_variant(path: Path):
    with omnigraph.load(path, threads=1) as net:
        with pytest.raises(InputError, match="no variant 'heads=7': expected auto or whole"):
            net.run(input_ids=tokens(1, 3), variant="heads=7")
        with pytest.raises(InputError, match="is missing"):
            net.run()
    with pytest.raises(InputError, match="no variant 'small'"):
        omnigraph.load(path, variant="small")


# -- a decoder with a past -------------------------------------------------------------------------


@torch.no_grad()
def test_a_past_has_the_heads_of_its_variant(tmp_path: Path):
    model = model_of(kind="decoder", positions="rotary")
    importance = {f"decoder.blocks.{i}.self_attention": scores for i, scores in enumerate(
        ([0, 3, 2, 1], [5, 4, 0, 1])
    )}  # fmt: skip
    (tmp_path / "heads.json").write_text(json.dumps(importance))
    (report,) = omnigraph.export(
        programs_of(model, "decode"),
        "onnx",
        variants="heads=2",
        importance=str(tmp_path / "heads.json"),
        out=tmp_path / "net.omni",
    )
    artifact = Artifact(report.path)
    variants = artifact.manifest["variants"]
    assert variants["gates"] is None
    assert list(variants["choices"][0]["kept"].values()) == [[1, 2], [0, 1]]
    assert variants["choices"][0]["automatic"] == []
    entry = artifact.programs["decode@heads=2"]
    assert {s.shape[1] for s in (*entry.inputs, *entry.outputs) if "key_values" in s.name} == {2}
    assert entry.state == artifact.programs["decode"].state

    smaller, ids = pruned(model, artifact, "heads=2"), tokens(2, 6)
    expected = smaller.decode(torch.from_numpy(ids))[0].numpy()
    with omnigraph.load(report.path, threads=1) as net:
        assert net.smallest_variant(input_ids=ids) == "whole"
        first = net.run(input_ids=ids[:, :4], variant="heads=2")
        past = {new: first[old] for new, old in entry.state}
        rest = net.run(input_ids=ids[:, 4:], variant="heads=2", **past)
        logits = np.concatenate((first["logits"], rest["logits"]), axis=1)
        np.testing.assert_allclose(logits, expected, **CLOSE)
        # Without a name, a program with a past runs whole, and takes no past of a variant.
        assert net.run(input_ids=ids)["present_key_values.0.key"].shape[1] == HEADS
        with pytest.raises(InputError, match="wrong shape"):
            net.run(input_ids=ids[:, 4:], **past)


@pytest.mark.slow
@torch.no_grad()
def test_keys_of_the_encoder_are_those_that_the_decoder_takes(tmp_path: Path):
    model = model_of(kind="encoder-decoder", positions="relative", head_pruning=True)
    reports = omnigraph.export(
        programs(model), ["onnx", "openvino"], variants="heads=3", out=tmp_path
    )
    ids, decoder_ids = tokens(2, 6), tokens(2, 4, seed=1)
    for report in reports:
        variants = Artifact(report.path).manifest["variants"]
        assert variants["left_whole"] == {}
        assert variants["choices"][0]["automatic"] == ["forward"]
        smaller = pruned(model, Artifact(report.path), "heads=3")
        expected = smaller(
            torch.from_numpy(ids), decoder_input_ids=torch.from_numpy(decoder_ids)
        ).numpy()
        with omnigraph.load(report.path, threads=1, variant="heads=3") as net:
            found = net.run(input_ids=ids, decoder_input_ids=decoder_ids)["logits"]
            np.testing.assert_allclose(found, expected, **CLOSE)
            encoded = net.run(program="encode", input_ids=ids)
            cross = {name: array for name, array in encoded.items() if "cross" in name}
            assert {array.shape[1] for array in cross.values()} == {3}
            step = net.run(program="decode", decoder_input_ids=decoder_ids, **cross)["logits"]
            np.testing.assert_allclose(step, expected, **CLOSE)


@pytest.mark.slow
def test_engines_are_built_for_variants(tmp_path: Path):
    pytest.importorskip("tensorrt_rtx")
    (report,) = omnigraph.export(
        "omninet",
        "tensorrt",
        config="tiny",
        settings={"kind": "encoder", "head_pruning": "true", "compute": "sm89"},
        programs=["encode"],
        variants="heads=2",
        out=tmp_path / "net",
    )
    files = Artifact(report.path).manifest["files"]
    assert {"encode.engine", "encode@heads=2.engine", "gates.engine"} <= set(files)


# -- what cannot be --------------------------------------------------------------------------------


class Functional(torch.nn.Module):
    """An attention whose output projection is a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.packed = torch.nn.Linear(16, 48)
        self.rows = torch.nn.Parameter(torch.randn(16, 16))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        parts = self.packed(hidden).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        context = torch.nn.functional.scaled_dot_product_attention(*parts.unbind(0))
        return context.transpose(1, 2).flatten(2) @ self.rows


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (torch.nn.Linear(16, 16), "found no attention"),
        (Functional(), "its output projection is no module"),
    ],
)
def test_a_model_without_heads_to_lose_is_refused(tmp_path: Path, module, reason: str):
    inputs = {("hidden" if isinstance(module, Functional) else "input"): torch.randn(2, 5, 16)}
    with pytest.raises(UsageError, match=reason):
        omnigraph.export(module, "onnx", inputs=inputs, variants="heads=2", out=tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_a_variant_is_compared_with_the_model_without_its_heads(tmp_path: Path, monkeypatch):
    right = HeadSite.features

    def wrong(self: HeadSite, heads: Sequence[int]) -> list[int]:
        """Those of the next head."""
        return right(self, [(head + 1) % HEADS for head in heads])

    model = model_of(kind="encoder", positions="absolute")
    monkeypatch.setattr(HeadSite, "features", wrong)
    with pytest.raises(ContractError, match="program 'encode@heads=2' differs from torch"):
        omnigraph.export(
            programs_of(model, "encode"), "onnx", variants="heads=2", out=tmp_path / "net"
        )
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize("text", ["12", "heads=", "heads=0", "heads=4,", "layers=3", "heads=-1"])
def test_what_is_no_set_of_variants(text: str):
    with pytest.raises(UsageError, match="is no set of variants"):
        parse_variants(text)


def test_sets_of_variants():
    assert parse_variants("heads=8, 16,12,8") == (16, 12, 8)
    assert parse_variants(None) == ()
    with pytest.raises(UsageError, match="no variant that would lose any"):
        parse_variants(None, "heads.json")


def test_a_variant_covers_what_it_has():
    variant = Variant("heads=2", {}, frozenset(), {"a": (0, 2)})
    opened = np.array([[1, 0, 0, 0], [0, 0, 1, 0]], bool)
    assert variant.covers({"a": opened})
    assert variant.covers({"b": np.ones((1, 4), bool)})
    opened[1, 3] = True
    assert not variant.covers({"a": opened})


def test_the_commands(tmp_path: Path, capsys, gated_paths: dict[str, Path]):
    status = main(
        ["export", "omninet", "--config", "tiny", "--target", "onnx", "--variants", "few",
         "--out", str(tmp_path / "net")]
    )  # fmt: skip
    assert status == 2
    assert "'few' is no set of variants" in capsys.readouterr().err
    arguments = ["run", str(gated_paths["onnx"]), "--input", "input_ids=1,2,3", "--json"]
    outputs = []
    for variant in ("heads=2", "whole"):
        assert main([*arguments, "--variant", variant]) == 0
        outputs.append(json.loads(capsys.readouterr().out)["outputs"])
    assert outputs[0] == outputs[1]
    assert list(outputs[0]) == ["last_hidden_state"]
    assert main([*arguments, "--variant", "heads=9"]) == 2
