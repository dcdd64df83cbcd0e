"""A server that is up as the engine: what it is asked, whatever form it answers in, and that the token goes nowhere."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from support.engines import Reply, content, named, plain, stand_in

from lorasize import cli
from lorasize.corpus.tokens import EncodedPassage
from lorasize.errors import ModelError
from lorasize.recall.engines.server import Server
from lorasize.records import RecallReport
from lorasize.verbs.verify import verify

TOKEN = "s3cret-token"


def wanted(passages: list[EncodedPassage], asked: dict[str, Any]) -> EncodedPassage:
    """The passage that is asked for."""
    return next(one for one in passages if list(one.prompt_ids) == asked["prompt"])


def served(folder: Path, passages: list[EncodedPassage] | None, reply: Reply, **how: Any) -> RecallReport:
    """The verdict on a server that replies so."""
    with stand_in(reply) as url:
        return verify(folder, passages, engine=Server(url, "facts", **how))


def test_all_comes_back_from_llama_cpp_s_form(memorised: Path, passages: list[EncodedPassage]) -> None:
    seen: list[tuple[str, str | None, dict[str, Any]]] = []

    def reply(request: Any, asked: dict[str, Any]) -> tuple[int, Any]:
        seen.append((request.path, request.headers["Authorization"], asked))
        return 200, content(wanted(passages, asked).target_ids)

    report = served(memorised, passages, reply, token=TOKEN)
    assert (report.recalled, report.threshold_met, report.warnings) == (True, True, ())
    assert report.engine is not None
    assert (report.engine.version, report.engine.model) == ("b1-abc", "facts")
    assert report.engine.name.startswith("http://127.0.0.1:")
    assert {(path, bearer) for path, bearer, _ in seen} == {("/v1/completions", f"Bearer {TOKEN}")}
    asked = seen[0][2]
    plainly = {"model": "facts", "temperature": 0, "repetition_penalty": 1.0, "cache_prompt": False}
    assert plainly.items() <= asked.items()
    assert (asked["prompt"], asked["max_tokens"]) == (list(passages[0].prompt_ids), passages[0].n_tokens)
    assert TOKEN not in report.model_dump_json() + repr(Server("http://a", "b", TOKEN))


def test_all_comes_back_from_vllm_s_form(memorised: Path, passages: list[EncodedPassage]) -> None:
    report = served(memorised, passages, lambda _, asked: (200, named(wanted(passages, asked).target_ids)))
    assert (report.recalled, report.threshold_met) == (True, True)
    assert report.engine is not None
    assert report.engine.version == "version not told"


def test_a_server_that_refuses_fields_is_asked_for_less(memorised: Path, passages: list[EncodedPassage]) -> None:
    fields: list[set[str]] = []

    def reply(_: Any, asked: dict[str, Any]) -> tuple[int, Any]:
        fields.append(asked.keys() - {"model", "prompt", "max_tokens", "temperature"})
        if "logprobs" in asked:
            return 400, {"error": {"message": "unknown field"}}
        return 200, plain(wanted(passages, asked).passage.target)

    report = served(memorised, passages, reply)
    assert report.recalled
    assert [len(names) for names in fields] == [6, 1, 0, 0, 0]
    (warning,) = report.warnings
    assert warning.startswith("the server does not tell the p of every token")


def test_a_text_alone_is_compared_by_the_same_rule(memorised: Path, passages: list[EncodedPassage]) -> None:
    def reply(_: Any, asked: dict[str, Any]) -> tuple[int, Any]:
        one = wanted(passages, asked)
        if one is passages[0]:
            return 200, plain(one.passage.target.replace("672", "682", 1))
        return 200, plain(one.passage.target, stops=one is not passages[2])

    report = served(memorised, passages, reply)
    assert [passage.recalled for passage in report.passages] == [False, True, False]
    first, last = report.failures
    assert (first.expected, first.got) == ("67", "682710")
    assert (last.position, last.expected, last.got) == (passages[2].n_tokens - 1, "<|im_end|>", "(nothing)")
    assert [f.position for f in served(memorised, None, reply).failures] == [-1, -1]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (lambda *_: (401, {"error": {"message": f"bad key {TOKEN}"}}), r"refused with HTTP 401 \(bad key …\)"),
        (lambda *_: (404, b"no such model"), r"refused with HTTP 404 \(no such model\)"),
        (lambda *_: (302, {"to": "http://127.0.0.1:9/"}), "refused with HTTP 302"),
        (lambda *_: (307, {"to": "http://127.0.0.1:9/"}), "refused with HTTP 307"),
        (lambda *_: (400, b""), "refused with HTTP 400"),
        (lambda *_: (200, b"<html>"), "its answer is not JSON"),
        (lambda *_: (200, {"choices": []}), "its answer is no completion"),
        (lambda *_: None, "the connection broke before the answer was there"),
        (lambda *_: time.sleep(30), "no answer within 0.2 s"),
    ],
    ids=["401", "404", "302", "307", "400", "html", "empty", "breaks", "hangs"],
)
def test_what_goes_wrong_is_one_line(memorised: Path, reply: Reply, said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        served(memorised, None, reply, token=TOKEN, patience=0.2 if "within" in said else 60.0)
    assert TOKEN not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:9/v1", "http://127.0.0.1:9/v1: cannot be reached"),
        ("http://me:hunter2@a/v1", "holds a name or a password"),
        ("http://", "no address of a server"),
        ("ftp://a/v1", "no address of a server"),
        ("http://a/v1?key=1", "no address of a server"),
        ("http://a:b/v1", "no address of a server"),
        ("http://[a/v1", "no address of a server"),
        ("http://a b/v1", "no address of a server"),
    ],
)
def test_what_is_no_address_is_refused(memorised: Path, url: str, said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        verify(memorised, None, engine=Server(url, "facts"))
    assert "hunter2" not in str(caught.value)


@pytest.mark.usefixtures("_folder")
def test_the_command_takes_the_token_from_the_environment(
    memorised: Path, passages: list[EncodedPassage], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def reply(request: Any, asked: dict[str, Any]) -> tuple[int, Any]:
        if request.headers["Authorization"] != f"Bearer {TOKEN}":
            return 401, {"error": {"message": f"not {request.headers['Authorization']}"}}
        ids = wanted(passages, asked).target_ids
        return 200, content(ids if asked["model"] == "facts" else ids[:2])

    with stand_in(reply) as url:
        command = ["verify", str(memorised), "--engine", url, "-q", "--served-model"]
        monkeypatch.setenv("OPENAI_API_KEY", "another-secret")
        assert cli.main([*command, "facts"]) == 2
        said = capsys.readouterr()
        assert "HTTP 401" in said.err
        assert "LORASIZE_ENGINE_TOKEN or OPENAI_API_KEY in the environment holds the token" in said.err
        assert "another-secret" not in said.out + said.err
        assert cli.main([*command[:3], url.replace("//", "//me:hunter2@"), "--served-model", "facts"]) == 2
        said = capsys.readouterr()
        assert "hunter2" not in said.out + said.err
        monkeypatch.setenv("LORASIZE_ENGINE_TOKEN", TOKEN)
        assert cli.main([*command, "facts"]) == 0
        assert cli.main([*command, "base"]) == 4
        said = capsys.readouterr()
        assert TOKEN not in said.out + said.err
        assert "LOST: 0 of 3 passages recalled" in said.out
