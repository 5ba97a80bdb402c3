"""What a dry run draws, from rows made here: nothing is lost by putting layers and operands together."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from altgrad.cli.dry_run import OPERANDS, cast_lines, operands, together
from altgrad.training.prepare import prepare

SLOTS = [f"{product}.{operand}" for operand, products in OPERANDS.items() for product in products]


def test_like_names_are_one_and_a_star_means_all_of_them() -> None:
    everything = [f"blocks.{block}.mlp.{part}" for block in range(8) for part in ("up", "down")] + ["head"]
    assert together(everything, everything) == ["blocks.*.mlp.up x8", "blocks.*.mlp.down x8", "head"]
    some = [f"blocks.{block}.mlp.up" for block in (0, 1, 2, 5)]
    assert together(some, everything) == ["blocks.0-2,5.mlp.up x4"]
    assert together(["blocks.7.mlp.down"], everything) == ["blocks.7.mlp.down"]


def test_names_with_several_numbers_are_one_only_where_all_combinations_are_there() -> None:
    experts = [f"blocks.{a}.experts.{b}.up" for a, b in product(range(2), range(16))]
    assert together(experts, experts) == ["blocks.*.experts.*.up x32"]
    assert together(experts[:16], experts) == ["blocks.0.experts.*.up x16"]
    assert together(experts[:17], experts) == experts[:17]


@given(
    st.sets(st.tuples(st.integers(0, 4), st.integers(0, 3))), st.sets(st.tuples(st.integers(0, 4), st.integers(0, 3)))
)
def test_the_counts_of_what_is_put_together_add_up(first: set[tuple[int, int]], more: set[tuple[int, int]]) -> None:
    names = [[f"a.{i}.b.{j}" for i, j in sorted(each)] for each in (first, first | more)]
    found = together(*names)
    assert sum(int(name.partition(" x")[2] or 1) for name in found) == len(first)


@given(st.lists(st.sampled_from(["-", "e4m3fn current", "e5m2 delayed"]), min_size=6, max_size=6))
def test_every_slot_can_be_read_from_the_operands(casts: list[str]) -> None:
    slots = dict(zip(SLOTS, casts, strict=True))
    read: dict[str, str] = {}
    for names, cast in operands(slots):
        for name in SLOTS if names == "not cast" else names.split(", "):
            operand, _, one = name.partition(" of ")
            products = (one,) if one else OPERANDS.get(operand, ())
            for each in products:
                read[f"{each}.{operand}"] = "-" if cast == "not cast" else cast
    assert read == slots or (set(casts) == {"-"} and operands(slots) == [("not cast", "")])


def test_a_model_of_a_thousand_layers_fits_80_columns() -> None:
    casts = [
        {"layer": f"model.layers.{block}.self_attn.{part}_proj", "rule": f"rule {block % 3}", "storage": "master",
         "slots": dict.fromkeys(SLOTS, "e4m3fn stochastic block/128")}
        for block in range(250) for part in "qkvo"
    ]  # fmt: skip
    lines = [line.text.rstrip() for line in cast_lines(casts, 80)]
    assert max(map(len, lines)) <= 80 or all(" " not in line.strip() for line in lines if len(line) > 80)
    assert sum(line.count(" x84") + line.count(" x83") for line in lines) == 12


def test_casts_besides_layers_have_rows_of_their_own() -> None:
    """After the layers, by what is cast of each; and weights of norms count among the parameters that are quantised."""
    attention = {"query": "e4m3fn", "value": {"format": "e4m3fn", "scaling": "mx"}, "operands": "per_product"}
    rules = [
        {"place": "attention", "attention": attention}, {"place": "norms", "weight": "e4m3fn"},
        {"match": "blocks.?", "outputs": {"forward": "bfloat16", "backward": "e5m2"}},
    ]  # fmt: skip
    model = {"kind": "gpt", "layers": 2, "width": 32, "heads": 2, "context": 16}
    spec = {
        "project": "p", "name": "n", "model": model, "data": {"kind": "text", "source": "eulaw"}, "optimizer": "adamw",
        "steps": 2, "precision": {"rules": rules},
    }  # fmt: skip
    prepared = prepare(spec)
    rows = {row["layer"]: row for row in prepared.casts() if not set(SLOTS) & row["slots"].keys()}
    assert list(rows["blocks.0.attention"]["slots"]) == [
        "query.scores",
        "value.output",
        "value.grad_probabilities",
        "query.grad_key",
    ]
    assert rows["blocks.1"]["slots"] == {"output": "e8m7 current", "output_gradient": "e5m2 current"}
    assert rows["blocks.1.norm2"]["weight"] == "blocks.1.norm2.weight" and len(rows) == 2 + 2 + 5
    assert "(norms)" in rows["norm"]["rule"] and prepared.quantised == 5 * 32
    drawn = "\n".join(line.text for line in cast_lines(prepared.casts(), 80))
    assert "blocks.*.norm1 x2, blocks.*.norm2 x2, norm" in drawn and "output_gradient  e5m2 current" in drawn
