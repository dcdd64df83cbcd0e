"""Reading corpora: bytes, lines and offsets are exact; whatever is wrong is refused at its place."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.corpora import Write, read, refusal

from lorasize.corpus import corpus_sha256, read_corpus
from lorasize.errors import CorpusError
from lorasize.records import CorpusFile

TEXT = st.text(
    st.one_of(st.sampled_from("ab \t\r\n\n\n`~#é漢🙂"), st.characters(exclude_categories=["Cs"])), max_size=80
)
TEXT = TEXT.map(lambda text: text.replace("\x00", ""))


def jsonl(*records: object) -> str:
    """One line a record."""
    return "".join(json.dumps(record) + "\n" for record in records)


def test_blocks_have_exact_text_lines_and_byte_offsets(write: Write) -> None:
    """A two-byte letter before the second block moves its byte offsets, not its line."""
    first, second = read(write("notes.txt", "\n  é one\ntwo  \n \n\nthree\n"))
    assert (first.target, first.line, first.start, first.end) == ("  é one\ntwo  ", 2, 1, 15)
    assert (second.target, second.line, second.start, second.end) == ("three", 6, 19, 24)
    assert [first.id, second.id] == ["notes.txt:2", "notes.txt:6"]
    assert {first.prompt, second.prompt} == {""}
    assert (first.kind, first.gap, second.gap) == ("text", "\n", "\n \n\n")


def test_crlf_stays(write: Write) -> None:
    """Carriage returns inside a block are part of the target, the final newline is not."""
    first, second = read(write("dos.txt", "a\r\nb\r\n\r\nc\r\n"))
    assert (first.target, first.start, first.end) == ("a\r\nb", 0, 4)
    assert (second.target, second.line, second.start, second.end) == ("c", 4, 8, 9)


def test_byte_order_mark_is_skipped_but_counted(write: Write) -> None:
    """Offsets stay those of the file."""
    path = write("bom.txt", b"\xef\xbb\xbfone\n\ntwo")
    assert [(p.target, p.start, p.end) for p in read(path)] == [("one", 3, 6), ("two", 8, 11)]


@given(text=TEXT, markdown=st.booleans(), bom=st.booleans())
@settings(max_examples=200, deadline=None)
def test_gaps_and_targets_reassemble_the_file(
    tmp_path_factory: pytest.TempPathFactory, text: str, markdown: bool, bom: bool
) -> None:
    """Nothing is lost, added or moved: only blank text may lie outside the blocks."""
    data = b"\xef\xbb\xbf" * bom + text.encode()
    path = tmp_path_factory.getbasetemp() / f"any{markdown}.txt"
    path.write_bytes(data)
    if not text.strip(" \t\r\n"):
        assert "no passage" in str(refusal(path))
        return
    passages = read(path, format="markdown" if markdown else "text")
    whole = data.decode("utf-8-sig" if bom else "utf-8")
    rebuilt = "".join(p.gap + p.target for p in passages)
    assert whole.startswith(rebuilt)
    assert not whole[len(rebuilt) :].strip(" \t\r\n")
    for passage in passages:
        assert data[passage.start : passage.end].decode() == passage.target
        assert data.count(b"\n", 0, passage.start) + 1 == passage.line
        assert not passage.gap.strip(" \t\r\n")
        assert passage.target.strip(" \t\r\n")


@given(text=TEXT)
@settings(max_examples=100, deadline=None)
def test_plain_text_blocks_hold_no_blank_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Every line of a block has something on it, so every blank line cut."""
    path = tmp_path_factory.getbasetemp() / "blank.txt"
    path.write_bytes(b"x" + text.encode())
    for passage in read(path):
        assert all(line.strip(" \t\r\n") for line in passage.target.split("\n"))


