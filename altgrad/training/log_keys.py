"""What the training loop itself logs, beside its monitors: the keys, described like those of monitors."""

from altgrad.monitors import Metric
from altgrad.training.twin import TWIN_KEYS

LOG_KEYS: tuple[Metric, ...] = (
    Metric("train/loss", "nats", "loss of the step, mean over its micro-batches", "mean NLL", "higher"),
    Metric("train/lr", "lr", "peak learning rate times the schedule", "lr * factor(step)"),
    Metric("train/gradient_norm", "gradient's own", "Euclidean norm, before clipping", "|g|", "higher"),
    Metric("train/tokens", "count", "targets trained on so far", "sum of targets"),
    Metric("validation/loss", "nats", "of the weights that the forward uses", "sum NLL / targets", "higher"),
    Metric("validation/perplexity", "ratio", "of the same", "exp(loss)", "higher"),
    Metric("validation/bits_per_byte", "bits", "of the same, by byte of text", "NLL / (ln 2 * bytes)", "higher"),
    Metric("time/tokens_per_second", "1/s", "targets over time since the last logged step", "tokens / s", "lower"),
    Metric("time/median_tokens_per_second", "1/s", "over the run, its first tenth left out", "median", "lower"),
    Metric("time/wall_seconds", "s", "since the run began, all sittings", "t"),
    *TWIN_KEYS,
)
"""By whole key; a data set may add further validation numbers."""
