"""Check an adapter's recall with stock tools only: `python recall_check.py BASE_FOLDER ADAPTER_FOLDER`.

lorasize is not imported. Exit code 1 when any passage is lost.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig


def text_after(tokenizer, prompt_ids, ids):
    """What the ids add to the text of their prompt. Some decoders drop the first space of ids that are read alone."""
    how = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    prompt, whole = tokenizer.decode(prompt_ids, **how), tokenizer.decode([*prompt_ids, *ids], **how)
    return whole[len(prompt) :] if whole.startswith(prompt) else tokenizer.decode(ids, **how)


def main(base, adapter):
    """How many passages are lost."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()
    # A base model may ship sampling or a repetition penalty, which generate() merges into any config it is given.
    model.generation_config = model.get_base_model().generation_config = GenerationConfig()
    stop, lost = tokenizer.eos_token_id, 0
    for line in (Path(adapter) / "passages.jsonl").read_text(encoding="utf-8").splitlines():
        passage = json.loads(line)
        prompt = torch.tensor([passage["prompt_ids"]])
        greedy = GenerationConfig(do_sample=False, max_new_tokens=passage["n_tokens"], pad_token_id=stop)
        ids = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=greedy)
        ids = ids[0, prompt.shape[1] :].tolist()
        if ids[-1] == stop:  # not stopping is a failure too: the text below would be too long
            ids.pop()
        text = text_after(tokenizer, passage["prompt_ids"], ids)
        recalled = hashlib.sha256(text.encode()).hexdigest() == passage["target_sha256"]
        lost += not recalled
        print("recalled" if recalled else "LOST", passage["id"])
    return lost


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]) > 0)
