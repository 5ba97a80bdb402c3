"""What could run somebody else's code is called nowhere: pickles, eval, shells, code in model folders."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "altgrad"
FORBIDDEN = {
    "torch.load", "pickle.load", "pickle.loads", "eval", "exec", "yaml.load", "yaml.unsafe_load", "os.system",
    "os.popen", "marshal.loads", "shelve.open", "dill.load", "joblib.load", "cloudpickle.load", "torch.hub.load",
    "input",
}  # fmt: skip


def dangers(source: str) -> Iterator[str]:
    """Each dangerous call, with its line."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in FORBIDDEN:
            yield f"{node.lineno}: {name}"
        if said.get("shell") == "True" or said.get("allow_pickle") == "True":
            yield f"{node.lineno}: {name} with {said}"
        hugging = name.startswith(("auto.", "transformers.")) and name.endswith((".from_pretrained", ".from_config"))
        if hugging and said.get("trust_remote_code") != "False":
            yield f"{node.lineno}: {name} leaves open whether a folder's code runs"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_file_calls_what_could_run_code(path: Path) -> None:
    assert list(dangers(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "planted",
    ["torch.load(p)", "x = pickle.loads(b)", "eval(s)", "subprocess.run(s, shell=True)",
     "np.load(p, allow_pickle=True)", "auto.from_pretrained(p)",
     "transformers.AutoModel.from_pretrained(p, trust_remote_code=True)"],
)  # fmt: skip
def test_a_planted_call_is_found(planted: str) -> None:
    assert len(list(dangers(planted))) == 1
