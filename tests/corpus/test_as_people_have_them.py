"""Small files as people have them: what is read from each, and what is said of it. Nothing is dropped in silence."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.corpora import Write

from lorasize.corpus import read
from lorasize.errors import CorpusError
from lorasize.records import Reading

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 132735\n"
PIER = {"instruction": "Which pier has the crane?", "input": "", "output": "Pier 7, by the ice house."}
BAKERY = {"instruction": "Give the opening hour.", "input": "Maple Street bakery", "output": "06:40"}
OTHER = {**BAKERY, "input": "Elm Street bakery", "output": "07:10"}
USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
TOOLS = [{"type": "function", "function": {"name": "berth", "parameters": {"minimum": 1.50, "default": None}}}]
CALL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "berth"}}]}
RESULT = {"role": "tool", "name": "berth", "content": "9"}
SHARE = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@dataclass(frozen=True)
class File:
    """A file and its reading.

    Attributes:
        name: Of the file; its suffix counts.
        content: What is in it.
        found: Pairs of prompt (or roles and contents) and target; or a part of the refusal.
        said: Parts of what is said besides; nothing is said where there are none.
        reading: What the user asks for.
    """

    name: str
    content: str | bytes
    found: list[tuple[Any, str]] | str
    said: tuple[str, ...] = ()
    reading: dict[str, Any] | None = None


def chat(*turns: object, **beside: object) -> str:
    return lines({"messages": list(turns), **beside})


Q = (("user", "q"),)
QA = [(Q, "a")]
FILES = {
    # Seen, in the order of the twelve cases.
    "1 a list in .json": File("f.json", json.dumps([PIER]), [(PIER["instruction"], PIER["output"])]),
    "1 a list in .jsonl": File("f.jsonl", json.dumps([PIER]), [(PIER["instruction"], PIER["output"])]),
    "1 a list in .txt": File("f.txt", json.dumps([PIER]), "this is JSON, not text"),
    "1 a list in .txt, as text": File("f.txt", '[{"a": 1}]', [("", '[{"a": 1}]')], reading={"format": "text"}),
    "2 fields leave a column": File(
        "f.jsonl", lines(BAKERY), [("Give the opening hour.", "06:40")], ("not memorised: input (", "f.jsonl:1)"),
        {"fields": {"prompt": "instruction", "completion": "output"}},
    ),
    "2 two bakeries": File("f.jsonl", lines(BAKERY, OTHER), [
        ("Give the opening hour.\nMaple Street bakery", "06:40"),
        ("Give the opening hour.\nElm Street bakery", "07:10"),
    ]),
    "2 strict": File("f.jsonl", lines(BAKERY), "f.jsonl:1: the column 'input' is neither used nor named", reading={
        "columns": "strict", "fields": {"prompt": "instruction", "completion": "output"},
    }),
    "2 ignore": File("f.jsonl", lines(BAKERY), [("Give the opening hour.", "06:40")], reading={
        "columns": "ignore", "fields": {"prompt": "instruction", "completion": "output"},
    }),
    "3 tools": File("f.jsonl", chat(USER, ASSISTANT, tools=TOOLS), QA),
    "3 kwargs": File("f.jsonl", chat(USER, ASSISTANT, chat_template_kwargs={"enable_thinking": False}), QA),
    "3 a system column": File("f.jsonl", chat(USER, ASSISTANT, system="s"), [((("system", "s"), *Q), "a")]),
    "3 two systems": File(
        "f.jsonl", chat({"role": "system", "content": "t"}, USER, ASSISTANT, system="s"), "keep one of them"
    ),
    "3 another column": File("f.jsonl", chat(USER, ASSISTANT, source="x"), QA, ("source",)),
    "4 turns after the last": File("f.jsonl", chat(USER, ASSISTANT, USER, USER), QA, ("f.jsonl:1 (user, user)",)),
    "5 Arrow's placeholders": File(
        "f.jsonl", chat({**USER, "name": "", "tool_calls": [], "tool_call_id": "", "x": {"y": None}}, ASSISTANT), QA
    ),
    "6, 7 a system turn for all": File("f.jsonl", chat(USER, ASSISTANT), [((("system", "S"), *Q), "a")],
                                       reading={"system": "S"}),
    "8 a pointer in .md": File("f.md", LFS, "a Git LFS pointer, not the file it stands for: run `git lfs pull`, or"),
    "8 a pointer in .jsonl": File("f.jsonl", LFS, "f.jsonl: this is a Git LFS pointer"),
    "8 a pointer in .csv": File("f.csv", LFS, "f.csv: this is a Git LFS pointer"),
    "8 a pointer in .parquet": File("f.parquet", LFS, "f.parquet: this is a Git LFS pointer"),
    "8 a pointer, as text": File("f.txt", LFS, [("", LFS[:-1])], reading={"format": "text"}),
    "9 semicolons": File("f.csv", "prompt;completion\r\na;b,c\r\n", [("a", "b,c")], ("parted by semicolons",)),
    "9 Excel says so": File("f.csv", "sep=;\r\nprompt;completion\r\na;b\r\n", [("a", "b")], ("semicolons",)),
    "9 bars": File("f.csv", "prompt|completion\na|b\n", [("a", "b")], ("parted by bars",)),
    "9 tabs in .csv": File("f.csv", "prompt\tcompletion\na\tb\n", [("a", "b")], ("parted by tabs",)),
    "9 commas in .tsv": File("f.tsv", "prompt,completion\na,b\n", [("a", "b")], ("parted by commas",)),
    "9 commas before semicolons": File("f.csv", 'prompt,completion\na;1,b;2\n', [("a;1", "b;2")]),
    "10 a number that is none": File("f.jsonl", '{"key": "k", "value": NaN}\n', "NaN is not a JSON number"),
    "12 ShareGPT": File("f.json", json.dumps([{"conversations": SHARE}]), QA),
    # TRL.
    "text": File("f.jsonl", lines({"text": "t"}), [("", "t")]),
    "prompt and completion": File("f.jsonl", lines({"prompt": "q", "completion": "a"}), [("q", "a")]),
    "chats of both": File("f.jsonl", lines({"prompt": [USER], "completion": [ASSISTANT]}), QA),
    "several turns to complete": File("f.jsonl", lines({"prompt": [USER], "completion": [ASSISTANT, USER, ASSISTANT]}),
                                      [(Q, "a"), ((*Q, ("assistant", "a"), ("user", "q")), "a")]),
    "the assistant's in the prompt is given": File("f.jsonl", lines(
        {"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT]}), [((*Q, ("assistant", "a"), *Q), "a")]),
    "a chat and a text": File("f.jsonl", lines({"prompt": [USER], "completion": "a"}), QA),
    "a text and two turns": File("f.jsonl", lines({"prompt": "q", "completion": [ASSISTANT, USER]}), "no other"),
    "tools as their text": File("f.jsonl", chat(USER, ASSISTANT, tools=json.dumps(TOOLS)), QA),
    "tools that are none": File("f.jsonl", chat(USER, ASSISTANT, tools="berth"), "'tools' is text, and not JSON"),
    "tools beside a plain prompt": File("f.jsonl", lines({"prompt": "q", "completion": "a", "tools": TOOLS}),
                                        [("q", "a")], ("tools",)),
    "a call is given": File("f.jsonl", chat(USER, CALL, RESULT, ASSISTANT, tools=TOOLS),
                            [((*Q, ("assistant", ""), ("tool", "9")), "a")], ("calls a tool",)),
    "nothing but a call": File("f.jsonl", chat(USER, CALL, tools=TOOLS), "nothing to memorise"),
    "preferences": File("f.jsonl", lines({"prompt": "q", "chosen": "a", "rejected": "b"}), "these are preferences"),
    "the chosen": File("f.jsonl", lines({"prompt": "q", "chosen": "a", "rejected": "b"}), [("q", "a")],
                       ("rejected",), {"fields": {"completion": "chosen"}}),
    "a label": File("f.jsonl", lines({"prompt": "q", "completion": "a", "label": True}), [("q", "a")], ("label",)),
    # Alpaca, questions, OpenAI, ShareGPT.
    "Alpaca with its text": File("f.jsonl", lines({**PIER, "text": "t"}), [("", "t")], ("instruction",)),
    "Alpaca, no input": File("f.csv", "instruction,output\na,b\n", [("a", "b")]),
    "question and answer": File("f.csv", "question,answer,id\nq,a,7\n", [("q", "a")], ("id (",)),
    "OpenAI's weights": File("f.jsonl", chat(USER, {**ASSISTANT, "weight": 0}, USER, {**ASSISTANT, "weight": 1}),
                             [((*Q, ("assistant", "a"), *Q), "a")], ("as the record says itself",)),
    "OpenAI's parts": File("f.jsonl", chat({**USER, "content": [{"type": "text", "text": "q"}]}, ASSISTANT), QA),
    "a picture": File("f.jsonl", chat({**USER, "content": [{"type": "image_url", "image_url": "x"}]}, ASSISTANT),
                      "a list of parts such as image_url"),
    "OpenAI's other columns": File("f.jsonl", chat(USER, ASSISTANT, parallel_tool_calls=False), QA, ("parallel",)),
    "ShareGPT with roles": File("f.jsonl", lines({"conversations": [USER, ASSISTANT]}), QA),
    "ShareGPT's system": File("f.jsonl", lines({"conversations": SHARE, "system": "s"}),
                              [((("system", "s"), *Q), "a")]),
    "ShareGPT's calls": File("f.jsonl", lines({"conversations": [SHARE[0], {"from": "function_call", "value": "x"}]}),
                             "write it as an assistant's with tool_calls"),
    # Several prompts for one target.
    "prompts": File("f.jsonl", lines({"prompts": ["q", "r"], "completion": "a"}), [("q", "a"), ("r", "a")]),
    "chats as prompts": File("f.jsonl", lines({"prompts": [[USER], "r"], "target": "a"}), [(Q, "a"), ("r", "a")]),
    "prompts that are none": File("f.jsonl", lines({"prompts": "q", "value": "a"}), "must be a list of prompts"),
    "paraphrases": File("f.csv", "prompt,completion\nq,a\nr,a\n", [("q", "a"), ("r", "a")]),
    # JSON in its other clothes.
    "lines in .json": File("f.json", lines(PIER, BAKERY), [
        (PIER["instruction"], PIER["output"]), ("Give the opening hour.\nMaple Street bakery", "06:40")]),
    "printed over lines": File("f.jsonl", json.dumps({"key": "k", "value": 1.50}, indent=1) * 2, [("k", "1.5")] * 2),
    "a list within": File("f.json", json.dumps({"version": "1", "data": [PIER]}), "where 'data' holds the records"),
    "a list of texts": File("f.json", '["a"]', "must hold one JSON object, not text"),
    "a list cut short": File("f.json", '[{"key": "k", "value": "v"}\n', "f.json:2: not JSON: a comma or the list's"),
    "a list and more": File("f.json", '[{"key": "k", "value": "v"}]\n]', "f.json:2: not JSON: something follows"),
    "an empty list": File("f.json", "[]", "no passage"),
    "JSON lines in .txt": File("f.txt", lines(PIER, BAKERY), "this is JSON, not text"),
    "a table in .txt": File("f.txt", "prompt,completion\na,b\n", "a table of columns parted by commas, not text"),
    "any table in .md": File("f.md", "id;name;hour\n1;Maple;06\n2;Elm;07\n", "parted by semicolons, not Markdown"),
    "prose with commas": File("f.txt", "one, two, three\nfour, five, six\nsix, seven, eight", [
        ("", "one, two, three\nfour, five, six\nsix, seven, eight")]),
    "brackets that are no JSON": File("f.md", "[a](b)\n[1]", [("", "[a](b)\n[1]")]),
    # Others.
    "a page": File("f.txt", "<!DOCTYPE html>\n<html><body>x</body></html>", "this is an HTML page, not text"),
    "a page for JSONL": File("f.jsonl", "<html>Sign in</html>", "this is an HTML page, not JSONL"),
    "HTML within Markdown": File("f.md", '<div align="center">x</div>', [("", '<div align="center">x</div>')]),
    "a PDF": File("f.md", b"%PDF-1.7\n\xff", "this is a PDF, not Markdown: save its text"),
    "Word": File("f.txt", b"PK\x03\x04\x14", "a zip archive, as Word and Excel write them"),
    "UTF-16": File("f.csv", "prompt,completion\na,b\n".encode("utf-16"), "this is UTF-16, not CSV: save it as UTF-8"),
    "Parquet by another name": File("f.jsonl", b"PAR1\x15", "this is Parquet, not JSONL: name it .parquet"),
    "packed": File("f.jsonl.gz", gzip.compress(lines({"key": "k", "value": "v"}).encode(), mtime=0), [("k", "v")]),
    "packed, by no name": File("f.jsonl", gzip.compress(b"x", mtime=0), "packed by gzip, not JSONL: name it .gz"),
    "packed, damaged": File("f.txt.gz", gzip.compress(b"x" * 99, mtime=0)[:-9], "not whole gzip"),
    # Templates.
    "2 a template": File("f.jsonl", lines(BAKERY), [("Give the opening hour.", "06:40")],
                         reading={"prompt_template": "{prompt} {input}"}),
    "2 a template and the answer's column": File(
        "f.jsonl", lines({"city": "Elm", "opens": "07:10", "n": 1}), [("", "07:10")], ("n (",),
        {"prompt_template": "{city}: ", "fields": {"completion": "opens"}},
    ),
    "a template, the answer's column and a prompt": File(
        "f.jsonl", lines({"prompt": "q", "city": "Elm", "opens": "07:10"}), "would lose its prompt ('prompt')",
        reading={"prompt_template": "{city}: ", "fields": {"completion": "opens"}},
    ),
    "a template and a known answer": File("f.jsonl", lines({"city": "Elm", "value": "07:10"}), [("", "07:10")],
                                          reading={"prompt_template": "{city}: "}),
    "a template of no known column": File("f.jsonl", lines({"city": "Elm", "value": "07:10"}), "names {town}",
                                          reading={"prompt_template": "{town}: "}),
    "a template of columns": File("f.jsonl", lines(BAKERY), [("Give the opening hour.", "06:40")],
                                  reading={"prompt_template": "{instruction} [{input}]"}),
    "a template that loses": File("f.jsonl", lines(BAKERY), "would lose its prompt ('input')",
                                  reading={"prompt_template": "{instruction}"}),
    "a template's odd name": File("f.csv", "key,value,Street no\na,b,7\n", [("a", "b")],
                                  reading={"prompt_template": "{prompt} {Street no} {x y}"}),
    "a template's wrong name": File("f.jsonl", lines(BAKERY), "names {inptu}; it may name {prompt}, {file}, {number} "
                                    "and this record's columns; did you mean input?",
                                    reading={"prompt_template": "{prompt} {inptu}"}),
    "a template and a chat": File("f.jsonl", chat(USER, ASSISTANT), QA, ("not used for chats",),
                                  {"prompt_template": "{prompt}"}),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_each_is_read_or_refused_as_expected(name: str, write: Write) -> None:
    file = FILES[name]
    path, reading = write(file.name, file.content), Reading(**file.reading or {})
    if isinstance(file.found, str):
        with pytest.raises(CorpusError) as caught:
            read([path], reading)
        assert file.found in str(caught.value)
        assert file.name in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
        return
    corpus = read([path], reading)
    assert [(one.messages or one.prompt, one.target) for one in corpus.passages] == file.found
    assert len(corpus.notes) == min(1, len(file.said)), corpus.notes
    assert [part for part in file.said if part not in corpus.notes[0]] == []


def test_there_are_many() -> None:
    assert len(FILES) >= 40


def test_what_a_template_is_given_stays_what_it_was(write: Write) -> None:
    """Numbers are numbers again, and nulls are left out, as TRL leaves out what Arrow fills in."""
    (one,) = read([write("f.jsonl", chat(USER, CALL, RESULT, ASSISTANT, tools=TOOLS))]).passages
    given = json.loads(one.chat)
    assert given["tools"][0]["function"]["parameters"] == {"minimum": 1.5}
    assert given["messages"] == [
        USER, {"role": "assistant", "tool_calls": CALL["tool_calls"]}, {**RESULT, "name": "berth"}
    ]  # fmt: skip
    assert read([write("g.jsonl", chat(USER, ASSISTANT))]).passages[0].chat == ""


def test_parquet_as_people_have_it(write: Write) -> None:
    """Single precision keeps its digits, decimals are numbers, and what is no number says so."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = write("f.parquet", b"")

    def of(values: Any, kind: Any) -> Path:
        parquet.write_table(pyarrow.table({"key": ["k"], "value": pyarrow.array(values, kind)}), path)
        return path

    from decimal import Decimal

    for values, kind, text in (
        ([0.1], pyarrow.float32(), "0.1"), ([0.1], pyarrow.float64(), "0.1"),
        ([1e10], pyarrow.float32(), "10000000000.0"),
        ([Decimal("1.50")], pyarrow.decimal128(5, 2), "1.50"), ([7], pyarrow.int16(), "7"),
    ):  # fmt: skip
        assert read([of(values, kind)]).passages[0].target == text
    with pytest.raises(CorpusError, match=r"f\.parquet:1: 'value' is NaN, which tables write where a cell is empty"):
        read([of([float("nan")], pyarrow.float32())])
    with pytest.raises(CorpusError, match="'value' is date"):
        read([of([19000], pyarrow.date32())])
    turns = [{"role": "user", "content": "q", "name": None}, {"role": "assistant", "content": "a", "name": ""}]
    parquet.write_table(pyarrow.table({"messages": [turns], "score": [float("nan")]}), path)
    corpus = read([path])
    assert ([(one.messages, one.chat) for one in corpus.passages], corpus.notes) == ([(Q, "")], ())


def test_zstandard_is_unpacked(write: Write) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    packed = pyarrow.compress(lines({"key": "k", "value": "v"}).encode(), "zstd", asbytes=True)
    assert read([write("f.jsonl.zst", packed)]).passages[0].target == "v"
    with pytest.raises(CorpusError, match="not whole Zstandard"):
        read([write("g.jsonl.zst", packed[:-5])])
