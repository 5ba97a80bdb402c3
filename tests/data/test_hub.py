"""Data sets in the Hub's form: the folders are laid out as the Hub's are, and the Hub itself never answers here."""

import os
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from altgrad.data import hub_id, parquet_file
from altgrad.data.hub import Hub, HubCorpus, read_hub
from altgrad.data.text import TextSpec

pytest.importorskip("datasets")

ROWS = {"train": 20, "validation": 4, "test": 3}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands are started; no cache of this machine's user is seen or written."""
    import datasets

    for variable in ("HF_HOME", "XDG_CACHE_HOME", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(variable, str(tmp_path / "caches" / variable))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "caches" / "HF_DATASETS_CACHE")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def texts(split: str, config: str = "eurlex") -> list[str]:
    return [f"{config}: article {i} of {split}" for i in range(ROWS[split])]


def write(folder: Path, split: str, column: Sequence[object], name: str = "text") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({name: column, "labels": [[1, 2]] * len(column)}).to_parquet(
        folder / f"{split}-00000-of-00001.parquet"
    )


@pytest.fixture
def lex(place: Path) -> Path:
    """As coastalcph/lex_glue: a folder per config, a file per split, and a card that says which is which."""
    card = "---\nlanguage: [en]\nconfigs:\n"
    for config in ("eurlex", "ecthr_a"):
        card += f"- config_name: {config}\n  data_files:\n"
        for split in ROWS:
            column: list[object] = list(texts(split, config))
            write(
                place / "lex_glue" / config, split, [[c, "", "and so on"] for c in column] if "_" in config else column
            )
            card += f"  - split: {split}\n    path: {config}/{split}-*\n"
    (place / "lex_glue" / "README.md").write_text(card + "---\n# LexGLUE\n")
    return place / "lex_glue"


def test_a_folder_laid_out_as_the_hubs_is_read_by_config(lex: Path) -> None:
    found = read_hub(Hub(hub="./lex_glue", config="eurlex"), "text")
    assert found.documents() == {split: texts(split) for split in ROWS}
    assert found.size == sum(len(text) for split in ROWS for text in texts(split))
    assert read_hub(Hub(hub=str(lex), config="eurlex"), "text").sha256 == found.sha256


def test_lists_of_strings_are_one_document_joined_by_newlines(lex: Path) -> None:
    found = read_hub(Hub(hub="./lex_glue", config="ecthr_a"), "text").documents()
    assert found["test"][0] == "ecthr_a: article 0 of test\n\nand so on"
    assert len(found["train"]) == ROWS["train"]


def test_a_run_reads_it_by_its_spec_and_tells_what_it_read(lex: Path) -> None:
    spec = TextSpec.parse("source: {hub: ./lex_glue, config: eurlex}\nbatch_size: 2")
    data = spec.build(seed=0, context=16)
    told = data.describe()
    assert told["source"] == "./lex_glue (eurlex)"
    assert told["train_documents"] == 20 and told["test_bytes"] == sum(map(len, texts("test")))
    assert bytes(data.batch(0).inputs[0].tolist()).isascii()
    assert not data.references
    assert TextSpec.parse(spec.to_yaml().replace("kind: text\n", "")) == spec
    with pytest.raises(ValueError, match=r"\./lex_glue \(eurlex\) has 550 training tokens, one block needs 5000"):
        spec.build(seed=0, context=5000)


def test_a_file_replaced_without_a_new_size_or_time_is_noticed(lex: Path) -> None:
    source = Hub(hub="./lex_glue", config="eurlex")
    before = read_hub(source, "text")
    path = lex / "eurlex" / "test-00000-of-00001.parquet"
    stat = path.stat()
    write(path.parent, "test", [text.upper() for text in texts("test")])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = read_hub(source, "text")
    assert after.documents()["test"][0] == "EURLEX: ARTICLE 0 OF TEST"
    assert after.decides != before.decides


def test_the_digest_tells_documents_splits_and_borders_apart(lex: Path, place: Path) -> None:
    columns: list[dict[str, list[str]]] = [
        {"train": ["ab", "c"], "validation": ["d"]},
        {"train": ["a", "bc"], "validation": ["d"]},
        {"train": ["ab"], "validation": ["c", "d"]},
        {"train": ["d", "c"], "validation": ["ab"]},
    ]
    found: list[HubCorpus] = []
    for number, splits in enumerate(columns):
        for split, column in splits.items():
            write(place / str(number), split, column)
        found.append(read_hub(Hub(hub=f"./{number}"), "text"))
        assert found[-1].documents() == {**splits, "test": []}
    assert len({corpus.sha256 for corpus in found}) == 4


