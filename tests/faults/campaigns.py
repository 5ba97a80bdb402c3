"""Every campaign there is, with what the issue asks of it and how little of it is enough for every day."""

from tests.faults import corruption
from tests.faults.campaign import Campaign

CAMPAIGNS = (
    Campaign(
        "corrupt checkpoints", "a flipped bit or a lost end in a checkpoint is noticed, and the one before is used",
        1200, 60, corruption.checkpoints,
    ),
    Campaign(
        "corrupt both checkpoints", "with no checkpoint left that verifies, a run is not continued",
        20, 2, corruption.both_checkpoints,
    ),
    Campaign(
        "corrupt records", "damaged metrics, events, meta, spec or index are never read as other numbers",
        500, 100, corruption.records,
    ),
    Campaign(
        "corrupt records, resumed", "a stopped run with such damage continues to the same curve or is refused",
        200, 16, corruption.resumed_records,
    ),
    Campaign(
        "corrupt token caches", "damaged tokens are made again", 200, 25, corruption.token_caches,
    ),
)  # fmt: skip
