"""Every number of a classifier is scikit-learn's, with labels nobody has and labels nobody predicts among them."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from altgrad.data.dataset import IGNORED, Batch
from altgrad.data.label_scores import (
    SCORES,
    LabelEvaluator,
    best_threshold,
    decision_scores,
    label_table,
    ranking_scores,
)

sklearn = pytest.importorskip("sklearn.metrics")
CASES = range(21)


def case(seed: int) -> tuple[Tensor, Tensor]:
    """Probabilities and truth; some labels are empty, never predicted, everywhere, or tied; some rows have none."""
    rng = np.random.default_rng(seed)
    rows, labels = int(rng.integers(2, 40)), int(rng.integers(2, 9))
    truth = (rng.random((rows, labels)) < rng.random(labels) * 0.7).astype(np.int64)
    probabilities = np.clip(0.35 * truth + rng.random((rows, labels)) * rng.random(labels), 0, 1)
    if seed % 2:
        truth[:, 0] = 0
    if seed % 3 == 0:
        probabilities[:, 1] = rng.random(rows) * 0.5
    if seed % 5 == 0:
        truth[:, -1] = 1
    if seed % 4 == 0:
        probabilities = np.round(probabilities, 1)
    if seed % 7 == 0:
        truth[: rows // 2] = 0
    return torch.from_numpy(probabilities), torch.from_numpy(truth).int()


def close(found: float, expected: float) -> bool:
    return math.isclose(found, expected, rel_tol=1e-5, abs_tol=1e-6) or (math.isnan(found) and math.isnan(expected))


@pytest.mark.parametrize("seed", CASES)
def test_decisions_are_judged_as_scikit_learn_judges_them(seed: int) -> None:
    probabilities, truth = case(seed)
    predicted = (probabilities > 0.5).int()
    found, y, p = decision_scores(predicted, truth), truth.numpy(), predicted.numpy()
    for average in ("micro", "macro"):
        options: dict[str, Any] = {"average": average, "zero_division": 0}
        assert close(found[f"f1_{average}"], sklearn.f1_score(y, p, **options))
        assert close(found[f"precision_{average}"], sklearn.precision_score(y, p, **options))
        assert close(found[f"recall_{average}"], sklearn.recall_score(y, p, **options))
    assert close(found["subset_accuracy"], sklearn.accuracy_score(y, p))
    assert close(found["hamming_loss"], sklearn.hamming_loss(y, p))


@pytest.mark.parametrize("seed", CASES)
def test_no_label_at_all_counts_as_one_more_label_where_lexglue_says_so(seed: int) -> None:
    probabilities, truth = case(seed)
    predicted = (probabilities > 0.5).int()
    found = decision_scores(predicted, truth, none_label=True)
    y, p = (np.column_stack([x.numpy(), x.numpy().sum(1) == 0]) for x in (truth, predicted))
    for average in ("micro", "macro"):
        assert close(found[f"f1_{average}"], sklearn.f1_score(y, p, average=average, zero_division=0))
    assert close(found["subset_accuracy"], sklearn.accuracy_score(truth.numpy(), predicted.numpy()))


@pytest.mark.parametrize("seed", CASES)
def test_rankings_are_judged_as_scikit_learn_judges_the_labels_that_can_be(seed: int) -> None:
    probabilities, truth = case(seed)
    found, y, p = ranking_scores(probabilities, truth), truth.numpy(), probabilities.numpy()
    positives = y.sum(0)
    ranked, known = (positives > 0) & (positives < len(y)), positives > 0
    roc = [sklearn.roc_auc_score(y[:, i], p[:, i]) for i in np.flatnonzero(ranked)]
    pr = [sklearn.average_precision_score(y[:, i], p[:, i]) for i in np.flatnonzero(known)]
    assert close(found["roc_auc_macro"], float(np.mean(roc)) if roc else math.nan)
    assert close(found["pr_auc_macro"], float(np.mean(pr)) if pr else math.nan)
    assert close(found["roc_auc_micro"], sklearn.roc_auc_score(y.ravel(), p.ravel()))
    assert close(found["pr_auc_micro"], sklearn.average_precision_score(y.ravel(), p.ravel()))


@pytest.mark.parametrize("seed", CASES)
def test_the_tuned_threshold_is_the_best_of_all_there_are(seed: int) -> None:
    probabilities, truth = case(seed)

    def f1(threshold: float) -> float:
        predicted = probabilities.numpy() > threshold
        total = predicted.sum() + truth.numpy().sum()
        return float(2 * (predicted & (truth.numpy() > 0)).sum() / total) if total else 0.0

    values = np.unique(probabilities.numpy())
    cuts = [-1.0, *values, *((values[1:] + values[:-1]) / 2)]
    assert math.isclose(f1(best_threshold(probabilities, truth)), max(map(f1, cuts)), abs_tol=1e-12)


@pytest.mark.parametrize("seed", CASES)
def test_the_table_of_labels_is_scikit_learns(seed: int) -> None:
    probabilities, truth = case(seed)
    classes = tuple(f"label {i}" for i in range(truth.shape[1]))
    rows, y, p = label_table(probabilities, truth, 0.3, classes), truth.numpy(), probabilities.numpy()
    assert [row["label"] for row in rows] == list(classes) and [row["rows"] for row in rows] == y.sum(0).tolist()
    options: dict[str, Any] = {"average": None, "zero_division": 0}
    for name, expected in {
        "f1": sklearn.f1_score(y, p > 0.5, **options), "tuned_f1": sklearn.f1_score(y, p > 0.3, **options),
        "precision": sklearn.precision_score(y, p > 0.5, **options),
        "recall": sklearn.recall_score(y, p > 0.5, **options),
    }.items():  # fmt: skip
        assert all(close(row[name], value) for row, value in zip(rows, expected, strict=True))
    for i, row in enumerate(rows):
        expected = sklearn.average_precision_score(y[:, i], p[:, i]) if y[:, i].any() else math.nan
        assert close(row["pr_auc"], expected)


def evaluator(**options: Any) -> LabelEvaluator:
    return LabelEvaluator(("a", "b", "c"), **options)


def test_a_split_without_any_label_has_no_ranking_and_keeps_the_threshold_at_a_half() -> None:
    found = evaluator()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found.add(torch.tensor([[0.3, -0.2, 1.0]]), Batch(torch.zeros(1, 1), torch.zeros(1, 3)))
        result = found.result()
    assert result["threshold"] == 0.5 and result["f1_micro"] == 0
    assert all(math.isnan(result[name]) for name in result if "auc" in name)
    assert set(result) == set(SCORES)


def test_rows_that_fill_a_batch_count_for_nothing_and_the_loss_is_the_mean_over_the_rest() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.1, -1.0], [9.0, 9.0, 9.0]])
    targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [IGNORED] * 3])
    weight = torch.tensor([2.0, 1.0, 0.5])
    found = evaluator(weight=weight)
    found.add(logits[:1], Batch(torch.zeros(1, 1), targets[:1]))
    found.add(logits[1:], Batch(torch.zeros(2, 1), targets[1:]))
    x, y = logits[:2].double(), targets[:2].double()
    p = torch.sigmoid(x)
    expected = -(weight * y * p.log() + (1 - y) * (1 - p).log()).mean()
    assert math.isclose(found.result()["loss"], float(expected), rel_tol=1e-6)
    assert found.answers()[0].shape == (2, 3)


def test_a_test_split_is_judged_with_the_threshold_that_validation_chose() -> None:
    validation = evaluator()
    validation.add(torch.tensor([[-1.0, -3.0, -3.0]]), Batch(torch.zeros(1, 1), torch.tensor([[1.0, 0.0, 0.0]])))
    test = evaluator(tuned_on=validation)
    test.add(torch.tensor([[-1.0, -1.0, 2.0]]), Batch(torch.zeros(1, 1), torch.tensor([[0.0, 0.0, 1.0]])))
    assert test.threshold == validation.threshold < 0.3
    assert test.result()["tuned_f1_micro"] == pytest.approx(0.5) and test.result()["f1_micro"] == 1


def test_a_diverged_model_gets_nan_and_no_error() -> None:
    found = evaluator()
    found.add(torch.tensor([[math.nan, 1.0, 2.0]]), Batch(torch.zeros(1, 1), torch.tensor([[1.0, 0.0, 0.0]])))
    result = found.result()
    assert set(result) == set(SCORES) and all(math.isnan(value) for value in result.values())
    with pytest.raises(ValueError, match="no batch was evaluated"):
        evaluator().result()
