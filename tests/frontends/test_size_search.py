"""Finding the sizes at which a model runs, for models that are no more than a condition."""

from __future__ import annotations

import pytest

from omnigraph.frontends.size_search import SizeSearch
from omnigraph.program import Dim

ANY = Dim(1)


def found(names: str, runs, *, groups=((),), limits=(), kept=(), start=None):
    """What is found for dimensions of these names, from small sizes that are all different."""
    dims = tuple(names.split())
    first = start or dict(zip(dims, (2, 5, 3, 7), strict=False))
    search = SizeSearch(
        dims,
        groups,
        lambda sizes: runs(**sizes),
        lambda sizes: max(sizes.values()) <= 1000,
        limits,
        frozenset(kept),
    )
    begin = search.start(first)
    return None if begin is None else search.find(begin)


def test_a_model_that_takes_all_sizes():
    assert found("b t", lambda b, t: True).ranges == {"b": ANY, "t": ANY}


@pytest.mark.parametrize(
    ("names", "runs", "ranges"),
    [
        ("b t", lambda b, t: t >= 192, {"b": ANY, "t": Dim(192)}),
        ("b t", lambda b, t: 192 <= t < 704, {"b": ANY, "t": Dim(192, 703)}),
        ("b t", lambda b, t: b == 1 and t > 2, {"b": Dim(1, 1), "t": Dim(3)}),
        ("b t", lambda b, t: 3 <= t <= 5, {"b": ANY, "t": Dim(3, 5)}),
        ("b t", lambda b, t: t == 48, {"b": ANY, "t": Dim(48, 48)}),
        ("b t", lambda b, t: t % 4 == 0, {"b": ANY, "t": Dim(4, None, 4)}),
        (
            "b h w",
            lambda b, h, w: h % 32 == 0 == w % 32,
            {"b": ANY, "h": Dim(32, None, 32), "w": Dim(32, None, 32)},
        ),
        (  # sizes of one element add up to anything
            "b h w",
            lambda b, h, w: (h % 32 == 0 == w % 32) or max(h, w) <= 4,
            {"b": ANY, "h": Dim(32, None, 32), "w": Dim(32, None, 32)},
        ),
        (  # padded up to 32, and no further
            "b h",
            lambda b, h: h % 32 == 0 or 29 <= h < 32,
            {"b": ANY, "h": Dim(32, None, 32)},
        ),
        ("b h w", lambda b, h, w: 33 <= h <= 80 and w > 4, {"h": Dim(33, 80), "w": Dim(5)}),
    ],
)
def test_ranges_of_single_dimensions(names, runs, ranges):
    search = found(names, runs, groups=(("b",), *[(name,) for name in names.split()[1:]]))
    assert {**search.ranges, **ranges} == search.ranges
    assert search.ties == {}
    assert runs(**search.example)


def test_tables_are_tried_as_the_largest_sizes():
    search = found("b t", lambda b, t: t <= 900, limits=(20, 900))
    assert search.ranges == {"b": ANY, "t": Dim(1, 900)}


def test_dimensions_that_must_be_equal_are_tied():
    groups = (("a", "b", "c"),)
    search = found("a b c t", lambda a, b, c, t: a == b == c and t > 9, groups=groups)
    assert search.ties == {"b": "a", "c": "a"}
    assert search.ranges == {"a": ANY, "t": Dim(10)}
    search = found("b t s", lambda b, t, s: s == b and t >= 64, groups=(("b",), ("t", "s")))
    assert search.ties == {"s": "b"}
    assert search.ranges == {"b": ANY, "t": Dim(64)}


def test_sizes_that_are_given_are_kept_at_the_start():
    search = found("b t", lambda b, t: t % 2 == 0, start={"b": 3, "t": 576}, kept=("b", "t"))
    assert search.example == {"b": 3, "t": 576}
    assert search.ranges["t"] == Dim(2, None, 2)
    assert found("b t", lambda b, t: t > 600, start={"b": 3, "t": 576}, kept=("b", "t")) is None


def test_least_sizes_that_do_not_go_together():
    search = found("b h w", lambda b, h, w: h * w >= 6)
    assert all(h * w >= 6 for h in [search.ranges["h"].min] for w in [search.ranges["w"].min])


def test_nothing_is_found_where_nothing_runs():
    assert found("b t", lambda b, t: False) is None
