"""`altgrad formats`: what it prints, how it fails, what it does not load."""

import json
import os
import pty
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from altgrad.cli.format_card import number_line
from altgrad.cli.formats import app
from altgrad.formats import CATALOG, SCALES, TABLES, FloatFormat, ScaleFormat


@pytest.fixture
def cli():
    return lambda *arguments: CliRunner().invoke(app, arguments)


def test_list_has_one_line_per_named_format(cli):
    lines = cli("list").stdout.rstrip().splitlines()
    assert [line.split()[0] for line in lines] == ["name", *(entry.name for entry in (*CATALOG, *TABLES, *SCALES))]
    assert [line.split()[0] for line in lines if "  scale: " in line] == [entry.name for entry in SCALES]
    assert [line.split()[0] for line in lines if "  table: " in line] == [entry.name for entry in TABLES]


def test_list_json_describes_every_named_format(cli):
    cards = json.loads(cli("list", "--json").stdout)
    named = [entry.name for entry in (*CATALOG, *TABLES)]
    assert [card["name"] for card in cards if not card["scale_format"]] == named
    assert [card["name"] for card in cards if card.get("table")] == [entry.name for entry in TABLES]
    assert [card["name"] for card in cards if card["scale_format"]] == [entry.name for entry in SCALES]
    assert next(card for card in cards if card["name"] == "e4m3fn")["max"] == 448.0


@pytest.mark.parametrize("name", [entry.name for entry in CATALOG] + ["e11m4", "e2m0", "e15m0", "e0m1", "e4m3b-3fn"])
def test_any_format_has_a_card_in_plain_text(cli, name):
    result = cli("show", name)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0] == name
    assert "\x1b" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 110
    assert json.loads(cli("show", name, "--json").stdout)["name"] == name


@pytest.mark.parametrize("name", [entry.name for entry in SCALES] + ["e4m0fnu", "binary3p2ue"])
def test_any_scale_format_has_a_card_that_says_what_it_is(cli, name):
    result = cli("show", name)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{name}\nscale format  unsigned")
    assert max(map(len, result.stdout.splitlines())) <= 110
    card = json.loads(cli("show", name, "--json").stdout)
    assert (card["name"], card["scale_format"]) == (name, True)


@pytest.mark.parametrize("name", [*(entry.name for entry in TABLES), "[-1,0,1]", "[-3,-1,-0.25]"])
def test_any_table_has_a_card_and_takes_a_number_under_the_glass(cli, name):
    result = cli("show", name)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{name}\ntable ")
    assert max(map(len, result.stdout.splitlines())) <= 110
    card = json.loads(cli("show", name, "--json").stdout)
    assert card["name"] == name and card.keys() >= json.loads(cli("show", "e4m3fn", "--json").stdout).keys()
    assert cli("inspect", name, "-0.3").exit_code == 0
    facts = json.loads(cli("inspect", name, "-0.3", "--json").stdout)
    down, up = (facts["rounding"][f"toward_{way}"]["value"] for way in ("negative", "positive"))
    assert down <= -0.3 <= up or facts["rounding"]["toward_zero"]["saturates"]
    assert facts["rounding"]["nearest_even"]["value"] in (down, up) and len(facts["bits"]) == card["bits"]


def test_a_table_that_is_none_is_one_line(cli):
    for arguments in (("show", "[1]"), ("inspect", "[1, 2", "1"), ("inspect", "nf4", "0x10"), ("show", "nf")):
        result = cli(*arguments)
        assert result.exit_code == 2 and result.stderr.count("\n") == 1, result.output
    assert cli("inspect", "nf4", "0x10").stderr == "code 0x10 is outside nf4's 0 to 0xf.\n"


def test_a_scale_format_is_refused_where_a_format_for_values_is_asked(cli):
    result = cli("inspect", "e8m0fnu", "1")
    assert result.exit_code == 2
    assert result.stderr == (
        "e8m0fnu is an unsigned scale format, not one for values; ask for it as a block's scale.\n"
    )


