"""Every campaign of faults with few cases; `make faults` runs them whole and writes docs/RELIABILITY.md.

In a process of their own: campaigns fork, and a child of a process in which some other test had one backward pass run
within another cannot train.
"""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.faults.campaign import Campaign
from tests.faults.campaigns import CAMPAIGNS

DAILY = [
    pytest.param(each, id=each.name, marks=[pytest.mark.long] if each.long else []) for each in CAMPAIGNS if each.few
]


@pytest.fixture(scope="module")
def apart() -> Iterator[ProcessPoolExecutor]:
    """Runs one campaign after the other."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


def few(name: str, folder: Path) -> tuple[list[str], int] | str:
    """What failed, and how many cases there were; or what they lack here."""
    campaign = next(each for each in CAMPAIGNS if each.name == name)
    try:
        found = campaign.run(0, campaign.few, folder)
    except pytest.skip.Exception as lacking:
        return str(lacking)
    return [str(failure) for failure in found.failures], found.count


@pytest.mark.parametrize("campaign", DAILY)
def test_what_a_campaign_claims_holds_in_a_few_cases(
    campaign: Campaign, tmp_path: Path, apart: ProcessPoolExecutor
) -> None:
    if why := campaign.skip():
        pytest.skip(why)
    answer = apart.submit(few, campaign.name, tmp_path).result()
    if isinstance(answer, str):
        pytest.skip(answer)
    failures, count = answer
    assert failures == []
    assert count >= campaign.few
