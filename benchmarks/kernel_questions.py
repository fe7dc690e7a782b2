"""The parts of a transformer, each in the forms that a runtime may have kernels for.

The first form of each is what the passes leave; all others must give the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

_RNG = np.random.default_rng(0)
_HEADS, _SIZE = 16, 64
_WIDTH = _HEADS * _SIZE
_BOTH = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Question:
    """One computation in several forms, as ONNX text; the weights' names stand among the inputs."""

    name: str
    feeds: dict[str, np.ndarray]
    forms: dict[str, str]
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    runtimes: tuple[str, ...] = _BOTH


def questions() -> Iterator[Question]:
    """Every question, in the order of a transformer's layer."""
    yield from _projections()
    yield from _attentions()
    yield from _masks()
    yield from _pasts()
    yield from _rotations()
    yield from _residual_norms()
    yield from _activations()
    yield from _vocabularies()


def _random(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * _RNG.standard_normal(shape)).astype(np.float32)


def _projections() -> Iterator[Question]:
    """Products with a weight and a bias: alone, three of one input, and a gated pair."""
    for tokens in (1, 8, 128, 512):
        x = _random(1, tokens, _WIDTH)
        yield _projection("square", x, _WIDTH)
        yield _projection("up", x, 4 * _WIDTH)
        yield _three_projections(x)
        yield _gated_pair(x)


def _projection(name: str, x: np.ndarray, wide: int) -> Question:
    """One product with a bias, of x [1, T, C] to [1, T, wide]."""
    c, tokens = _WIDTH, x.shape[1]
    head = f"g (float[B,T,{c}] x, float[{c},{wide}] w, float[{wide}] b) => (float[B,T,N] y)"
    flat = (
        f"f = Constant<value_ints=[-1,{c}]>() s = Shape<end=2>(x) "
        f"n = Constant<value_ints=[{wide}]>() o = Concat<axis=0>(s, n)"
    )
    return Question(
        f"projection {name}, {tokens} tokens",
        {"x": x},
        {
            "MatMul, Add": f"{head} {{ m = MatMul(x, w) y = Add(m, b) }}",
            "Gemm": f"{head} {{ {flat} r = Reshape(x, f) m = Gemm(r, w, b) y = Reshape(m, o) }}",
        },
        {"w": _random(c, wide, scale=0.03), "b": _random(wide)},
    )


def _three_projections(x: np.ndarray) -> Question:
    """Query, key and value of one input, by products of their own or by one."""
    c, tokens = _WIDTH, x.shape[1]
    parts = {f"w{i}": _random(c, c, scale=0.03) for i in range(3)}
    biases = {f"b{i}": _random(c) for i in range(3)}
    weights = {
        **parts,
        **biases,
        "w": np.concatenate(list(parts.values()), 1),
        "b": np.concatenate(list(biases.values())),
    }
    apart = " ".join(f"m{i} = MatMul(x, w{i}) y{i} = Add(m{i}, b{i})" for i in range(3))
    outputs = ", ".join(f"float[B,T,{c}] y{i}" for i in range(3))
    declared = ", ".join(f"float[{','.join(map(str, a.shape))}] {n}" for n, a in weights.items())
    head = f"g (float[B,T,{c}] x, {declared}) => ({outputs})"
    return Question(
        f"query, key and value, {tokens} tokens",
        {"x": x},
        {
            "three MatMul": f"{head} {{ {apart} }}",
            "one MatMul, Split": f"{head} {{ m = MatMul(x, w) a = Add(m, b) "
            "y0, y1, y2 = Split<axis=-1, num_outputs=3>(a) }",
        },
        weights,
    )


def _gated_pair(x: np.ndarray) -> Question:
    """Gate and up of a feed-forward layer, by products of their own or by one."""
    c, tokens = _WIDTH, x.shape[1]
    weights = {"w0": _random(c, 2816, scale=0.03), "w1": _random(c, 2816, scale=0.03)}
    weights["w"] = np.concatenate(list(weights.values()), 1)
    head = (
        f"g (float[B,T,{c}] x, float[{c},2816] w0, float[{c},2816] w1, float[{c},5632] w)"
        " => (float[B,T,2816] y)"
    )
    tail = "s = Sigmoid(m0) h = Mul(m0, s) y = Mul(h, m1)"
    return Question(
        f"gate and up, {tokens} tokens",
        {"x": x},
        {
            "two MatMul": f"{head} {{ m0 = MatMul(x, w0) m1 = MatMul(x, w1) {tail} }}",
            "one MatMul, Split": f"{head} {{ m = MatMul(x, w) "
            f"m0, m1 = Split<axis=-1, num_outputs=2>(m) {tail} }}",
        },
        weights,
    )


