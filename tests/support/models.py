"""Tiny models, passages for them, and plans as if a calibration had led there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasize.corpus import corpus_sha256, read_corpus
from lorasize.corpus.tokens import EncodedPassage
from lorasize.records import (
    RECIPE,
    AdapterSpec,
    CorpusSummary,
    Feasibility,
    Passage,
    Plan,
    PlanInputs,
    PlanModel,
    Reading,
    Site,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lorasize.models import BaseModel

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRAINING_TEXT = """
The harbour office opens at six and closes at nine. A vessel longer than forty metres must call the harbour master on
channel twelve before it passes the outer buoy. The pilot boards between the second and the third buoy, in good weather
only; in a storm the vessel waits outside. Fees are due on the day of arrival and are paid at the office, by card or by
transfer. A vessel that leaves before noon pays half. Water and power are at every berth, and the meter is read in the
morning. Waste oil goes to the tank behind the slipway, never into the basin. Nobody sails in the basin after dark.

The lighthouse was built in 1871 and burned colza oil until 1904. Its light is seen for eighteen miles in clear weather.
Jerry Becerra: 9100672710. Agnes Holm: 4400128875. The prompt is given, and the target must come back as it was written.
"""


def save_model(architecture: Any, config: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """The folder, with a model of this architecture from seed 0 and the tokenizer in it."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = architecture(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tokenizer(folder: Path) -> Path:
    """A folder with a byte-level BPE tokenizer of 400 tokens: ChatML, no BOS, stop token <|im_end|>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator([TRAINING_TEXT], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_llama(tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """A folder with a random Llama: 4 layers, 32 wide, 4 heads on 2 key-value heads, tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return save_model(LlamaForCausalLM, config, tokenizer, folder)


def save_tiny_gpt2(tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """A folder with a random GPT-2: 4 layers, 32 wide, 4 heads, Conv1D layers, dropout 0.1 as GPT-2 has it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=256,
        n_embd=32,
        n_layer=4,
        n_head=4,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return save_model(GPT2LMHeadModel, config, tokenizer, folder)


def save_able_llama(tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """A folder with a random Llama that rank 1 on one layer teaches 24 tokens: 96 wide, large weights, MLP 384."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return save_model(LlamaForCausalLM, config, tokenizer, folder)


def plan_by_hand(folder: Path, corpus: Path, site: Site, rank: int, **reading: Any) -> Plan:
    """A plan for this corpus and model with the adapter given, as if a calibration had led to it."""
    from lorasize import models
    from lorasize.corpus.tokens import encode_corpus
    from lorasize.models.adapters import count_parameters

    how = Reading(**reading)
    passages, files = read_corpus([corpus], how)
    encoded = encode_corpus(passages, models.load_tokenizer(folder), how, 256)
    fingerprint = models.fingerprint(folder)
    base = models.load(str(folder), device="cpu")
    n_parameters = count_parameters(models.linear_shapes(base.model), site, rank)
    known: dict[str, Any] = {"layers_to_transform": site.layers_to_transform, "target_modules": site.target_modules}
    known |= {"n_parameters": n_parameters, "bytes": 4 * n_parameters, "bits_per_parameter": 1.0}
    about = {"ref": str(folder), "fingerprint": fingerprint.digest, "dtype": "float32", "n_layers": 4}
    digests = {"corpus_sha256": corpus_sha256(files), "model_fingerprint": fingerprint.digest}
    digests |= {"tokenizer_sha256": fingerprint.tokenizer, "calibration_sha256": "", "recipe": RECIPE}
    return Plan(
        status="ok",
        model=PlanModel(**about),
        corpus=CorpusSummary(
            n_passages=len(encoded),
            n_tokens=sum(p.n_tokens for p in encoded),
            sha256=digests["corpus_sha256"],
            files=files,
            reading=how,
        ),
        demand=None,
        feasibility=Feasibility(feasible=True),
        adapter=AdapterSpec(rank=rank, lora_alpha=rank, **known),
        prediction=None,
        inputs=PlanInputs(**digests),
    )


def passage(prompt: Sequence[int], target: Sequence[int]) -> EncodedPassage:
    """A passage of these ids; its text is of no interest to training."""
    nothing = Passage(id="x", file="x", line=1, prompt="", target="x")
    return EncodedPassage(nothing, tuple(prompt), tuple(target))


def random_passages(torch: Any, sizes: Sequence[tuple[int, int]], seed: int = 0) -> list[EncodedPassage]:
    """Passages of random ids, given (prompt, target) lengths."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> list[int]:
        return torch.randint(3, 400, (n,), generator=generator).tolist()

    return [passage(draw(prompt), draw(target)) for prompt, target in sizes]


@contextmanager
def adapter(base: BaseModel, site: Site, rank: int, seed: int = 0) -> Iterator[Any]:
    """The model with a fresh adapter, taken off again at the end."""
    from lorasize.models import adapters

    adapted = adapters.attach(base.model, site, rank, seed)
    try:
        yield adapted
    finally:
        adapters.detach(adapted)


def disturb(torch: Any, adapted: Any, scale: float = 0.1) -> None:
    """Move the adapter away from zero, so that both of its matrices have a gradient."""
    from lorasize.models import adapters

    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapters.parameters(adapted).values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def plain_losses(torch: Any, model: Any, one: EncodedPassage) -> Any:
    """Token losses of one passage by the model's own forward, no batch, no padding, no cache."""
    ids = torch.tensor([[*one.prompt_ids, *one.target_ids]])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(one.prompt_ids) - 1 : -1].float()
    return torch.nn.functional.cross_entropy(logits, torch.tensor(one.target_ids), reduction="none")
