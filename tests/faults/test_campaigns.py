"""Every campaign of faults with few cases; `make faults` runs them whole and writes docs/RELIABILITY.md."""

from pathlib import Path

import pytest

from tests.faults.campaign import Campaign
from tests.faults.campaigns import CAMPAIGNS

DAILY = [
    pytest.param(each, id=each.name, marks=[pytest.mark.long] if each.long else []) for each in CAMPAIGNS if each.few
]


@pytest.mark.parametrize("campaign", DAILY)
def test_what_a_campaign_claims_holds_in_a_few_cases(campaign: Campaign, tmp_path: Path) -> None:
    if why := campaign.skip():
        pytest.skip(why)
    found = campaign.run(0, campaign.few, tmp_path)
    assert found.failures == []
    assert found.count >= campaign.few
