"""What engines answer, in the form of each, and a stand-in for a server that is up."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

from lorasize.corpus.tokens import EncodedPassage
from lorasize.errors import ModelError

FAKES = ROOT / "tests" / "support" / "fakes"  # packages by the names of the engines'
LIKELY, OTHER = -0.1, -3.0  # ln p of a token that comes, and of another


def content(ids: Sequence[int], stops: bool = True) -> dict[str, Any]:
    """An answer of llama.cpp."""
    entries = [
        {"id": one, "token": "x", "logprob": LIKELY, "top_logprobs": [
            {"id": one, "token": "x", "logprob": LIKELY}, {"id": one + 1, "token": "y", "logprob": OTHER}
        ]}
        for one in ids
    ]  # fmt: skip
    choice = {"text": "x", "index": 0, "logprobs": {"content": entries}, "finish_reason": "stop" if stops else "length"}
    return {"choices": [choice], "object": "text_completion", "system_fingerprint": "b1-abc"}


def named(ids: Sequence[int], stops: bool = True) -> dict[str, Any]:
    """An answer of vLLM that was asked to name tokens by their ids."""
    names = [f"token_id:{one}" for one in ids]
    told = {
        "tokens": names, "token_logprobs": [LIKELY] * len(ids), "text_offset": [0] * len(ids),
        "top_logprobs": [{f"token_id:{one}": LIKELY, f"token_id:{one + 1}": OTHER} for one in ids],
    }  # fmt: skip
    choice = {"text": "x", "index": 0, "logprobs": told, "finish_reason": "stop" if stops else "length"}
    return {"choices": [{**choice, "token_ids": list(ids)}]}


def plain(text: str, stops: bool = True) -> dict[str, Any]:
    """An answer with no more than a text."""
    return {"choices": [{"text": text, "index": 0, "logprobs": None, "finish_reason": "stop" if stops else "length"}]}


def answers(passages: Sequence[EncodedPassage]) -> dict[str, Any]:
    """What llama.cpp answers of passages that it recalls, by the prompt's ids as JSON."""
    return {json.dumps(list(one.prompt_ids)): content(one.target_ids) for one in passages}


Reply = Callable[[BaseHTTPRequestHandler, dict[str, Any]], "tuple[int, Any] | None"]


@contextmanager
def stand_in(reply: Reply) -> Iterator[str]:
    """The address of a server that answers each completion asked for by `reply`; None of it: the connection breaks."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = reply(self, asked)
            if answer is None:
                return
            body = answer[1] if isinstance(answer[1], bytes) else json.dumps(answer[1]).encode()
            self.send_response(answer[0])
            if answer[0] in (301, 302, 307):
                self.send_header("Location", answer[1]["to"])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def assert_one_line(ask: Callable[[], object], said: str) -> None:
    """What is asked fails, and in a line."""
    with pytest.raises(ModelError, match=said) as caught:
        ask()
    assert "\n" not in str(caught.value)


def assert_ended(pids: Path) -> None:
    """The engine and the process that it started, by what it wrote down, have ended."""
    engine, child = map(int, pids.read_text("utf-8").split())
    assert gone(engine)
    assert gone(child)


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody waits for stays as a zombie."""
    for _ in range(500):
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat")
            if state.exists() and state.read_text("utf-8").rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.02)
    return False