_HEAD_SHAPES = (
    f"hs = Constant<value_ints=[0,0,{_HEADS},{_SIZE}]>() cs = Constant<value_ints=[0,0,{_WIDTH}]>()"
)
_SPLIT_HEADS = " ".join(
    f"r{n} = Reshape({n}, hs) {n}h = Transpose<perm=[0,2,1,3]>(r{n})" for n in "qkv"
)
_JOIN_HEADS = "yt = Transpose<perm=[0,2,1,3]>(yh) y = Reshape(yt, cs)"
#: Booleans as numbers to add; the least finite number, for MultiHeadAttention has no infinities.
_ADDABLE = (
    "zero = Constant<value_float=0.0>() low = Constant<value_float=-3.4028e38>() "
    "added = Where(m, zero, low)"
)
_MASK_TYPES = {
    "no mask": "",
    "causal": "",
    "causal, bool [B,1,T,S]": ", bool[B,1,T,S] m",
    "bool [B,1,T,S]": ", bool[B,1,T,S] m",
    "float [1,H,T,S]": f", float[1,{_HEADS},T,S] m",
    "float [B,H,T,S]": f", float[B,{_HEADS},T,S] m",
}


def _mask(kind: str, batch: int, queries: int, keys: int) -> dict[str, np.ndarray]:
    if "bool" in kind:
        mask = _RNG.random((batch, 1, queries, keys)) < 0.8
        mask[..., 0] = True
        return {"m": mask}
    if "float" in kind:
        return {"m": _random(1 if "[1" in kind else batch, _HEADS, queries, keys)}
    return {}


def _attentions() -> Iterator[Question]:
    """Attention from projections to projection, [B, T, C] in and out."""
    for batch, queries, keys in (
        (1, 128, 128),
        (1, 512, 512),
        (1, 1024, 1024),
        (1, 2048, 2048),
        (4, 128, 128),
    ):
        feeds = {
            "q": _random(batch, queries, _WIDTH),
            "k": _random(batch, keys, _WIDTH),
            "v": _random(batch, keys, _WIDTH),
        }
        for kind in _MASK_TYPES:
            if queries > 512 and kind == "float [B,H,T,S]":
                continue
            yield Question(
                f"attention, {kind}, batch {batch}, {queries} tokens",
                {**feeds, **_mask(kind, batch, queries, keys)},
                _attention_forms(kind),
            )


def _attention_forms(kind: str) -> dict[str, str]:
    c, masked = _WIDTH, bool(_MASK_TYPES[kind])
    head = (
        f"g (float[B,T,{c}] q, float[B,S,{c}] k, float[B,S,{c}] v{_MASK_TYPES[kind]})"
        f" => (float[B,T,{c}] y)"
    )
    causal, mask = int(kind.startswith("causal")), ", m" if masked else ""
    added, bias = (_ADDABLE, ", , , added") if "bool" in kind else ("", ", , , m")
    forms = {
        "Attention of 4 axes": f"{head} {{ {_HEAD_SHAPES} {_SPLIT_HEADS} "
        f"yh = Attention<is_causal={causal}>(qh, kh, vh{mask}) {_JOIN_HEADS} }}",
        "Attention of 3 axes": f"{head} {{ y = Attention<is_causal={causal}, "
        f"q_num_heads={_HEADS}, kv_num_heads={_HEADS}>(q, k, v{mask}) }}",
        "MultiHeadAttention": f"{head} {{ {added} y = com.microsoft.MultiHeadAttention"
        f"<num_heads={_HEADS}, unidirectional={causal}>(q, k, v{bias if masked else ''}) }}",
    }
    if causal:
        forms["GroupQueryAttention"] = (
            f"{head} {{ {added} one = Constant<value_ints=[1]>() s = Shape<start=1, end=2>(k) "
            "l = Sub(s, one) b = Shape<end=1>(k) ls = Expand(l, b) li = Cast<to=6>(ls) "
            "z = Squeeze(s) t = Cast<to=6>(z) y, pk, pv = com.microsoft.GroupQueryAttention"
            f"<num_heads={_HEADS}, kv_num_heads={_HEADS}>"
            f"(q, k, v, , , li, t{', , , , added' if masked else ''}) }}"
        )
    else:
        scores = "added = Identity(s)" if not masked else "added = Add(s, m)"
        if "bool" in kind:
            scores = f"{_ADDABLE.replace('added', 'am')} added = Add(s, am)"
        forms["MatMul, Softmax"] = (
            f"{head} {{ {_HEAD_SHAPES} {_SPLIT_HEADS} f = Constant<value_float=0.125>() "
            "qs = Mul(qh, f) kt = Transpose<perm=[0,2,3,1]>(rk) s = MatMul(qs, kt) "
            f"{scores} p = Softmax<axis=-1>(added) yh = MatMul(p, vh) {_JOIN_HEADS} }}"
        )
    return forms


