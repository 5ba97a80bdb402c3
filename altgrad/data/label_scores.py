"""What a multi-label classifier is judged by, computed by torchmetrics.

    predicted = probability > threshold

Two conventions stand side by side. LexGLUE's (Chalkidis et al., arXiv 2110.00976): the threshold is 0.5, and a label
that is neither there nor predicted has an F1 of 0 and counts in the macro average. And one threshold for all labels,
tuned: the cut with the highest micro F1 on the validation split. It is exact (every cut between two scores is tried,
micro F1 being 2 tp / (predicted + positives)); on the validation split itself it flatters, so a test split is judged
with the threshold that validation chose. A threshold for every label was the road not taken: rare labels have a handful
of validation rows.

`none_label` is LexGLUE's rule for tasks where rows without any label are an answer (its ecthr_a): in F1, "none of
them" counts as one more label, of truth and of prediction.

ROC-AUC is defined where a label has rows with and without it, average precision (PR-AUC) where it has rows with it;
macro averages are over the labels for which they are defined, NaN if there are none. torchmetrics would count the
others as 0 and warn, scikit-learn raises or warns.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from altgrad.data.dataset import Batch, Evaluator

__all__ = ["LEXGLUE_THRESHOLD", "LabelEvaluator", "best_threshold", "decision_scores", "label_table", "ranking_scores"]

LEXGLUE_THRESHOLD = 0.5


def decision_scores(predicted: Tensor, truth: Tensor, *, none_label: bool = False) -> dict[str, float]:
    """F1, precision, recall (micro and macro), subset accuracy and Hamming loss.

    Both int `[rows, labels]` of 0 and 1. none_label: see the head of this file; it touches F1, precision and recall.
    """
    from torchmetrics.functional import classification as scores

    count = truth.shape[1]
    exact = scores.multilabel_exact_match(predicted, truth, count)
    wrong = scores.multilabel_hamming_distance(predicted, truth, count, average="micro")
    if none_label:
        predicted, truth = (torch.cat([x, 1 - x.amax(1, keepdim=True)], 1) for x in (predicted, truth))
        count += 1
    found: dict[str, float] = {}
    for average in ("micro", "macro"):
        pair = predicted, truth, count
        found[f"f1_{average}"] = float(scores.multilabel_f1_score(*pair, average=average))
        found[f"precision_{average}"] = float(scores.multilabel_precision(*pair, average=average))
        found[f"recall_{average}"] = float(scores.multilabel_recall(*pair, average=average))
    return found | {"subset_accuracy": float(exact), "hamming_loss": float(wrong)}


def ranking_scores(probabilities: Tensor, truth: Tensor) -> dict[str, float]:
    """ROC-AUC and PR-AUC (average precision), micro and macro; no threshold is in them.

    probabilities: float `[rows, labels]`; truth: int, the same shape.
    """
    from torchmetrics.functional import classification as scores

    positives = truth.sum(0)
    ranked, known = (positives > 0) & (positives < len(truth)), positives > 0
    found = dict.fromkeys(("roc_auc_micro", "roc_auc_macro", "pr_auc_micro", "pr_auc_macro"), torch.nan)
    if 0 < int(positives.sum()) < truth.numel():
        found["roc_auc_micro"] = float(scores.binary_auroc(probabilities.flatten(), truth.flatten()))
    if int(positives.sum()):
        found["pr_auc_micro"] = float(scores.binary_average_precision(probabilities.flatten(), truth.flatten()))
    if ranked.any():
        some = probabilities[:, ranked], truth[:, ranked], int(ranked.sum())
        each = [scores.binary_auroc(some[0][:, i], some[1][:, i]) for i in range(some[2])]
        found["roc_auc_macro"] = float(torch.stack(each).mean())
    if known.any():
        found["pr_auc_macro"] = float(_average_precision(probabilities[:, known], truth[:, known]).mean())
    return found


def best_threshold(probabilities: Tensor, truth: Tensor) -> float:
    """The threshold with the highest micro F1, midway between two scores; 0.5 where no row has any label.

    Where several cuts are equally good the one that predicts fewest is taken.
    """
    scores, order = probabilities.flatten().double().sort(descending=True, stable=True)
    hits = truth.flatten()[order].cumsum(0).double()
    positives = hits[-1]
    if positives == 0:
        return LEXGLUE_THRESHOLD
    predicted = torch.arange(1, len(scores) + 1, dtype=torch.float64)
    f1 = 2 * hits / (predicted + positives)
    # Equal scores fall on one side together: a cut is only possible behind the last of them.
    f1[:-1][scores[:-1] == scores[1:]] = -1.0
    best = int(f1.argmax())
    below = float(scores[best + 1]) if best + 1 < len(scores) else 0.0
    middle = (float(scores[best]) + below) / 2
    return middle if middle < float(scores[best]) else below


def label_table(
    probabilities: Tensor, truth: Tensor, threshold: float, classes: tuple[str, ...]
) -> list[dict[str, Any]]:
    """One row for each label: rows that have it, precision, recall, F1 at 0.5, F1 at `threshold`, average precision.

    Average precision is NaN for a label that no row has.
    """
    from torchmetrics.functional import classification as scores

    count = len(classes)
    fixed, tuned = ((probabilities > t).int() for t in (LEXGLUE_THRESHOLD, threshold))
    precision = scores.multilabel_precision(fixed, truth, count, average="none")
    recall = scores.multilabel_recall(fixed, truth, count, average="none")
    f1, f1_tuned = (scores.multilabel_f1_score(x, truth, count, average="none") for x in (fixed, tuned))
    positives = truth.sum(0)
    average = torch.full((count,), torch.nan, dtype=torch.float64)
    if (known := positives > 0).any():
        average[known] = _average_precision(probabilities[:, known], truth[:, known]).double()
    names = ("precision", "recall", "f1", "tuned_f1", "pr_auc")
    columns = [each.tolist() for each in (precision, recall, f1, f1_tuned, average)]
    return [
        {"label": label, "rows": rows, **dict(zip(names, values, strict=True))}
        for label, rows, *values in zip(classes, positives.tolist(), *columns, strict=True)
    ]


def _average_precision(probabilities: Tensor, truth: Tensor) -> Tensor:
    from torchmetrics.functional import classification as scores

    each = [scores.binary_average_precision(probabilities[:, i], truth[:, i]) for i in range(truth.shape[1])]
    return torch.stack(each)


class LabelEvaluator(Evaluator):
    """Keeps logits and targets of a split. weight: `[labels]` or None, as in the training loss."""

    def __init__(
        self,
        classes: tuple[str, ...],
        weight: Tensor | None = None,
        *,
        none_label: bool = False,
        tuned_on: "LabelEvaluator | None" = None,
    ) -> None:
        self.classes, self.weight, self.none_label, self.tuned_on = classes, weight, none_label, tuned_on
        self._gathered: list[tuple[Tensor, Tensor]] = []

    def add(self, output: Tensor, batch: Batch) -> None:
        """`output`: logits `[batch, labels]`."""
        self._gathered.append((output.detach().float(), batch.targets))

    def answers(self) -> tuple[Tensor, Tensor]:
        """Logits (float32) and truth (int), `[rows, labels]`, on the CPU, without rows that only filled a batch."""
        if not self._gathered:
            raise ValueError("no batch was evaluated; a split needs at least one.")
        logits, targets = (torch.cat(parts).cpu() for parts in zip(*self._gathered, strict=True))
        counted = targets[:, 0] >= 0
        return logits[counted], targets[counted].int()

    @property
    def threshold(self) -> float:
        """The tuned one: of the split it was tuned on if there is one, else of this split."""
        if self.tuned_on is not None:
            return self.tuned_on.threshold
        logits, truth = self.answers()
        return best_threshold(_probabilities(logits), truth)

    def result(self) -> dict[str, float]:
        """`loss`; F1, precision and recall, micro and macro, subset accuracy and Hamming loss at 0.5; ROC-AUC and
        PR-AUC; the tuned `threshold` and F1 with it. A model that has diverged gets NaN for each but the loss."""
        logits, truth = self.answers()
        weight = None if self.weight is None else self.weight.cpu()
        loss = functional.binary_cross_entropy_with_logits(logits, truth.float(), pos_weight=weight).item()
        if not logits.isfinite().all():
            return dict.fromkeys(SCORES, torch.nan) | {"loss": loss}
        probabilities, threshold = _probabilities(logits), self.threshold
        fixed = (probabilities > LEXGLUE_THRESHOLD).int()
        found = decision_scores(fixed, truth, none_label=self.none_label) | ranking_scores(probabilities, truth)
        tuned = decision_scores((probabilities > threshold).int(), truth, none_label=self.none_label)
        found |= {f"tuned_{name}": tuned[name] for name in ("f1_micro", "f1_macro")}
        return {"loss": loss, **found, "threshold": threshold}

    def table(self) -> list[dict[str, Any]]:
        """See `label_table`."""
        logits, truth = self.answers()
        return label_table(_probabilities(logits), truth, self.threshold, self.classes)


SCORES = (
    "loss", "f1_micro", "precision_micro", "recall_micro", "f1_macro", "precision_macro", "recall_macro",
    "subset_accuracy", "hamming_loss", "roc_auc_micro", "roc_auc_macro", "pr_auc_micro", "pr_auc_macro",
    "tuned_f1_micro", "tuned_f1_macro", "threshold",
)  # fmt: skip
"""The names of everything that `LabelEvaluator.result` gives."""


def _probabilities(logits: Tensor) -> Tensor:
    """In float64, where only logits beyond 36 come to the same probability."""
    return logits.double().sigmoid()