def test_markdown_is_not_cut_inside_fences(write: Write) -> None:
    """Tildes do not close backticks, nor three ticks four; the same file as text is cut at its blank lines."""
    text = "intro\n\n````py\na\n\n~~~\n\n```\n\nb\n````\n\n~~~\n\nc\n~~~\nend\n"
    blocks = ["intro", "````py\na\n\n~~~\n\n```\n\nb\n````", "~~~\n\nc\n~~~\nend"]
    assert [p.target for p in read(write("doc.md", text))] == blocks
    assert len(read(write("doc.txt", text))) == 7
    nested = "```\n~~~~\n\n```py\n\nb\n```\n\nc"
    assert [p.target for p in read(write("nested.md", nested))] == [nested[:-3], "c"]
    assert [p.target for p in read(write("open.md", "a\n\n~~~\nb\n\nc\n"))] == ["a", "~~~\nb\n\nc"]


def test_inline_backticks_open_no_fence(write: Write) -> None:
    """A line such as ```code``` is inline code."""
    assert [p.target for p in read(write("doc.md", "```a``` b\n\nc"))] == ["```a``` b", "c"]


def test_format_follows_the_suffix_and_can_be_given(write: Write) -> None:
    """An unknown suffix is text, unless it is records in truth; a format given wins over the suffix."""
    path = write("book.dat", jsonl({"prompt": "a", "completion": "b"}))
    assert "JSON, not text" in str(refusal(path))
    assert read(path, format="text")[0].target == '{"prompt": "a", "completion": "b"}'
    assert read(path, format="jsonl")[0].target == "b"
    assert read(write("prose.dat", "a, b"))[0].target == "a, b"
    assert read(write("BOOK.JSONL", jsonl({"prompt": "a", "completion": "c"})))[0].target == "c"


def test_undecodable_byte_names_file_line_and_offset(write: Write) -> None:
    """The offset counts the byte order mark."""
    error = refusal(write("latin.txt", b"\xef\xbb\xbfgood\nca\xe9t\n"))
    assert "latin.txt:2: " in str(error)
    assert "offset 10 (0xe9)" in str(error)
    assert error.line == 2


def test_missing_file_suggests_a_near_name(write: Write) -> None:
    """A mistyped name is answered with the right one."""
    path = write("phonebook.jsonl", "")
    error = refusal(path.with_name("phonebok.jsonl"))
    assert "no such file" in str(error)
    assert f"did you mean {path}?" in str(error)
    assert "did you mean" not in str(refusal(path.parent / "nowhere" / "zzz.txt"))


def test_folders_and_empty_files_are_refused(write: Write) -> None:
    """Neither is silently a corpus of nothing."""
    path = write("blank.txt", "\n \r\n\t\n")
    assert "no passage" in str(refusal(path))
    assert "empty or blank" in str(refusal(path))
    assert "no passage in any of its files" in str(refusal(path.parent))
    assert "no passage" in str(refusal(write("empty.csv", "")))
    assert "no passage" in str(refusal(write("header.csv", "prompt,completion\n")))
    assert "no passage" in str(refusal(write("blank.jsonl", "\n\n")))
    with pytest.raises(CorpusError, match="no corpus file"):
        read_corpus([])


def test_a_file_named_twice_is_refused(write: Write) -> None:
    """Whatever the spelling of the path."""
    path = write("a.txt", "one")
    with pytest.raises(CorpusError, match="twice"):
        read_corpus([path, path.parent / "." / ".." / path.parent.name / "a.txt"])


