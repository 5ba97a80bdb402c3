"""Every campaign there is, with what the issue asks of it and how little of it is enough for every day."""

from tests.faults import corruption, crash, disk, exports, inputs, long_run, numbers, peers, security
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
        "corrupt quantised files", "damage to what quantize-model wrote is noticed when it is read",
        600, 60, corruption.quantised_files,
    ),
    Campaign(
        "corrupt token caches", "damaged tokens are made again", 200, 25, corruption.token_caches,
    ),
    Campaign(
        "numbers in casts", "inf, NaN, sub-normal and huge elements pass every cast and harm no other element",
        2000, 150, numbers.casts,
    ),
    Campaign(
        "numbers in monitors", "whatever is in weights and gradients, monitors report what can be kept",
        300, 12, numbers.monitors,
    ),
    Campaign(
        "numbers in optimizers", "a bad gradient element leaves all other elements finite, in every storage",
        500, 50, numbers.optimizers,
    ),
    Campaign(
        "numbers in runs", "a senseless learning rate ends a run as completed or diverged, never as an error",
        100, 8, numbers.runs,
    ),
    Campaign(
        "numbers in reports", "a project of such numbers has a report, in JSON that any reader takes",
        20, 1, numbers.reports, long=True,
    ),
    Campaign("fuzzed specs", "a changed run spec is read, or reported in one line", 8000, 200, inputs.specs),
    Campaign("fuzzed matrices", "a changed matrix is read, or reported in one line", 2000, 100, inputs.matrices),
    Campaign(
        "fuzzed commands", "no command line ends in a traceback, hangs, or leaves files where it is refused",
        2000, 60, inputs.commands,
    ),
    Campaign(
        "fuzzed data files", "changed safetensors, parquet and jsonl files are read, or reported in one line",
        1000, 90, inputs.data_files,
    ),
    Campaign(
        "planted files", "pickles, code, bombs and names that lead elsewhere are refused by every command",
        security.PLANTED, 20, security.planted,
    ),
    Campaign(
        "pickles in the token cache", "no object is ever loaded from a cache", 5, 1, security.token_cache_pickles,
    ),
    Campaign(
        "secrets", "no secret of the environment is in any file that a command writes",
        len(security.TOUCHING), 4, security.secrets,
    ),
    Campaign(
        "a full disk", "on a tmpfs of 2 MB that runs full a run says so, and continues once there is room",
        20, 1, disk.full, long=True, skip=disk.no_mount,
    ),
    Campaign("a read-only disk", "what only reads works, what writes says so", 7, 0, disk.closed, skip=disk.no_mount),
    Campaign(
        "permission bits", "what may not be read or written is named in one line, and nothing changes",
        disk.FORBIDDEN, disk.FORBIDDEN // 2, disk.forbidden, skip=disk.no_permissions,
    ),
    Campaign("a run that vanishes", "a run whose folder is moved away says so, and continues when it is back", 5, 0,
             disk.vanished),
    Campaign(
        "SIGKILL at random moments", "no run is lost, and each comes to the curve of one that was never killed",
        100, 4, crash.kills, long=True,
    ),
    Campaign(
        "SIGTERM in every loop", "every command is out with 75 and leaves nothing half done",
        70, 7, crash.stops, long=True,
    ),
    Campaign(
        "exports interrupted", "whatever stops an export, and whenever, its folder is whole or absent",
        18, 9, exports.interrupted, long=True,
    ),
    Campaign(
        "exports refused", "a folder in use or unwritable gives one line, and nothing changes",
        exports.REFUSALS, exports.REFUSALS // 3, exports.refused, skip=disk.no_permissions,
    ),
    Campaign(
        "exports to a full disk", "an export to a disk that runs full says so and leaves nothing",
        6, 3, exports.full, long=True, skip=disk.no_mount,
    ),
    Campaign("a clock that jumps", "wall-clock jumps of seconds to decades change nothing", 5, 0, disk.clock),
    Campaign(
        "a long run", "with everything on, memory, step time and disk stay where they are",
        20_000, 0, long_run.long_run,
    ),
    Campaign(
        "PyTorch DCP, for comparison", "the damage of the first row, done to a distributed checkpoint",
        1200, 0, peers.distributed_checkpoint,
    ),
    Campaign(
        "Lightning, for comparison", "the same damage, done to a checkpoint of Lightning's Trainer",
        1200, 0, peers.lightning_checkpoint, skip=peers.no_lightning,
    ),
)  # fmt: skip
