"""FIRST.md says what the results say, and nothing that they do not."""

import re
from functools import cache

import jinja2
import pytest

from altgrad.formats import FloatFormat
from altgrad.statistics import distributions
from study.first import PAGE, TEMPLATE, render
from study.gpu import Gpu
from study.grid import Grid
from study.rates import ROOT, TUNING
from study.results import Results


@pytest.fixture(scope="module")
def primary() -> Results:
    return Results("study-primary")


@pytest.mark.long
def test_the_page_is_what_the_results_give() -> None:
    assert render() == PAGE.read_text(encoding="utf-8"), "run python -m study.first"


def test_the_page_is_nearly_what_the_results_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tenth of the draws behind the critical values: the same words, and numbers that differ by their noise."""
    monkeypatch.setattr(distributions, "DRAWS", distributions.DRAWS // 10)
    monkeypatch.setattr(distributions, "_simulated", cache(distributions._simulated.__wrapped__))
    number = re.compile(r"[-−+]?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
    found, page = render(), PAGE.read_text(encoding="utf-8")
    assert number.sub("#", found) == number.sub("#", page), "run python -m study.first"
    values = [[float(n.replace(",", "").replace("−", "-")) for n in number.findall(text)] for text in (found, page)]
    assert values[0] == pytest.approx(values[1], rel=0.06, abs=0.002), "run python -m study.first"


def test_a_number_that_the_results_do_not_have_is_an_error() -> None:
    with pytest.raises(KeyError, match="no study-nothing"):
        Results("study-nothing")
    with pytest.raises(jinja2.UndefinedError):
        jinja2.Environment(undefined=jinja2.StrictUndefined).from_string("{{ of.nothing.more }}").render(of={})


def test_no_number_of_the_results_section_is_typed_into_the_template() -> None:
    """From the answer to what failed, digits stand in expressions, in names of formats and where the plan has them."""
    text = TEMPLATE.read_text(encoding="utf-8")
    told = text[text.index("## The answer") : text.index("## What failed")]
    told = re.sub(r"{{.*?}}|{%.*?%}", "", told, flags=re.S)
    told = re.sub(r"`[0-9a-f]{7}`|\be\dm\d\w*|E \+ M = 7|E = 1|FP32|\bB\b|95 %|8-bit|p = 1|kappa = 2\^-6", "", told)
    found = re.findall(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?", told)
    left = {number.rstrip(",") for number in found}
    expected = {"0.01", "0.02", "-0.05", "-0.01", "0.9", "1.10"}
    sizes = {"4.75e-3", "6", "384", "256", "12", "6e-4", "0", "500", "1,000", "1,500", "2,000"}
    clipping = {"16", "92.4"}  # of the first section, which is no result of these runs
    assert left <= expected | sizes | clipping, "margin, limits, expectations and sizes, which the plan has"


def test_the_page_says_first_that_the_storage_clipped_and_so_does_every_caption() -> None:
    """A table that an arm with stored weights is in has its caveat within five lines; study/README.md says it, too."""
    page = PAGE.read_text(encoding="utf-8")
    (what_was_wrong,) = re.findall(r"## What was wrong: the storage clipped\n(.*?)\n## The answer", page, re.S)
    claim = "with p = 1, kappa = 2^-6 and clipped storage"
    assert page.index("## What was wrong") == page.index("\n## ") + 1
    assert claim in what_was_wrong and "1.7 to 8.1 %" in what_was_wrong
    for name in ("study/README.md", "study/FIRST_PLAN.md"):
        text = " ".join((ROOT / name).read_text(encoding="utf-8").split())
        assert claim in text and "1.7 to 8.1 %" in text and "one binade of headroom" in text, name
    captions = re.findall(r"(?:^\|.*\n)+((?:(?!\|).*\n){1,5})", page, re.M)
    caveat = re.compile(r"\*(storage clipped|the same storage|nothing is stored|storage at a fixed scale)", re.I)
    assert len(captions) >= 14 and [each for each in captions if not caveat.search(each)] == []


def test_pairs_share_seed_and_data_and_confirm_on_seeds_that_chose_nothing(primary: Results) -> None:
    assert not primary.family.reused and primary.family.tuning == set(TUNING)
    for effect in primary.family.effects:
        assert len(effect.pairs) >= 8 and not set(effect.pairs) & set(TUNING)
        assert effect.first.choice.edge == effect.second.choice.edge == ""
    versions = {(r.meta["altgrad"], r.meta["torch"], r.meta["device"]) for r in primary.project.records}
    assert len(versions) == 1, "one version made every run of the table"
    assert all(r.ended and not r.problems for r in primary.project.records)


def test_controls_agree_to_the_last_bit() -> None:
    control = Results("study-control")
    assert control.identical("e0m7", "e1m6") == 12
    assert control.pairs_alike("adamw", "manifold_adamw") == 12


def test_what_is_said_of_the_gpu_is_what_its_runs_came_to() -> None:
    gpu = Gpu()
    assert gpu.ratio < 1.10 and gpu.cosines["least"] > 0.9
    for record in gpu.runs("bf16", 2000).values():
        losses = record.series["validation/loss"][1].tolist()
        assert losses == sorted(losses, reverse=True) and len(losses) == 5
    assert all(r.status == "completed" and not r.problems and r.meta["device"] == "cuda" for r in gpu.records)
    assert gpu.identical("e0m7", "e1m6") == 3
    means = {name: sum(loss.values()) / len(loss) for name, loss in gpu.formats.items()}
    family = list(means)[1:9]
    assert min(family, key=means.__getitem__) == "e3m4f"
    middle = family.index("e3m4f")
    assert [means[f] for f in family[:middle]] == sorted((means[f] for f in family[:middle]), reverse=True)
    assert [means[f] for f in family[middle:]] == sorted(means[f] for f in family[middle:])
    assert {name for name, found in gpu.behind.items() if found.low > 0} == {"e6m1", "e7m0"}


def test_what_is_said_of_fields_is_what_their_intervals_say() -> None:
    stiffness = Results("study-stiffness")
    leads = stiffness.leads
    assert {key for key, found in leads.items() if found.low > 0} == {("e4m3f", "smooth")}
    assert {format_ for (format_, field), found in leads.items() if field == "shuffled" and found.high < 0} == {
        "e4m3f", "e7m0",
    }  # fmt: skip
    assert all(leads[format_, "shuffled"].mean < 0 for format_ in ("e2m5", "e4m3f", "e7m0"))
    same = {key for key, found in leads.items() if found.mean == found.sd == 0}
    assert same == {("e2m5", "e2m5"), ("e4m3f", "e4m3f"), ("e7m0", "e4m3f")}
    assert stiffness.again(Results("study-primary")) >= 90


def test_the_casts_of_secondary_change_no_benefit_that_can_be_told(primary: Results) -> None:
    changes = Results("study-secondary").changes(primary)
    assert len(changes) == 6 and all(found.n == 8 and found.low < 0 < found.high for found in changes.values())


def test_what_is_said_of_the_encoder_is_what_its_runs_came_to() -> None:
    found = Results("study-finetune")
    assert all(each.low < 0 < each.high and each.n == 3 for each in found.family.intervals.values())
    fp32 = found.confirmed("FP32")
    arms = found.project.arms(found.family.condition)
    alone = next(losses for arm, losses in arms.items() if arm.format == "FP32")[1e-4]
    spread = max(abs(alone[seed] - fp32) for seed in (10, 11, 12))
    for effect in found.family.effects:
        assert all(abs(found.mean(effect.format, side) - fp32) < spread for side in ("first", "second"))
        ours, theirs = (
            next(losses for arm, losses in arms.items() if (arm.format, arm.optimizer) == (effect.format, optimizer))
            for optimizer in ("adamw", "manifold_adamw")
        )
        assert ours[3e-5][0] < theirs[3e-5][0] and all(ours[rate][0] > theirs[rate][0] for rate in (3e-4, 1e-3))


def test_what_is_said_of_the_grid_is_what_its_runs_came_to() -> None:
    grid = Grid("geometry-grid")
    harm = {(e, m): -grid.benefit_at(4.75e-3)[name_of(e, m)] for e in range(2, 6) for m in range(1, 5)}
    assert all(loss > 0 for loss in harm.values())
    for e in (3, 4, 5):
        assert [harm[e, m] for m in range(1, 5)] == sorted((harm[e, m] for m in range(1, 5)), reverse=True)
        assert 0.25 < harm[e, 4] / harm[e, 1] < 0.4
    for m in range(1, 5):
        assert harm[2, m] < harm[3, m] < harm[4, m] and abs(harm[5, m] - harm[4, m]) < 0.01
    own = {name: -found.mean for name, found in grid.family.intervals.items()}
    for e in (3, 4, 5):
        at_own = [own[name_of(e, m)] for m in range(1, 5)]
        assert at_own == sorted(at_own, reverse=True)
    losses = grid.at_rate("adamw", 4.75e-3)
    assert all(abs(losses[name_of(e, 1)] - losses[name_of(e, 4)]) < 0.03 for e in range(2, 6))


def name_of(exponent: int, mantissa: int) -> str:
    return FloatFormat.parse(f"e{exponent}m{mantissa}f").name
