"""What is installed: a light import, the files of a release, a wheel and an sdist that work in a clean environment."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import altgrad

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "wandb", "datasets", "pandas", "transformers", "matplotlib", "plotly")


def python(code: str, program: str = sys.executable, cwd: Path = ROOT) -> str:
    done = subprocess.run([program, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_nothing_heavy() -> None:
    loaded = f"import sys, altgrad; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    assert python(loaded) == "[]\n"


@pytest.mark.long
def test_casts_and_layers_need_no_package_that_only_runs_use() -> None:
    """Quantising a model in one's own loop works where wandb, datasets and pandas cannot be imported."""
    code = (
        "import sys\n"
        "for name in ('wandb', 'datasets', 'pandas', 'transformers'): sys.modules[name] = None\n"
        "import torch, altgrad\n"
        "model = torch.nn.Sequential(torch.nn.Linear(4, 4))\n"
        "altgrad.quantize_model(model, altgrad.PrecisionPolicy.uniform(weight='e4m3fn', input='e4m3fn'))\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "watch = altgrad.watch(model, optimizer)\n"
        "model(torch.ones(2, 4)).sum().backward(); optimizer.step(); altgrad.commit(model)\n"
        "print(len(watch.metrics) > 0, altgrad.recipe('te_current').name)\n"
    )
    assert python(code) == "True te_current\n"


def test_one_version_and_one_licence_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert project["version"] == altgrad.__version__ == citation["version"]
    assert project["license"] == citation["license"] == "Apache-2.0"


def test_issue_templates_ask_for_what_a_report_needs() -> None:
    def ids(name: str) -> set[str]:
        form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text(encoding="utf-8"))
        assert form["name"] and form["description"]
        return {part["id"] for part in form["body"]}

    assert {"spec", "meta", "doctor"} <= ids("bug") and {"format", "input", "expected"} <= ids("numerics")


@pytest.mark.needs("bash")
def test_completion_is_installed_and_shown(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "SHELL": "/bin/bash", "PYTHONPATH": str(ROOT)}
    # Typer asks for the shell that is the parent process
    for option in ("--install-completion", "--show-completion"):
        command = f"{sys.executable} -m altgrad.cli.main {option}; exit $?"
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "complete" in done.stdout and ".bash_completions" in (tmp_path / ".bashrc").read_text()


@pytest.mark.long
def test_wheel_and_sdist_work_in_a_clean_environment(tmp_path: Path) -> None:
    """Dependencies are those of this environment; what is new is the package alone, installed and run elsewhere."""
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "runs", "reports", "*.egg-info"))
    backend = "from setuptools import build_meta as b; print(b.build_wheel({0!r}), b.build_sdist({0!r}))"
    python(backend.format(str(tmp_path / "dist")), cwd=source)
    (wheel,), (sdist,) = (list((tmp_path / "dist").glob(f"*.{end}")) for end in ("whl", "tar.gz"))
    inside = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "altgrad/py.typed",
        "altgrad/recipes/te_nvfp4.yaml",
        "altgrad/webpage.css",
        "altgrad/cli/specs/text.yaml",
    ):
        assert needed in inside
    assert any(name.startswith("altgrad/data/sample/") for name in inside)
    assert not [name for name in inside if not name.startswith(("altgrad/", "altgrad-"))]
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("/README.md") for name in archive.getnames())
    outside = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    for package in (wheel, sdist):
        venv = tmp_path / package.name[-3:]
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
        program = str(venv / "bin" / "python")
        (site,) = (venv / "lib").glob("python*/site-packages")
        here = [path for path in sys.path if path.endswith("site-packages")]
        (site / "dependencies.pth").write_text("\n".join(here))
        pip = [sys.executable, "-m", "pip", "--python", program, "install", "-qq", "--no-deps", "--no-index"]
        subprocess.run(
            [*pip, "--no-build-isolation", "--force-reinstall", "--ignore-installed", str(package)],
            check=True,
            cwd=tmp_path,
        )
        for command, said in (
            ([str(venv / "bin" / "altgrad"), "formats", "inspect", "e4m3fn", "1.1"], "1.125"),
            ([program, "-c", "import altgrad; print(altgrad.__file__)"], str(venv)),
        ):
            done = subprocess.run(
                command, cwd=tmp_path, env=outside, capture_output=True, text=True, check=False
            )  # fmt: skip
            assert done.returncode == 0 and said in done.stdout, done.stderr