def test_a_split_alone_is_cut_by_hash_and_splits_of_other_names_are_passed_over(place: Path) -> None:
    many = [f"document {i}" for i in range(200)]
    write(place / "alone", "train", many)
    found = read_hub(Hub(hub="./alone"), "text").documents()
    pd.DataFrame({"text": many}).to_parquet("file.parquet")
    assert TextSpec(source="file.parquet").build(0, 8).describe()["validation_documents"] == len(found["validation"])
    assert sorted([*found["train"], *found["validation"], *found["test"]]) == sorted(many)
    for split in ("train", "validation"):
        write(place / "more", split, ["a", ""])
    (place / "more" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        + "".join(f"  - split: {name}\n    path: {path}-*\n" for name, path in
                  (("train", "train"), ("validation", "validation"), ("unsupervised", "train")))
        + "---\n"
    )  # fmt: skip
    assert read_hub(Hub(hub="./more"), "text").documents() == {"train": ["a"], "validation": ["a"], "test": []}


def test_everything_wrong_with_a_folder_is_one_line(lex: Path, place: Path) -> None:
    write(place / "nul", "train", ["a", "b\0"])
    write(place / "nothing", "train", ["a", None])
    write(place / "two", "train", ["a"])
    write(place / "two", "test", ["a"])
    (place / "empty").mkdir()
    (place / "broken").mkdir()
    (place / "broken" / "train.parquet").write_bytes(b"not parquet")
    (place / "script").mkdir()
    (place / "script" / "script.py").write_text("raise SystemExit('a script was run')")
    for hub, column, message in [
        ({"hub": "./nowhere"}, "text", r"\./nowhere is not a folder"),
        ({"hub": "./lex_glue"}, "text", r"\./lex_glue cannot be loaded: Config name is missing.*'eurlex', 'ecthr_a'"),
        ({"hub": "./lex_glue", "config": "x"}, "text", r"\./lex_glue \(x\) cannot be loaded: .*'x' not found"),
        ({"hub": "./lex_glue", "config": "eurlex"}, "body", r"has no column 'body'; it has text, labels"),
        ({"hub": "./lex_glue", "config": "eurlex"}, "labels", r"train: row 1: column 'labels' holds \[1, 2\] \(list\)"),
        ({"hub": "./nul"}, "text", r"\./nul, train: row 2: column 'text' holds the character NUL"),
        ({"hub": "./nothing"}, "text", r"row 2: column 'text' holds nothing"),
        ({"hub": "./two"}, "text", r"\./two has the splits train, test; it takes train and validation"),
        ({"hub": "./empty"}, "text", r"\./empty cannot be loaded"),
        ({"hub": "./broken"}, "text", r"\./broken cannot be loaded"),
        ({"hub": "./script"}, "text", r"\./script cannot be loaded"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            read_hub(Hub.model_validate(hub), column)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["plain", "dictionary", "lists"])
def test_a_parquet_file_in_a_folder_that_unpacks_to_far_more_than_it_is_is_not_read(
    place: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(parquet_file, "LEAST_ROOM", 1 << 20)
    (place / "bomb").mkdir()
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 60, pa.int32()), ["x" * 100_000])
    lists = pa.ListArray.from_arrays(pa.array(range(61), pa.int32()), text)
    table = pa.table({"text": {"plain": text.dictionary_decode(), "dictionary": text, "lists": lists}[form]})
    parquet.write_table(table, place / "bomb" / "train.parquet", compression="zstd", use_dictionary=form != "plain")
    with pytest.raises(ValueError, match=r"bytes unpack to more than 1048576; text does not"):
        read_hub(Hub(hub="./bomb"), "text")
    monkeypatch.setattr(parquet_file, "LEAST_ROOM", 1 << 24)
    assert sum(map(len, read_hub(Hub(hub="./bomb"), "text").found.values())) == 60


