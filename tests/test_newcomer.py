"""A newcomer's hour, from the pages alone: a clean clone, an empty home, and every command copied from README or docs/.

What is not a newcomer's: packages that are there already are not fetched again (the clone is installed without its
dependencies), and training is cut to a few steps by `--set`, so that the whole takes minutes.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers

ROOT = Path(__file__).resolve().parents[1]
SHORT = "--set steps=20 --set evaluate_limit=2"
TEXT = "the member state shall notify the commission of its measures and of the reasons for them\n" * 400


def said(page: str, beginning: str) -> str:
    """The command of a page that begins so, without its comment; a page that no longer says it fails the test."""
    text = (ROOT / page).read_text(encoding="utf-8")
    (found,) = {each.partition("  #")[0].strip() for each in re.findall(rf"^ +(?:\$ )?({beginning}.*)$", text, re.M)}
    return found


class Newcomer:
    """One folder with a clone, a home with nothing in it, and an environment with the clone installed."""

    def __init__(self, folder: Path) -> None:
        self.clone, self.home, self.bin = folder / "altgrad", folder / "home", folder / "venv" / "bin"
        self.home.mkdir()
        subprocess.run(["git", "clone", "-q", str(ROOT), str(self.clone)], check=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
        (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
        (site / "dependencies.pth").write_text("\n".join(each for each in sys.path if each.endswith("site-packages")))

    def do(self, command: str, **names: object) -> str:
        """What a command prints; `names` are what a page's capitals stand for."""
        for name, value in names.items():
            command = re.sub(rf"\b{name}\b", str(value), command)
        kept = {key: os.environ[key] for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE")}
        environment = {**kept, "HOME": str(self.home), "PATH": f"{self.bin}:/usr/bin:/bin", "NO_COLOR": "1"}
        done = subprocess.run(
            shlex.split(command), cwd=self.clone, env=environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    def install(self) -> None:
        pip = (
            f"{sys.executable} -m pip --python {self.bin}/python install -qq --no-deps --no-index --no-build-isolation"
        )
        self.do(said("README.md", "pip install").replace("pip install", f"{pip} --ignore-installed"))

    def newest_run(self, project: str) -> str:
        (run,) = (self.clone / "runs" / project).iterdir()
        return run.name


def save_model(folder: Path) -> None:
    """What a newcomer has: a small causal model of transformers with its tokenizer."""
    transformers = pytest.importorskip("transformers", reason="pip install 'altgrad[hf]'")
    words = tokenizers.Tokenizer(tokenizers.models.BPE())
    words.decoder = tokenizers.decoders.ByteLevel()
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator(
        [TEXT], tokenizers.trainers.BpeTrainer(special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    )
    shape = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.LlamaConfig(
        **shape, vocab_size=512, max_position_embeddings=256, bos_token_id=0, eos_token_id=0
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    words.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Newcomer:
    found = Newcomer(tmp_path_factory.mktemp("newcomer"))
    found.install()
    return found


@pytest.mark.long
@pytest.mark.needs("git")
def test_the_quickstart_ends_in_the_comparison_that_readme_shows(newcomer: Newcomer) -> None:
    assert "torch" in newcomer.do(said("README.md", "altgrad doctor"))
    newcomer.do(said("README.md", "altgrad sweep matrices/demo.yaml --set"))
    first = newcomer.do(said("README.md", "altgrad compare minute")).splitlines()[0]
    numbers = r"[−+][\d.]+"
    shown = next(line.strip() for line in (ROOT / "README.md").read_text().splitlines() if "Compared with fp32" in line)
    words = [re.sub(numbers, "x", re.sub(r"about \d+ more seeds?", "seeds", line)) for line in (first, shown)]
    assert words[0] == words[1], "the same sentence; other processors have other last digits"


@pytest.mark.long
@pytest.mark.needs("git")
def test_a_text_of_ones_own(newcomer: Newcomer) -> None:
    page = "docs/start/own-text.md"
    (newcomer.clone / "my.txt").write_text(TEXT)
    newcomer.do(said(page, "altgrad init"))
    assert "parameters" in newcomer.do(said(page, "altgrad train text.yaml --dry-run"))
    newcomer.do(f"{said(page, 'altgrad train text.yaml$')} {SHORT}")
    run = newcomer.do("altgrad runs list --json")
    assert "completed" in run


@pytest.mark.long
@pytest.mark.needs("git")
def test_a_model_of_ones_own_is_trained_compared_diagnosed_quantised_and_exported(newcomer: Newcomer) -> None:
    folder = newcomer.home / "model"
    save_model(folder)
    (newcomer.clone / "my.txt").write_text(TEXT)
    page = "docs/start/own-model.md"
    newcomer.do(said(page, "altgrad init"), FOLDER=folder)
    spec = newcomer.clone / "model.yaml"
    newcomer.do(said(page, "altgrad train model.yaml --dry-run"))
    newcomer.do(f"{said(page, 'altgrad train model.yaml$')} {SHORT} --set project=mine")
    run = newcomer.newest_run("mine")
    assert spec.exists()
    newcomer.do(said(page, "altgrad export RUN"), RUN=run)
    newcomer.do(
        f"{said(page, 'altgrad train model.yaml$')} {SHORT} --set project=mine --set name=plain --set precision=none"
    )
    assert "seed" in newcomer.do(said("docs/howto/compare-formats.md", "altgrad compare demo"), demo="mine")
    newcomer.do(said("docs/howto/diagnose.md", "altgrad diagnose RUN  "), RUN=run)
    newcomer.do(said("docs/howto/diagnose.md", "altgrad diagnose MODEL"), MODEL=folder)
    page = "docs/howto/quantize-export.md"
    newcomer.do(said(page, "altgrad quantize-model"), MODEL=folder)
    newcomer.do(said(page, "altgrad export MODEL"), MODEL=folder)
    for made in ("finished", "quantised", "served", "page.html"):
        assert (newcomer.clone / made).exists()
