"""Claims about casts apart: the operator gives what the cast and its observers give, and writes to what it says."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from altgrad.monitors import CastMonitor, MonitorSpec
from altgrad.quantize import Quantizer
from altgrad.watching.cast_tables import CastTables

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")

MX = {"format": "e4m3fn", "scaling": "mx"}
SPECS: dict[str, Any] = {
    "current": {"format": "e4m3fn"},
    "delayed, clamped to zeros": {"format": "e5m2", "scaling": "delayed", "nonfinite": "saturate"},
    "channel, real": {"format": "e4m3fn", "scaling": {"kind": "current", "granularity": "channel", "scale": "real"}},
    "stochastic": {"format": "e4m3fn", "scaling": "delayed", "rounding": "stochastic", "random_bits": 8},
    "overflows": {"format": "e3m4", "scaling": "unscaled", "rounding": "toward_zero", "overflow": "inf"},
    "squares": {"format": "e4m3fn", "scaling": {"kind": "block", "size": 16, "shape": "square"}},
    "mx": MX,
    "nvfp4": {"format": "e2m1", "scaling": "nvfp4", "rounding": "stochastic"},
}
LOOKS = {k: m for k in MonitorSpec.kinds() if isinstance(m := MonitorSpec.of(k).build(), CastMonitor)}


def watched(name: str, site: str, reduced: Any = "last") -> tuple[Quantizer, CastTables]:
    quantizer = Quantizer(SPECS[name], site, reduced=reduced, rows=32)
    tables = CastTables(LOOKS, [site], torch.device("cpu"))
    tables.whole = quantizer.watching = quantizer.apart = True
    quantizer.observers.append(tables.observer(site))
    return quantizer, tables


def tensor(*shape: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 3
    x.view(-1)[:4] = torch.tensor([0.0, -0.0, 1e-30, torch.inf])
    return x


def same(found: CastTables, expected: CastTables) -> None:
    for rows, others in zip(found.closed(), expected.closed(), strict=True):
        assert rows.numel() and rows.tolist()[0] == pytest.approx(others.tolist()[0], rel=1e-5, nan_ok=True)
    counts, others = (dict(each.rows_of("range", *_lists(each))) for each in (found, expected))
    assert all(value == others[site][name] for site, row in counts.items() for name, value in row.items())


def _lists(tables: CastTables) -> tuple[list[float], list[float]]:
    return tables.sums.flatten().tolist(), tables.maxima.flatten().tolist()


@pytest.mark.parametrize("name", SPECS)
def test_a_cast_writes_to_what_stands_for_its_rows_and_to_nothing_else(name: str) -> None:
    (plain, expected), (apart, tables) = watched(name, "a"), watched(name, "a")
    x, before = tensor(32, 48), copy.deepcopy(apart.state_dict())
    rows = [row.clone() for row in tables.written[0]]
    key = apart.key_of_pass(False) if apart.draws else None
    made = apart.cast_into(x, key, rows, torch.bfloat16)
    assert torch.equal(made, plain.values(x, True, torch.bfloat16))
    assert not any(row.any() for row in tables.written[0])
    assert not apart.draws or torch.equal(apart.counter, before["counter"])
    for mine, given in zip(tables.written[0], rows, strict=True):
        mine.copy_(given)
    same(tables, expected)


def test_a_copy_is_a_cast_of_its_own() -> None:
    first = Quantizer("e4m3fn", "a")
    copies = [copy.deepcopy(first), pickle.loads(pickle.dumps(first)), Quantizer("e4m3fn", "a")]
    assert len({int(each.number) for each in [first, *copies]}) == 4
    with torch.device("meta"):
        assert Quantizer("e4m3fn", "a").number.device.type == "cpu"


@pytest.mark.long
@pytest.mark.needs("c++")
@pytest.mark.parametrize("name", SPECS)
def test_in_a_graph_one_operator_gives_the_same_bits_and_counts_whatever_the_shape(name: str) -> None:
    """Like casts, and other shapes of one, share the graph behind it."""
    torch._dynamo.reset()
    counters.clear()
    graphs: list[Any] = []

    def kept(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    for reduced in ("last", "first") if name == "mx" else ("last",):
        for site in ("a", "b"):
            (plain, expected), (apart, tables) = watched(name, site, reduced), watched(name, site, reduced)
            called = torch.compile(lambda x, apart=apart: apart(x), backend=kept, fullgraph=True)
            for columns in (64, 64, 128 if name == "mx" else 32, 96):  # a single block has a graph of its own
                x = tensor(32, columns)
                assert torch.equal(called(x), plain(x))
                plain.commit()
                apart.commit()
            same(tables, expected)
            assert all(torch.equal(b, apart.state_dict()[n]) for n, b in plain.state_dict().items())
        behind = counters["stats"]["unique_graphs"] - len(graphs)
        assert all(str(graph.graph).count("altgrad.watched_cast") == 1 for graph in graphs)
        assert behind == 1 + (reduced == "first")
        assert not counters["graph_break"]