def test_a_card_tells_limits_specials_and_equal_grids(cli):
    text = cli("show", "e1m6").stdout
    for piece in ("4 x e0m7", "3.96875", "2^-5 = 0.03125", "every code is finite", "0x7f  0 1 111111"):
        assert piece in text


def test_an_ambiguous_name_shows_each_meaning(cli):
    text = cli("show", "e4m3").stdout
    assert text.startswith("e4m3 means different formats to different people; say e4m3fn (max 448")
    assert "\ne4m3fn\n" in text
    assert "\ne4m3ieee\n" in text
    data = json.loads(cli("show", "e4m3", "--json").stdout)
    assert (data["ambiguous"], [card["name"] for card in data["formats"]]) == ("e4m3", ["e4m3fn", "e4m3ieee"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "e9m9"), "e9m9 has 19 bits; AltGrad emulates 2 to 16.\n"),
        (("inspect", "e4m3", "1"), "e4m3 means different formats to different people; say e4m3fn (max 448"),
        (("inspect", "e4m3fn", "x"), "'x' is not a number; write"),
        (("inspect", "e4m3fn", "0x100"), "code 0x100 is outside e4m3fn's"),
        (("inspect", "e4m3fn", "1", "--scale", "0"), "--scale 0 is not a scale; give a positive number"),
        (("inspect", "e4m3fn", "1", "--scale", "nan"), "--scale nan is not a scale"),
        (("inspect", "e2m1", "nan"), "e2m1 has no NaN"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(cli, arguments, message):
    result = cli(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1


def test_inspect_takes_negative_numbers_and_tells_every_rounding(cli):
    text = cli("inspect", "e4m3fn", "-0.3").stdout
    for piece in ("1 0101 010", "-0.34375, -0.28125", "toward_positive -0.28125 0xa9 0.01875", "probability 0.6"):
        assert piece in " ".join(text.split())


def test_inspect_scales(cli):
    facts = json.loads(cli("inspect", "e4m3fn", "500", "--scale", "2^-1", "--json").stdout)
    assert (facts["value"], facts["scale"], facts["gap_below"]) == (224.0, 0.5, 16.0)
    assert facts["rounding"]["nearest_even"]["saturates"] is True


def test_inspect_of_a_code_or_a_special_has_no_roundings(cli):
    assert json.loads(cli("inspect", "e7m0", "0x45", "--json").stdout)["rounding"] is None
    assert json.loads(cli("inspect", "e4m3fn", "nan", "--json").stdout)["value"] == "nan"
    assert "64" in cli("inspect", "e7m0", "0x45").stdout


def test_the_number_line_counts_every_positive_value():
    for fmt in (*map(FloatFormat.parse, ("e2m1", "e1m1", "e3m0")), ScaleFormat.parse("binary3p2uf")):
        for line in number_line(fmt)[1:]:
            cells = line[line.index("[") + 1 : line.index("]")]
            assert sum(" |23456789".index(cell) for cell in cells) == fmt.max_code


@pytest.mark.parametrize(
    ("call", "unwanted"),
    [
        # typer 0.29 reads arguments with pydantic, so what is ours is called as a function
        ("formats.show('e4m3fn'); formats.list_formats(); formats.inspect_value('e4m3fn', '0.3')", ["pydantic"]),
        ("formats.app(['show', 'e4m3fn'], standalone_mode=False)", []),
    ],
)
def test_neither_torch_nor_pydantic_is_loaded_and_no_rich_in_a_pipe(call, unwanted):
    code = (
        f"import sys; from altgrad.cli import formats; {call}; "
        f"loaded = [name for name in ['torch', 'numpy', 'rich', *{unwanted}] if name in sys.modules]; "
        "sys.exit(f'loaded {loaded}' if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_terminal_gets_colours():
    leader, follower = pty.openpty()
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm-256color"}
    code = "from altgrad.cli.formats import app; app(['show', 'e2m1'])"
    done = subprocess.run([sys.executable, "-c", code], stdout=follower, env=environment, timeout=60, check=False)
    os.close(follower)
    text = os.read(leader, 1 << 16).decode()
    os.close(leader)
    assert done.returncode == 0
    assert "\x1b[" in text
    assert "smallest normal" in text