def test_what_could_run_code_is_refused(place: Path) -> None:
    (place / "pickled").mkdir()
    pd.Series(["a"]).to_pickle("pickled/train.pkl")
    with pytest.raises(ValueError, match=r"\./pickled cannot be loaded"):
        read_hub(Hub(hub="./pickled"), "text")
    (place / "images" / "train").mkdir(parents=True)
    (place / "images" / "train" / "a.xml").write_text("<a>b</a>")
    with pytest.raises(ValueError, match="it comes as xml; AltGrad reads parquet, arrow, json, csv, text"):
        read_hub(Hub(hub="./images"), "text")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("source: {hub: a/b/c}", "'a/b/c' is not an id; write owner/name, or a folder beginning with ./"),
        ("source: {hub: 'https://huggingface.co/a'}", "is not an id; write owner/name"),
        ("source: {hub: a/b, name: x}", "'name' is not a key of source"),
        ("source: {hub: a/b, token: x}", "'data.*|'source.token' looks like a secret"),
        ("source: {hub: ./a, revision: main}", "./a is a folder, which has no revisions"),
        ("source: 3", "3 is not a source; write eulaw, the path of a file, or {hub: owner/name}"),
        ("source: ''", "'' is not a source"),
        ("source: {config: eurlex}", "hub"),
    ],
)
def test_a_wrong_source_says_what_is_right(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextSpec.parse(text)


def test_a_revision_may_be_a_commit() -> None:
    source = TextSpec.parse(f"source: {{hub: coastalcph/lex_glue, config: eurlex, revision: {'1f' * 20}}}").source
    assert isinstance(source, Hub)
    assert source.name == f"coastalcph/lex_glue (eurlex) at {'1f' * 20}"


@pytest.fixture(params=["offline", "refused", "silent", "nonsense"])
def no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """HF_HUB_OFFLINE, a port where nobody listens, one where somebody listens and never answers, and no address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if request.param != "refused":
            listener.listen()
        if request.param != "offline":
            monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        port = listener.getsockname()[1]
        monkeypatch.setenv("HF_ENDPOINT", "nowhere" if request.param == "nonsense" else f"http://127.0.0.1:{port}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield


@pytest.mark.usefixtures("no_network")
def test_without_network_one_line_says_how_to_copy_and_datasets_is_not_even_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # None makes the import fail: what takes a second, and then retries for half a minute, is never reached.
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="coastalcph/lex_glue") as caught:
        read_hub(Hub(hub="coastalcph/lex_glue", config="eurlex"), "text")
    message = str(caught.value)
    assert "hf download coastalcph/lex_glue --repo-type dataset --local-dir lex_glue`" in message
    assert "source: {hub: ./lex_glue, config: eurlex}" in message
    assert "\n" not in message


@pytest.mark.usefixtures("no_network")
def test_without_network_what_was_downloaded_before_is_used(lex: Path, place: Path) -> None:
    import datasets

    cache = place / "caches" / "HF_DATASETS_CACHE"
    datasets.load_dataset(str(lex), "eurlex", cache_dir=cache)
    # As the Hub's own come to lie there: owner___name/config/version/commit.
    shutil.move(cache / "lex_glue", cache / "coastalcph___lex_glue")
    before = datasets.config.HF_HUB_OFFLINE
    found = read_hub(Hub(hub="coastalcph/lex_glue", config="eurlex"), "text")
    assert found.documents()["test"] == texts("test")
    assert datasets.config.HF_HUB_OFFLINE is before
    (commit,) = (folder.name for folder in cache.glob("*/eurlex/0.0.0/*") if folder.is_dir())
    pinned = Hub(hub="coastalcph/lex_glue", config="eurlex", revision=commit)
    assert read_hub(pinned, "text").sha256 == found.sha256
    with pytest.raises(ValueError, match=r"--revision 1234567 "):
        read_hub(Hub(hub="coastalcph/lex_glue", config="eurlex", revision="1234567"), "text")
    with pytest.raises(ValueError, match=r"lex_glue \(ledgar\) was not downloaded before .* does not answer"):
        read_hub(Hub(hub="coastalcph/lex_glue", config="ledgar"), "text")


def test_a_hub_that_refuses_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as refusing:  # it knows no HEAD: 501 for everything
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{refusing.server_port}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        Thread(target=refusing.handle_request, daemon=True).start()
        assert hub_id.reachable()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not hub_id.reachable()


def test_an_id_that_is_also_a_path_here_is_not_guessed_at(lex: Path) -> None:
    with pytest.raises(ValueError, match=r"lex_glue is a path here as well as an id; write \./lex_glue"):
        read_hub(Hub(hub="lex_glue", config="eurlex"), "text")


def test_rows_without_text_are_refused_or_left_out_and_counted(place: Path) -> None:
    write(place / "d", "train", [*texts("train"), None])
    write(place / "d", "validation", texts("validation"))
    with pytest.raises(ValueError, match=r"\./d, train: row 21: column 'text' holds nothing; .* set bad_rows: skip"):
        TextSpec(source=Hub(hub="./d")).build(0, 8)
    told = TextSpec(source=Hub(hub="./d"), bad_rows="skip").build(0, 8).describe()
    assert told["skipped_no_text"] == 1 and told["train_documents"] == ROWS["train"]