def _masks() -> Iterator[Question]:
    """What a mask costs by its form, for one Attention: the same keys are seen in all."""
    c = _WIDTH
    for tokens in (128, 512):
        seen = np.ones((1, 1, tokens, tokens), bool)
        seen[..., tokens - tokens // 4 :] = False
        low = np.where(seen, np.float32(0), np.float32(-np.inf))
        row = {"bool [B,1,T,S]": seen, "float [B,1,T,S]": low}
        row["float [B,H,T,S]"] = np.repeat(low, _HEADS, 1)
        row["bool [B,H,T,S]"] = np.repeat(seen, _HEADS, 1)
        forms, feeds = {}, {n: _random(1, tokens, c) for n in "qkv"}
        given = ", ".join(
            f"{'bool' if a.dtype == bool else 'float'}[{','.join(map(str, a.shape))}] m{i}"
            for i, a in enumerate(row.values())
        )
        for index, (name, array) in enumerate(row.items()):
            feeds[f"m{index}"] = array
            forms[name] = (
                f"g (float[B,T,{c}] q, float[B,T,{c}] k, float[B,T,{c}] v, {given}) => "
                f"(float[B,T,{c}] y) {{ {_HEAD_SHAPES} {_SPLIT_HEADS} "
                f"yh = Attention(qh, kh, vh, m{index}) {_JOIN_HEADS} }}"
            )
        yield Question(f"mask of padding, {tokens} tokens", feeds, forms)


def _pasts() -> Iterator[Question]:
    """A step with a past of 512, which it gives longer."""
    c, past = _WIDTH, 512
    for queries in (1, 8):
        keys = past + queries
        feeds = {n: _random(1, queries, c) for n in "qkv"}
        feeds |= {n: _random(1, _HEADS, past, _SIZE) for n in ("pk", "pv")}
        for kind in ("no mask", "bool [B,1,T,S]", "float [1,H,T,S]"):
            cache = f"float[B,{_HEADS},P,{_SIZE}]"
            head = (
                f"g (float[B,T,{c}] q, float[B,T,{c}] k, float[B,T,{c}] v, {cache} pk, {cache} pv"
                f"{_MASK_TYPES[kind]}) => (float[B,T,{c}] y, {cache[:-1]}] nk, {cache[:-1]}] nv)"
            ).replace("P,", "N,")
            mask = "m" if _MASK_TYPES[kind] else ""
            added, bias = (_ADDABLE, "added") if "bool" in kind else ("", mask)
            yield Question(
                f"attention with a past, {kind}, {queries} tokens",
                {**feeds, **_mask(kind, 1, queries, keys)},
                {
                    "Concat, Attention of 4 axes": f"{head} {{ {_HEAD_SHAPES} {_SPLIT_HEADS} "
                    "nk = Concat<axis=2>(pk, kh) nv = Concat<axis=2>(pv, vh) "
                    f"yh = Attention(qh, nk, nv, {mask}) {_JOIN_HEADS} }}",
                    "Attention with a past": f"{head} {{ {_HEAD_SHAPES} {_SPLIT_HEADS} "
                    f"yh, nk, nv = Attention(qh, kh, vh, {mask}, pk, pv) {_JOIN_HEADS} }}",
                    "Attention of 3 axes": f"{head} {{ y, nk, nv = Attention"
                    f"<q_num_heads={_HEADS}, kv_num_heads={_HEADS}>(q, k, v, {mask}, pk, pv) }}",
                    "MultiHeadAttention": f"{head} {{ {added} y, nk, nv = com.microsoft."
                    f"MultiHeadAttention<num_heads={_HEADS}>(q, k, v, , , {bias}, pk, pv) }}",
                },
            )


def _rotations() -> Iterator[Question]:
    """Rotary positions of queries [B, H, T, D], by the standard's op, contrib's and in parts."""
    for tokens in (1, 128, 512):
        half = _SIZE // 2
        angles = np.arange(tokens)[:, None] * 0.1 ** np.arange(half)
        head = (
            f"g (float[B,{_HEADS},T,{_SIZE}] x, float[T,{half}] cos, float[T,{half}] sin, "
            f"int64[B,T] p) => (float[B,{_HEADS},T,{_SIZE}] y)"
        )
        yield Question(
            f"rotary, {tokens} tokens",
            {
                "x": _random(1, _HEADS, tokens, _SIZE),
                "cos": np.cos(angles).astype(np.float32),
                "sin": np.sin(angles).astype(np.float32),
                "p": np.arange(tokens)[None],
            },
            {
                "RotaryEmbedding": f"{head} {{ y = RotaryEmbedding(x, cos, sin, p) }}",
                "contrib RotaryEmbedding": f"{head} "
                "{ y = com.microsoft.RotaryEmbedding(x, p, cos, sin) }",
                "Split, Mul, Add": f"{head} {{ a, b = Split<axis=-1, num_outputs=2>(x) "
                "ac = Mul(a, cos) bs = Mul(b, sin) bc = Mul(b, cos) as = Mul(a, sin) "
                "l = Sub(ac, bs) r = Add(bc, as) y = Concat<axis=-1>(l, r) }",
            },
        )


def _residual_norms() -> Iterator[Question]:
    """A residual and the norm after it; the sum is read again."""
    c = _WIDTH
    for tokens in (1, 8, 128, 512):
        feeds = {"x": _random(1, tokens, c), "skip": _random(1, tokens, c)}
        weights = {"w": 1 + _random(c, scale=0.1), "b": _random(c), "d": _random(c)}
        head = (
            f"g (float[B,T,{c}] x, float[B,T,{c}] skip, float[{c}] w, float[{c}] b, float[{c}] d)"
            f" => (float[B,T,{c}] y, float[B,T,{c}] s)"
        )
        yield Question(
            f"residual and LayerNorm, {tokens} tokens",
            feeds,
            {
                "Add, LayerNormalization": f"{head} {{ a = Add(x, d) s = Add(skip, a) "
                "y = LayerNormalization<axis=-1, epsilon=1e-5>(s, w, b) }",
                "SkipLayerNormalization": f"{head} {{ y, mean, inv, s = com.microsoft."
                "SkipLayerNormalization<epsilon=1e-5>(skip, x, w, b, d) }",
            },
            weights,
            ("onnxruntime",),
        )
        yield Question(
            f"residual and RMSNorm, {tokens} tokens",
            feeds,
            {
                "Add, RMSNormalization": f"{head} {{ s = Add(skip, x) "
                "y = RMSNormalization<axis=-1, epsilon=1e-5>(s, w) }",
                "SkipSimplifiedLayerNormalization": f"{head} {{ y, mean, inv, s = com.microsoft."
                "SkipSimplifiedLayerNormalization<epsilon=1e-5>(skip, x, w) }",
            },
            weights,
            ("onnxruntime",),
        )


def _activations() -> Iterator[Question]:
    """The activation of a feed-forward layer with the bias before it."""
    wide = 4 * _WIDTH
    for tokens in (1, 8, 128, 512):
        for approximate, fused in (("none", "BiasGelu"), ("tanh", "FastGelu")):
            head = f"g (float[B,T,{wide}] x, float[{wide}] b) => (float[B,T,{wide}] y)"
            yield Question(
                f"bias and gelu {approximate}, {tokens} tokens",
                {"x": _random(1, tokens, wide)},
                {
                    "Add, Gelu": f"{head} {{ a = Add(x, b) "
                    f'y = Gelu<approximate="{approximate}">(a) }}',
                    fused: f"{head} {{ y = com.microsoft.{fused}(x, b) }}",
                },
                {"b": _random(wide)},
                ("onnxruntime",),
            )


def _vocabularies() -> Iterator[Question]:
    """Logits from an embedding that is looked up too, and so cannot be stored transposed."""
    c, vocabulary = _WIDTH, 50257
    table = _random(vocabulary, c, scale=0.03)
    head = (
        f"g (float[B,T,{c}] x, int64[B,T] ids, float[{vocabulary},{c}] w)"
        f" => (float[B,T,{vocabulary}] y)"
    )
    look = "e = Gather(w, ids) h = Add(x, e)"
    flat = (
        f"f = Constant<value_ints=[-1,{c}]>() s = Shape<end=2>(x) "
        f"n = Constant<value_ints=[{vocabulary}]>() o = Concat<axis=0>(s, n) r = Reshape(h, f)"
    )
    for tokens in (1, 8, 128):
        yield Question(
            f"logits of a tied embedding, {tokens} tokens",
            {"x": _random(1, tokens, c), "ids": np.arange(tokens)[None] % vocabulary},
            {
                "Transpose, MatMul": f"{head} {{ {look} t = Transpose<perm=[1,0]>(w) "
                "y = MatMul(h, t) }",
                "Gemm": f"{head} {{ {look} {flat} m = Gemm<transB=1>(r, w) y = Reshape(m, o) }}",
                "FusedMatMul": f"{head} {{ {look} y = com.microsoft.FusedMatMul<transB=1>(h, w) }}",
            },
            {"w": table},
        )
