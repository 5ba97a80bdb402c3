"""What the training loop itself logs, beside its monitors: the keys, described like those of monitors."""

from altgrad.monitors import Metric
from altgrad.training.twin import TWIN_KEYS

LOG_KEYS: tuple[Metric, ...] = (
    Metric("train/loss", "nats", "loss of the step, mean over its micro-batches", "mean NLL", "higher"),
    Metric("train/lr", "lr", "peak learning rate times the schedule", "lr * factor(step)"),
    Metric("train/gradient_norm", "gradient's own", "Euclidean norm, before clipping", "|g|", "higher"),
    Metric("train/tokens", "count", "tokens trained on so far, padding aside", "sum of tokens"),
    Metric("validation/loss", "nats", "of the weights that the forward uses", "sum NLL / targets, mean BCE", "higher"),
    Metric("validation/perplexity", "ratio", "of the same", "exp(loss)", "higher"),
    Metric("validation/bits_per_byte", "bits", "of the same, by byte of text", "NLL / (ln 2 * bytes)", "higher"),
    Metric("validation/f1_*", "ratio", "micro, macro; likewise precision, recall", "p > 0.5, 0/0 = 0", "lower"),
    Metric("validation/tuned_f1_*", "ratio", "micro, macro, at the best single threshold", "p > threshold", "lower"),
    Metric("validation/threshold", "ratio", "the one with the highest micro F1", "argmax F1"),
    Metric("validation/subset_accuracy", "ratio", "rows with exactly the right labels", "#(all equal) / rows", "lower"),
    Metric("validation/hamming_loss", "ratio", "wrong decisions", "#wrong / (rows * labels)", "higher"),
    Metric("validation/roc_auc_*", "ratio", "micro, macro over labels both there and not", "area", "lower"),
    Metric("validation/pr_auc_*", "ratio", "micro, macro over labels that are there", "average precision", "lower"),
    Metric("time/tokens_per_second", "1/s", "tokens over time since the last logged step", "tokens / s", "lower"),
    Metric("time/median_tokens_per_second", "1/s", "over the run, its first tenth left out", "median", "lower"),
    Metric("time/wall_seconds", "s", "since the run began, all sittings", "t"),
    *TWIN_KEYS,
)
"""By whole key; a data set may add further validation numbers."""
