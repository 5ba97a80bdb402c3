"""Claims about the checker that other packages are put through: it passes what is right and reports what is wrong."""

import itertools

import pytest
import torch
from torch import Tensor

from altgrad.formats import FloatFormat
from altgrad.quantize import round_to
from bench.cast import SCALE, peers
from bench.peer_conformance import OURS, draw, judge, moved, nearest_rows, points, report, stochastic_row
from bench.peers import PEERS, Peer, unknown

E4M3 = FloatFormat.parse("e4m3fn")
BY_NAME = {peer.name: peer for peer in PEERS}


@pytest.mark.parametrize("name", ["torch dtype", "ml_dtypes", "gfloat"])
def test_packages_known_to_be_right_pass(name: str) -> None:
    peer = BY_NAME[name]
    assert peer.version
    for fmt in map(FloatFormat.parse, ("e4m3fn", "e5m2fnuz")):
        found = judge(peer.nearest, fmt)
        assert found is not None and (found.wrong, found.zeros, found.failure) == (0, 0, "")
        assert found.points > 1_900_000


def test_our_own_cast_passes_both_ways() -> None:
    found = judge(OURS.nearest, FloatFormat.parse("e7m0p3109"))
    assert found is not None and found.wrong == found.zeros == 0
    cast = OURS.stochastic(E4M3)
    assert cast is not None and moved(cast, E4M3) == 0
    assert all(point.stray == 0 and abs(point.deviations) < 4 for point in draw(cast, E4M3))


def test_wrong_values_and_zeros_of_the_other_sign_are_counted_apart() -> None:
    ties = judge(lambda fmt: lambda x: round_to(x, fmt, "nearest_away"), E4M3)
    assert ties is not None and ties.first is not None and ties.zeros == 0
    assert ties.wrong == 126  # of each sign the 63 midpoints whose even neighbour is the lower one
    assert str(ties.first) == "0.0009765625 (0x3a800000) gives 0.001953125, not 0.0"
    unsigned = judge(lambda fmt: lambda x: round_to(x, fmt) + 0.0, E4M3)
    assert unsigned is not None and unsigned.wrong == 0 and unsigned.zeros > 1


def test_a_package_that_raises_or_does_not_know_a_format_stops_nothing() -> None:
    def broken(fmt: FloatFormat) -> None:
        raise RuntimeError("no compiler\nand more")

    found = judge(broken, E4M3)
    assert found is not None and found.failure == "RuntimeError: no compiler"
    assert judge(unknown, E4M3) is None


def test_noise_that_moves_grid_values_and_a_bias_are_found() -> None:
    keys = itertools.count()

    def noisy(x: Tensor) -> Tensor:
        return round_to(x * 1.01, E4M3, "stochastic", key=next(keys))

    assert moved(noisy, E4M3) > 1000
    biased = {point.kind for point in draw(noisy, E4M3) if abs(point.deviations) > 4}
    assert {"normal", "next above a power of two"} <= biased
    stray = draw(lambda x: torch.zeros_like(x), E4M3)
    assert next(stray).stray > 0


def test_the_points_are_of_the_kinds_they_say() -> None:
    for fmt in map(FloatFormat.parse, ("e4m3fn", "e4m3f", "e4m3ieee", "e4m3fnuz")):
        found = {kind: float(fmt.magnitude(rung)) for kind, rung, _ in points(fmt)}
        assert found["next above a power of two"] == 1 and found["next below a power of two"] == 1 - 1 / 16
        assert 0 < found["sub-normal"] < found["largest sub-normal"] < fmt.min_normal


def test_the_report_has_a_row_for_each_finding_and_names_who_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Peer(
        "bad", "bad", "no_such_module", "e4m3fn alone", "`nearest_away`",
        lambda fmt: (lambda x: round_to(x, fmt, "nearest_away")) if fmt == E4M3 else None, unknown,
    )  # fmt: skip
    assert bad.version is None and Peer("a", "a", "no.such", "", "", unknown, unknown).version is None
    summary, rows = nearest_rows(bad)
    assert summary == "| bad | None | e4m3fn alone | 1 | none | `nearest_away` |"
    assert len(rows) == 1 and rows[0].startswith("| bad | e4m3fn | 126 | 0 | ")
    assert stochastic_row(bad) is None
    monkeypatch.setattr("bench.peer_conformance.nearest_rows", lambda peer: (summary, rows))
    text = report([bad], ["gone"])
    assert "Not installed, so not looked at: gone." in text and rows[0] in text


def test_the_bench_times_what_the_checker_judged() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    tasks, absent = peers(x, "e4m3fn")
    assert {"torch dtype nearest_even", "ml_dtypes nearest_even", "gfloat nearest_even", "gfloat stochastic"} <= set(
        tasks
    )
    assert not set(absent) & {"torch dtype", "ml_dtypes", "gfloat"}
    for name in ("torch dtype", "ml_dtypes", "gfloat"):
        assert torch.equal(tasks[f"{name} nearest_even"](), round_to(x, E4M3, scale=SCALE))
