"""The screens of the command line as pictures in docs/screens, drawn from made data: `python -m bench.screens`.

Panels are pure functions of what is known and a size, so these are what a terminal shows, to the character. A test
draws them again and compares.
"""

import io
import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME

from altgrad.cli.console import styled
from altgrad.cli.dry_run import OPERANDS, cast_lines
from altgrad.cli.panel import KEYS
from altgrad.cli.picture import run_picture
from altgrad.cli.run_view import Watched
from altgrad.cli.sweep_panel import HINTS, frame
from altgrad.display import Line
from altgrad.sweeps.progress import RunProgress, SweepProgress

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "screens"
SIZES = ((60, 16), (80, 24), (120, 40), (200, 50))
SVG = re.sub(r"\s*@font-face \{\{.*?\n    \}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
SVG = SVG.replace("Fira Code, monospace", "'DejaVu Sans Mono', Menlo, Consolas, monospace")
SVG = SVG.replace("        font-variant-east-asian: full-width;\n", "")
"""rich's page with fonts that are there, and none from the network."""


def a_run() -> Watched:
    """A run of 500 steps at step 380, with a twin, three monitors, an alarm, an intervention and symptoms."""
    worse = {"stall/stall_ratio": "higher", "shadow/cosine": "lower"}
    watched = Watched("gpt-e4m3fn-3880c46b-s0", 500, {"unigram": 4.47, "order-6 n-gram": 1.17}, worse, lambda: 0.0)
    noise = random.Random(0)
    watched.event(0, "started", "started at step 0 of 500 on cpu")
    for step in range(381):
        loss = 1.86 + 3.7 * math.exp(-step / 60) + noise.gauss(0, 0.03)
        above = 0.16 * (1 - math.exp(-step / 150)) + noise.gauss(0, 0.005)
        if step % 100 == 0:
            late = {"validation/loss": loss + 0.03, "validation/bits_per_byte": (loss + 0.03) / math.log(2)}
            late["validation/perplexity"] = math.exp(loss + 0.03)
            watched.metrics(step, {**late, "twin/validation_loss_difference": above})
        if step == 0:
            continue
        values = {
            "train/loss": loss + 0.9 * (step == 260), "train/lr": 2e-3 * math.cos(step / 400),
            "train/tokens": step * 2048, "train/gradient_norm": 0.9 + noise.gauss(0, 0.05),
            "twin/train_loss_difference": above,
            "time/tokens_per_second": 6200 + noise.gauss(0, 90), "time/wall_seconds": step * 0.33,
        }  # fmt: skip
        watched.metrics(step, values | (_watched(step, noise) if step % 10 == 0 else {}))
        if step == 250:
            watched.event(step, "checkpoint", "checkpoint saved (step 250)")
    for step in (270, 280, 300):
        message = "blocks.3.mlp.down/grad_output: saturation_rate is 0.012, above 0.01"
        watched.event(step, "alarm", message, monitor="range", site="blocks.3.mlp.down/grad_output", quantity="s")
    clipped = "blocks.3.mlp.down/grad_weight: clipped at 0.02, where e5m2 ends"
    watched.event(300, "intervention", clipped, intervention="partition_clip", site="blocks.3.mlp.down")
    watched.progress("validating", 12, 40)
    return watched


def _watched(step: int, noise: random.Random) -> dict[str, float]:
    found: dict[str, float] = {}
    for block in range(4):
        for site, scale in (("attention.qkv", 1.0), ("mlp.up", 1.6), ("mlp.down", 2.2)):
            for slot, rate in (("input", 0.004), ("weight", 0.0006), ("grad_output", 0.03 + step / 4000)):
                key = f"range/blocks.{block}.{site}/{slot}"
                found[f"{key}/underflow_rate"] = rate * scale * (1 + block / 4) * (1 + 0.1 * noise.random())
                found[f"{key}/saturation_rate"] = 0.012 * scale / 2.2 if slot == "grad_output" and block == 3 else 0.0
            found[f"stall/blocks.{block}.{site}.weight/stall_ratio"] = min(0.97, 0.4 * scale + block / 50)
            found[f"shadow/blocks.{block}.{site}.weight/cosine"] = 0.99 - 0.05 * scale - block / 100
    return found


def a_sweep() -> SweepProgress:
    """Six arms at two learning rates by five seeds, half of them done."""
    noise, found, number = random.Random(1), SweepProgress("format_ablation"), 0
    for arm in ("bf16", "e4m3fn", "e3m4", "e5m2", "e7m0f", "mxfp4-stochastic-hadamard"):
        for lr in ("1e-3", "2e-3"):
            for seed in (0, 1, 2, 10, 11):
                state = "completed" if number < 32 else "running" if number < 34 else "waiting"
                state = {12: "diverged", 23: "failed"}.get(number, state)
                row = RunProgress(
                    f"{arm}-0a1b2c3d-s{seed}", state, arm, {"lr": lr}, seed, step=_done(state, number), steps=500,
                    loss=1.9 + noise.gauss(0, 0.01), validation=1.85 + noise.gauss(0, 0.01), alarms=number % 2,
                    remaining=90.0 + number, reason="out of memory" if state == "failed" else "", changed=float(number),
                )  # fmt: skip
                found.rows[f"{arm} {lr} {seed}"] = row
                number += 1
    found.remaining = lambda: 2730.0
    return found


def _done(state: str, number: int) -> int:
    return {"completed": 500, "waiting": 0}.get(state, 40 * number % 500)


def casts() -> list[dict[str, object]]:
    """What `--dry-run --json` has of a model of 24 blocks under three rules."""
    slots = {f"{product}.{operand}": "e4m3fn delayed" for operand, products in OPERANDS.items() for product in products}
    backward = {name: "e5m2 stochastic delayed" for name in slots if name.endswith("grad_output")}
    found: list[dict[str, object]] = []
    for block in range(24):
        for layer in ("attention.qkv", "attention.proj", "mlp.up", "mlp.down"):
            kept = block in (0, 23)
            rule = "rule 0 at recipe.yaml:9:5" if kept else "rule 1 at recipe.yaml:11:5"
            cast = dict.fromkeys(slots, "-") if kept else slots | backward
            if layer == "mlp.down" and not kept:
                cast = cast | {"grad_weight.grad_output": "-"}
                rule = "rule 2 at recipe.yaml:15:5"
            found.append({"layer": f"blocks.{block}.{layer}", "slots": cast, "storage": "master", "rule": rule})
    head = dict.fromkeys(slots, "-")
    return [*found, {"layer": "head", "slots": head, "storage": "master", "rule": "no rule matches"}]


def screens() -> Iterator[tuple[str, str]]:
    """Every picture: its name, and the SVG."""
    watched, sweep = a_run(), a_sweep()
    news = ["e3m4-0a1b2c3d-s10 failed: out of memory", "e5m2-0a1b2c3d-s0 completed, validation 1.8612"]
    drawn: dict[str, Callable[[int, int], Sequence[Line]]] = {
        "train": lambda width, height: run_picture(watched, width, height, KEYS),
        "sweep": lambda width, height: frame(sweep, news, width, height, HINTS),
    }
    for name, draw in drawn.items():
        for width, height in SIZES:
            yield f"{name}-{width}x{height}", picture(draw(width, height - 1), width, f"{name}-{width}x{height}")
    yield "help-80x24", picture(run_picture(watched, 80, 23, KEYS, helping=True), 80, "help-80x24")
    yield "dry-run-80", picture(cast_lines(casts(), 80), 80, "dry-run-80")


def picture(lines: Sequence[Line], width: int, name: str) -> str:
    """The lines as a terminal's picture."""
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(styled(lines))
    return console.export_svg(title="", theme=SVG_EXPORT_THEME, code_format=SVG, unique_id=name)


def main() -> None:
    """Write them."""
    FOLDER.mkdir(exist_ok=True)
    for name, svg in screens():
        (FOLDER / f"{name}.svg").write_text(svg)


if __name__ == "__main__":
    main()
