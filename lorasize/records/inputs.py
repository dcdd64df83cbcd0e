"""What goes in: passages, corpora, feasibility, models, sites and adapters."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field, JsonValue

from lorasize.records.words import STRICT, Columns, PassageKind


class Passage(BaseModel):
    """One thing to memorise: `prompt` is given, `target` must come back.

    `start` and `end` are byte offsets of the target in its file, None for structured formats. `messages` holds the
    chat turns (role, content) before the target when the corpus is a chat; the prompt is then empty and rendered later
    by the model's chat template. A passage of `kind` "text" has no prompt of its own: its prompt is empty until
    `tokens` packs or splits it and gives it an address. `gap` is the file's text between the text block before and
    this one.

    `chat` is JSON of what a chat template is given besides role and content (`tools`, `chat_template_kwargs`, and the
    `messages` themselves where one holds more), "" where there is nothing. `columns` holds the columns (name, value)
    that the prompt template names.
    """

    model_config = STRICT
    id: str
    file: str
    line: int = Field(ge=1)
    prompt: str
    target: str
    start: int | None = None
    end: int | None = None
    messages: tuple[tuple[str, str], ...] = ()
    kind: PassageKind = "record"
    gap: str = ""
    chat: str = ""
    columns: tuple[tuple[str, str], ...] = ()


class CorpusFile(BaseModel):
    """One corpus file as it was read."""

    model_config = STRICT
    path: str
    sha256: str


class Reading(BaseModel):
    """How corpus files become passages; part of a plan so that apply reads them in the same way.

    `columns`: what becomes of a column that is neither used nor named. `system`: put before chats that have no system
    turn. `chat_template_kwargs`: given to the chat template, below what a record gives it itself. `rendered_at`: the
    day (ISO) at whose midnight prompts are rendered, set where the chat template prints the time.
    """

    model_config = STRICT
    format: Literal["auto", "text", "markdown", "json", "jsonl", "csv", "tsv", "parquet"] = "auto"
    fields: dict[str, str] = {}
    prompt_template: str | None = None
    passage_tokens: int = Field(default=512, ge=8)
    columns: Columns = "warn"
    system: str | None = None
    chat_template_kwargs: dict[str, JsonValue] = {}
    rendered_at: str | None = None


class PromptSample(BaseModel):
    """One prompt as it is sent: its text (the middle left out where it is long), and its ids' number and edges."""

    model_config = STRICT
    passage: str
    text: str
    n_ids: int
    first_ids: tuple[int, ...]
    last_ids: tuple[int, ...]


class CorpusSummary(BaseModel):
    """What was planned for. `n_tokens` counts target tokens, stop tokens included; `n_positions` prompts too.

    `named`: what the user named, where it is not the files themselves (a folder, a glob). `unused_columns`: columns
    that are neither used nor named. `sample`: one prompt as it is sent.
    """

    model_config = STRICT
    n_passages: int
    n_tokens: int
    n_positions: int | None = None
    sha256: str
    files: tuple[CorpusFile, ...]
    reading: Reading = Reading()
    named: tuple[str, ...] = ()
    unused_columns: tuple[str, ...] = ()
    sample: PromptSample | None = None


class FeasibilityIssue(BaseModel):
    """Two passages that no rank can hold both; or, of kind `token`, a token that the head cannot tell from others.

    `passages` are their indices, `position` the target token at which they part (None where no tokenizer was at hand),
    `file` and `line` the later one's. Of kind `token` both indices are the same, and `position` and `line` the token's.
    """

    model_config = STRICT
    kind: Literal["same_prompt", "same_prefix", "token"]
    passages: tuple[int, int]
    position: int | None
    file: str
    line: int
    message: str


class Feasibility(BaseModel):
    """The lint's verdict."""

    model_config = STRICT
    feasible: bool
    issues: tuple[FeasibilityIssue, ...] = ()


class ModelFingerprint(BaseModel):
    """Digests (sha256, hex) of what decides a base model's output."""

    model_config = STRICT
    weights: str
    config: str
    tokenizer: str

    @property
    def digest(self) -> str:
        """One digest of all three."""
        return hashlib.sha256(f"{self.weights}{self.config}{self.tokenizer}".encode()).hexdigest()


class Site(BaseModel):
    """Where an adapter sits: module set × layer set, rank left open."""

    model_config = STRICT
    target_modules: tuple[str, ...]
    layers_to_transform: tuple[int, ...]


class Activation(BaseModel):
    """Where an adapter begins to act: at the last place in the prompt where these tokens stand; without them, nowhere.

    PEFT's activated LoRA. `text` is what the tokens say.
    """

    model_config = STRICT
    text: str
    alora_invocation_tokens: tuple[int, ...] = Field(min_length=1)

    def begins(self, prompt_ids: Sequence[int]) -> int | None:
        """The position in a prompt from which the adapter acts; None where it does not."""
        tokens = self.alora_invocation_tokens
        places = range(len(prompt_ids) - len(tokens), -1, -1)
        return next((k for k in places if tuple(prompt_ids[k : k + len(tokens)]) == tokens), None)


MAX_RANK = 4096  # beyond it a number is taken for a mistake; vLLM serves 512


class AdapterSpec(BaseModel):
    """A site with a rank. `lora_alpha` always equals `rank`, so the scaling is 1 in every runtime."""

    model_config = STRICT
    rank: int = Field(ge=1, le=MAX_RANK)
    lora_alpha: int = Field(ge=1, le=MAX_RANK)
    target_modules: tuple[str, ...]
    layers_to_transform: tuple[int, ...]
    n_parameters: int
    bytes: int
    bits_per_parameter: float

    @property
    def site(self) -> Site:
        """The same without its rank."""
        return Site(target_modules=self.target_modules, layers_to_transform=self.layers_to_transform)
