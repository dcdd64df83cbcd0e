"""A server that is already up as the engine, asked as OpenAI's clients ask: vLLM, llama-server and others."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lorasize import models
from lorasize.corpus.tokens import EncodedPassage
from lorasize.errors import ModelError
from lorasize.recall.engines.completion import N_PROBS, decoded_of
from lorasize.recall.verdict import Notify, compare
from lorasize.records import Decoded, DecodeJob, Engine, PassageAddress, RecallReport
from lorasize.units import format_seconds

_AS_SERVED = "as served"
_LARGEST = 50_000_000  # bytes of an answer
_REFUSALS = (400, 422)  # what servers say of a field that they do not know
_SILENT = "the server does not tell the p of every token: how near one of them is to being lost is not known"
# What makes decoding plain, and ids told, where the server knows it: vLLM's names and llama.cpp's.
_EXTRAS: dict[str, Any] = {
    "repetition_penalty": 1.0, "repeat_penalty": 1.0, "cache_prompt": False, "return_token_ids": True,
    "return_tokens_as_token_ids": True,
}  # fmt: skip


@dataclass(frozen=True)
class Server:
    """Where to decode.

    Attributes:
        url: Of the API, such as http://localhost:8000/v1.
        served_model: What the server calls the adapter, or the model that holds it.
        token: Sent as the bearer of an authorisation; never shown.
        patience: Seconds that one passage may take.
    """

    url: str
    served_model: str
    token: str | None = field(default=None, repr=False)
    patience: float = 600.0


def decode_on_server(
    base: Path,
    addresses: Sequence[PassageAddress],
    targets: Sequence[EncodedPassage] | None,
    server: Server,
    *,
    threshold: float,
    notify: Notify = lambda done, total: None,
) -> RecallReport:
    """Let a server decode every passage, and compare with the target.

    Args:
        base: The base model's folder, for its tokenizer.
        addresses: The passages, as the adapter folder names them.
        targets: The same passages with their ids; where None, texts are compared by their digests.
        server: Where.
        threshold: What every target token's p must exceed, where the server tells it.
        notify: Told after each passage.

    Raises:
        ModelError: the server cannot be reached, refuses, does not answer in time, or answers otherwise than expected.
    """
    client = _Client(server)
    job = DecodeJob(
        base=str(base),
        adapter=server.served_model,
        device=_AS_SERVED,
        dtype=_AS_SERVED,
        prompts=tuple(one.prompt_ids for one in addresses),
        targets=tuple(one.target_ids for one in targets) if targets is not None else (),
        n_tokens=tuple(one.n_tokens for one in addresses),
    )
    decoded = client.decode(job, models.load_tokenizer(base).eos_token_id)
    report = compare(job, base, addresses, targets, decoded, threshold=threshold, notify=notify, by_settings=False)
    silent = (_SILENT,) if report.recalled and report.min_probability is None else ()
    engine = Engine(name=client.url, version=client.version, model=server.served_model)
    return report.model_copy(update={"engine": engine, "warnings": (*report.warnings, *silent)})


class _Client:
    """One server, asked for one completion after another."""

    def __init__(self, server: Server) -> None:
        """Refuse what is no address, before anything is sent."""
        if "@" in server.url:
            raise ModelError("the server's address holds a name or a password: give a token in the environment instead")
        if not _is_address(server.url):
            shown = " ".join(server.url.split())
            raise ModelError(f"{shown:.200}: no address of a server, such as http://localhost:8000/v1")
        self.url = server.url.rstrip("/")
        self.version = "version not told"
        self._server = server
        self._opener = urllib.request.build_opener(_NoRedirect)
        probabilities: dict[str, Any] = {"logprobs": N_PROBS}
        self._asked_more = [probabilities | _EXTRAS, probabilities, {}]  # the first that is taken

    def decode(self, job: DecodeJob, stop: int | None) -> Iterator[Decoded]:
        """What comes after each prompt."""
        rows = zip(job.prompts, job.targets or [()] * len(job.prompts), job.n_tokens, strict=True)
        for prompt, target, n_tokens in rows:
            answer = self._complete(prompt, n_tokens)
            if isinstance(answer, dict) and isinstance(answer.get("system_fingerprint"), str):
                self.version = answer["system_fingerprint"][:100]
            yield decoded_of(answer, target, n_tokens, stop, self.url)

    def _complete(self, prompt: Sequence[int], n_tokens: int) -> Any:
        plain = {"model": self._server.served_model, "prompt": list(prompt), "max_tokens": n_tokens, "temperature": 0}
        while True:
            status, answer = self._post({**plain, **self._asked_more[0]})
            if status in _REFUSALS and len(self._asked_more) > 1:
                self._asked_more.pop(0)
            elif status != 200:
                raise ModelError(f"{self.url}: refused with HTTP {status} ({self._said(answer)})")
            else:
                return answer

    def _post(self, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and answer; the answer to what was refused may be anything.

        Raises:
            ModelError: there is none.
        """
        headers = {"Content-Type": "application/json"}
        if self._server.token:
            headers["Authorization"] = f"Bearer {self._server.token}"
        try:
            request = urllib.request.Request(f"{self.url}/completions", json.dumps(body).encode(), headers)
            with self._opener.open(request, timeout=self._server.patience) as stream:
                return stream.status, json.loads(stream.read(_LARGEST))
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _text(error)
        except TimeoutError:
            raise self._late() from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise self._late() from None
            raise ModelError(f"{self.url}: cannot be reached ({self._said(error.reason)})") from None
        except (OSError, http.client.HTTPException) as error:
            what = self._said(f"{type(error).__name__}: {error}")
            raise ModelError(f"{self.url}: the connection broke before the answer was there ({what})") from None
        except ValueError as error:
            raise ModelError(f"{self.url}: its answer is not JSON ({self._said(error)})") from None

    def _late(self) -> ModelError:
        return ModelError(f"{self.url}: no answer within {format_seconds(self._server.patience)}")

    def _said(self, what: object) -> str:
        """Words of the server, in a line, without the token should it repeat it."""
        said = " ".join(str(what).split())
        return (said.replace(self._server.token, "…") if self._server.token else said)[:300]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Goes nowhere else: the token is for this server alone."""

    def redirect_request(self, *_: Any) -> None:
        """None, which leaves the answer an error with its status."""


def _text(error: urllib.error.HTTPError) -> str:
    """The message of an error's body, or what there is of it."""
    try:
        body = error.read(10_000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return error.reason or ""
    try:
        found = json.loads(body)
        found = found.get("error", found)
        return str(found.get("message", found))
    except (ValueError, AttributeError):
        return body or str(error.reason or "")


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        plain = url.isprintable() and " " not in url and (parts.port is None or parts.port > 0)
    except ValueError:  # no number, or an unfinished address of IPv6
        return False
    return plain and parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query + parts.fragment
