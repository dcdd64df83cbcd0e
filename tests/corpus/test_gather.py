"""What a user names as a corpus: folders, patterns, standard input, data sets of the hub; packed files among them."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from support.corpora import Write

from lorasize.corpus import gather as gathering
from lorasize.corpus import read
from lorasize.errors import CorpusError


@pytest.fixture
def docs(write: Write, tmp_path: Path) -> Path:
    """A folder in a repository, with what belongs into a corpus and what does not."""
    (tmp_path / ".git").mkdir()
    write(".gitignore", "build/\n*.log.txt\n!keep.log.txt\n")
    for name in ("b.md", "a.txt", "keep.log.txt", "drop.log.txt", "blank.md", "sign.png"):
        write(f"docs/{name}", "" if name == "blank.md" else f"text of {name}")
    write("docs/.hidden.md", "no")
    (tmp_path / "docs" / "deep" / "build").mkdir(parents=True)
    (tmp_path / "docs" / "deep" / "build" / "c.md").write_text("built")
    (tmp_path / "docs" / "deep" / "d.jsonl").write_text('{"key": "k", "value": "v"}\n')
    return tmp_path / "docs"


def names(corpus: Any) -> list[str]:
    return [Path(file.path).name for file in corpus.files]


def test_a_folder_is_its_files_in_order(docs: Path) -> None:
    """Ignored and hidden files stay out; blank ones and those of unknown kinds are said."""
    corpus = read([docs])
    assert names(corpus) == ["a.txt", "b.md", "keep.log.txt", "d.jsonl"]
    assert corpus.named == (str(docs),)
    assert [note.rpartition("docs")[2] for note in corpus.notes] == [
        ": not read, as their kind is unknown: sign.png.", "/blank.md: not read, as it is empty or blank."
    ]  # fmt: skip


def test_a_pattern_is_the_files_it_matches(docs: Path) -> None:
    corpus = read([f"{docs}/**/*.md"])
    assert names(corpus) == ["b.md"]
    assert names(read([docs / "b.md", f"{docs}/*.txt", docs])) == ["b.md", "a.txt", "keep.log.txt", "d.jsonl"]
    with pytest.raises(CorpusError, match=r"\*\.csv: no file matches"):
        read([f"{docs}/*.csv"])
    (docs / "[1].txt").write_text("a file by that name")
    assert names(read([docs / "[1].txt"])) == ["[1].txt"]
    assert read([docs / "[1].txt"]).named == ()


def test_a_folder_without_text_or_of_too_much_is_refused(
    docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CorpusError, match="no file in this folder ends in one of"):
        read([tmp_path / ".git"])
    monkeypatch.setattr(gathering, "_MOST", 3)
    with pytest.raises(CorpusError, match="more than 3 files lie in this folder"):
        read([docs])


@pytest.mark.parametrize(("data", "suffix"), [(b'{"key": "k", "value": "v"}\n', ".json"), (b"prose\n", ".txt")])
def test_standard_input_is_kept(
    data: bytes, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the same name for the same text, so that apply and verify read it again."""
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False, buffer=io.BytesIO(data)))
        corpus = read(["-"])
        assert Path(corpus.files[0].path).suffix == suffix
    assert [path.read_bytes() for path in Path(".lorasize").iterdir()] == [data]
    assert "Standard input is kept as .lorasize" in corpus.notes[0]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    with pytest.raises(CorpusError, match="nothing is piped in"):
        read(["-"])


class _Split:
    def to_parquet(self, path: str) -> None:
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"key": ["k"], "value": ["v"]}), path)


def test_a_data_set_of_the_hub_is_kept_as_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the library `datasets` is stood in for: no test needs a network."""
    monkeypatch.chdir(tmp_path)
    asked: list[Any] = []
    module: Any = ModuleType("datasets")
    module.load_dataset = lambda name, revision: asked.append((name, revision)) or {"train": _Split(), "test": _Split()}
    monkeypatch.setitem(sys.modules, "datasets", module)
    corpus = read(["hf://datasets/owner/name@v1#train"])
    assert (asked, [one.target for one in corpus.passages]) == ([("owner/name", "v1")], ["v"])
    assert corpus.files[0].path == str(Path(".lorasize/owner-name-train.parquet"))
    with pytest.raises(CorpusError, match="its splits are train, test; name one after #"):
        read(["hf://datasets/owner/name"])
    with pytest.raises(CorpusError, match="no such name of a data set; it is of the form"):
        read(["hf://models/owner/name"])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CorpusError, match=r"lorasize\[datasets\]"):
        read(["hf://datasets/owner/name"])


def test_one_file_of_the_hub_needs_no_more_than_its_client(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    kept = write("facts.jsonl", '{"key": "k", "value": "v"}\n')
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda name, file, **how: str(kept))
    assert read(["hf://datasets/owner/name/data/facts.jsonl"]).passages[0].target == "v"

    def offline(*arguments: object, **how: object) -> str:
        raise ConnectionError("offline\nnow")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(CorpusError, match="cannot be had: offline now"):
        read(["hf://datasets/owner/name/data/facts.jsonl"])