def test_digest_follows_contents_and_order_not_paths(write: Write) -> None:
    """Moving a corpus keeps its digest, changing one byte or the order does not."""
    one, two, moved = write("a.txt", "one"), write("b.txt", "two"), write("sub/c.txt", "one")
    digests = [
        corpus_sha256(read_corpus(paths)[1]) for paths in ([one, two], [moved, two], [two, one], [one], [one, moved])
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4
    assert read_corpus([one])[1] == (CorpusFile(path=str(one), sha256=hashlib.sha256(b"one").hexdigest()),)


def test_passages_keep_the_order_of_the_files(write: Write) -> None:
    """Equal file names still give distinct ids."""
    paths = [write("z/a.txt", "one"), write("y/a.txt", "two"), write("b.txt", "three")]
    passages, files = read_corpus(paths)
    assert [p.target for p in passages] == ["one", "two", "three"]
    assert [p.id for p in passages] == ["a.txt:1", "a.txt:1#2", "b.txt:1"]
    assert [file.path for file in files] == [str(path) for path in paths] == [p.file for p in passages]


def test_phone_book_shape(write: Write) -> None:
    """The paper's own files: verbatim prompt and target, no offsets."""
    lines = jsonl(
        {"query": "Jerry Becerra:", "target": "9100672710"},
        {"query": "Agnes Holm:", "target": "0400128875"},
        {"query": "Ola Nordmann:", "target": "7719034466"},
    )
    passages = read(write("phone_book.jsonl", lines))
    assert [(p.prompt, p.target, p.line) for p in passages] == [
        ("Jerry Becerra:", "9100672710", 1),
        ("Agnes Holm:", "0400128875", 2),
        ("Ola Nordmann:", "7719034466", 3),
    ]
    assert passages[0].model_dump(include={"id", "kind", "start", "end", "messages"}) == {
        "id": "phone_book.jsonl:1",
        "kind": "record",
        "start": None,
        "end": None,
        "messages": (),
    }


@pytest.mark.parametrize(
    ("record", "prompt", "target"),
    [
        ({"prompt": "p", "completion": " c\r\n"}, "p", " c\r\n"),
        ({"key": "k", "value": "v"}, "k", "v"),
        ({"value": 17, "key": 4}, "4", "17"),
        ({"prompt": "p", "completion": "c", "key": "k", "value": "v"}, "p", "c"),
        ({"prompt": "p", "target": "t", "text": "unused"}, "p", "t"),
        (
            {"prompt": [{"role": "user", "content": "u"}], "completion": [{"role": "assistant", "content": "a"}]},
            "",
            "a",
        ),
        ({"text": "whole"}, "", "whole"),
    ],
)
def test_shapes(write: Write, record: object, prompt: str, target: str) -> None:
    """Every accepted shape, prompt and target verbatim."""
    (passage,) = read(write("a.jsonl", jsonl(record)))
    assert (passage.prompt, passage.target) == (prompt, target)
    assert passage.kind == ("text" if record == {"text": "whole"} else "record")


def test_numbers_keep_their_json_text(write: Write) -> None:
    """1.50 is not 1.5, and a long integer loses no digit."""
    path = write("n.jsonl", '{"key": 1.50, "value": 12345678901234567890123}\n{"key": -0, "value": 1E3}\n')
    assert [(p.prompt, p.target) for p in read(path)] == [("1.50", "12345678901234567890123"), ("-0", "1E3")]


def test_messages_give_one_passage_an_assistant_turn(write: Write) -> None:
    """Each is given all turns before it; ids on one line stay distinct."""
    turns = [("system", "s"), ("user", "u1"), ("assistant", "a1"), ("user", "u2"), ("assistant", "a2")]
    record = {"messages": [{"role": role, "content": content, "name": None} for role, content in turns]}
    one, two = read(write("chat.jsonl", "\n" + jsonl(record)))
    assert (one.target, one.messages) == ("a1", tuple(turns[:2]))
    assert (two.target, two.messages) == ("a2", tuple(turns[:4]))
    assert [one.id, two.id] == ["chat.jsonl:2", "chat.jsonl:2#2"]


def test_fields_map_columns(write: Write) -> None:
    """By any of a role's names; only what is mapped is looked at."""
    path = write("faq.jsonl", jsonl({"question": "q", "answer": "a", "prompt": "no", "completion": "no"}))
    for fields in ({"prompt": "question", "completion": "answer"}, {"key": "question", "target": "answer"}):
        assert [(p.prompt, p.target) for p in read(path, fields=fields)] == [("q", "a")]
    assert [(p.prompt, p.target) for p in read(path, fields={"prompt": "question"})] == [("q", "no")]
    assert [(p.prompt, p.target) for p in read(path, fields={"text": "answer"})] == [("", "a")]


def test_wrong_fields_are_refused(write: Write) -> None:
    """Unknown, doubled or mixed fields, and columns that are not there."""
    path = write("faq.jsonl", jsonl({"question": "q", "answer": "a"}))
    assert "unknown field 'promt'" in str(refusal(path, fields={"promt": "question"}))
    assert "given twice" in str(refusal(path, fields={"prompt": "question", "key": "answer"}))
    assert "different shapes" in str(refusal(path, fields={"prompt": "question", "text": "answer"}))
    message = str(refusal(path, fields={"prompt": "question", "completion": "reply"}))
    assert "faq.jsonl:1: " in message
    assert "keys seen: question, answer; expected 'question' and 'reply', as asked" in message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "a", "completion": }', "not JSON: Expecting value at column 31"),
        ('{"prompt": "a", "completion": NaN}', "not JSON: NaN"),
        ('{"prompt": "a", "prompt": "b", "completion": "c"}', "'prompt' stands twice"),
        ('["a", "b"]', "one JSON object, not a list"),
        ('"a"', "one JSON object, not text"),
        ('{"promt": "a", "completion": "b"}', "keys seen: promt, completion; expected prompt and completion"),
        ("{}", "keys seen: none"),
        ('{"prompt": "a", "completion": ""}', "'completion' is empty"),
        ('{"text": ""}', "'text' is empty"),
        ('{"prompt": "a", "completion": null}', "'completion' is null"),
        ('{"prompt": true, "completion": "b"}', "'prompt' is true or false"),
        ('{"prompt": {"a": 1}, "completion": "b"}', "'prompt' is an object"),
        ('{"prompt": "a", "completion": "\\ud800"}', "lone surrogate (U+D800)"),
        ('{"prompt": "\\udc00", "completion": "b"}', "lone surrogate (U+DC00)"),
        ('{"prompt": "a", "completion": "\\u0000"}', "NUL"),
        ('{"messages": []}', "'messages' must be a list of messages"),
        ('{"messages": [{"role": "user"}]}', "must have role and content"),
        ('{"messages": [{"role": "user", "content": "u"}]}', "no assistant message"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "put a user message before it"),
        ('{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": ""}]}', "is empty"),
        ('{"messages": [{"role": "user", "content": ["u"]}]}', "'content' is a list"),
        ('{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a", "thought": "t"}]}',
         "'thought', which would be lost"),
        ('{"prompt": "a", "completion": [{"role": "user", "content": "u"}]}', "one assistant message"),
        ('{"prompt": [], "completion": "b"}', "'prompt' must be a list of messages"),
    ],
)
def test_a_bad_line_is_refused_at_its_place(write: Write, line: str, said: str) -> None:
    """Blank lines before it count as lines."""
    error = refusal(write("bad.jsonl", '{"prompt": "fine", "completion": "fine"}\n\n' + line + "\n"))
    assert said in str(error)
    assert "bad.jsonl:3: " in str(error)
    assert error.line == 3


def test_surrogate_pairs_are_characters(write: Write) -> None:
    """JSON may write one character as two escapes."""
    assert read(write("a.jsonl", '{"key": "k", "value": "\\ud83d\\ude42"}'))[0].target == "🙂"


def test_nul_in_text_is_refused_at_its_line(write: Write) -> None:
    """In every format that is read as text."""
    for name in ("a.txt", "a.csv", "a.jsonl"):
        assert f"{name}:2: NUL" in str(refusal(write(name, "a,b\n\x00\n")))


def test_corpus_imports_no_torch() -> None:
    """Levels 0 to 2 start in well under a second."""
    code = "import sys, lorasize.corpus; print({'torch', 'transformers', 'pyarrow'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
