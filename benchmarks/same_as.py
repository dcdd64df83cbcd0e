"""Did a change of the code change what the commands give? This tree against an older commit, file by file.

    python benchmarks/same_as.py COMMIT
    python benchmarks/same_as.py COMMIT --tiny --keep FOLDER

Both trees run `lorasize plan`, `apply` and `verify` on examples/update with the builtin model, on the CPU, with seed 0
and the calibration committed at COMMIT: the same interpreter, the same number of threads, a folder of its own each.
Then every file that either left is compared byte for byte. What a clock or the memory of the process decides is left
out; each line says which fields those were. Printed: one line a file, `same` or the first difference; exit code 1
where anything differs.

--tiny takes seconds in place of minutes: a random Llama made on the spot, a few records, and all three commands in one
process. Both trees plan with a quick calibration that COMMIT makes; --calibrate has this tree make one too, and
compares them.
--keep FOLDER keeps what COMMIT gave, and takes it from there in the next run on the same libraries.
--without PATH leaves a field out on purpose, in every JSON file that has it: prediction.drift, observations.*.drift,
base_model_name_or_path (older commits wrote the base as it was typed, this tree a folder where it is none of the hub).

COMMIT is one of the repository of the folder one stands in, and this tree is that repository as it lies there. Not
compared: what is written to the terminal, and the conversion of the builtin model, which lies converted in the cache.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CALIBRATION = "calibrations/builtin-smollm2-135m-instruct.cpu.float32.json"
CORPUS = ("page.md", "table.jsonl")
GIVEN = {"model", *CORPUS}  # in each folder before anything is run
ALWAYS = ("--device", "cpu", "--quiet")
CALIBRATE = ("calibrate", "model", "--seed", "0", "--preset", "quick", "--out", "made.json", *ALWAYS)
LIBRARIES = ("torch", "transformers", "peft", "numpy", "scipy", "pydantic", "tokenizers")
RECORDS = 8  # of the table, in the tiny corpus

# What a clock or the memory of the process decides, by file; `*` is every item of a list.
MEASURED: dict[str, tuple[str, ...]] = {
    "apply.json": ("seconds", "tokens_per_second"),
    "adapter/lorasize.json": ("seconds", "tokens_per_second"),
    "adapter/events.jsonl": ("*.seconds",),
    "calibrations/planned.json": (
        "observations.*.seconds", "observations.*.seconds_per_step", "observations.*.peak_memory_bytes",
    ),
    "made.json": (
        "observations.*.seconds", "observations.*.seconds_per_step", "observations.*.peak_memory_bytes",
        "cost", "provenance.seconds", "provenance.made",
    ),
}  # fmt: skip

# Runs some commands in one process, as `python -m lorasize` would, and notes their exit codes.
DRIVER = """
import json, pathlib, runpy, sys
tree, commands = sys.argv[1], json.loads(sys.argv[2])
import lorasize
assert pathlib.Path(lorasize.__file__).is_relative_to(tree), f"{lorasize.__file__} is not of {tree}"
codes = pathlib.Path("exit_codes.json")
found = json.loads(codes.read_text()) if codes.exists() else {}
for command in commands:
    sys.argv = ["lorasize", *command]
    try:
        runpy.run_module("lorasize", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        found[command[0]] = end.code
codes.write_text(json.dumps(found))
"""


@dataclass(frozen=True)
class Side:
    """One of the two trees: its package, and the folder in which its commands are run."""

    tree: Path
    folder: Path
    threads: int

    def prepare(self, inputs: Path) -> None:
        """A folder with the corpus in it, and the tiny model if there is one."""
        self.folder.mkdir(parents=True)
        for name in CORPUS:
            shutil.copyfile(inputs / name, self.folder / name)
        if (inputs / "model").is_dir():
            (self.folder / "model").symlink_to(inputs / "model", target_is_directory=True)

    def plan_with(self, calibration: Path) -> None:
        """Put the calibration where `plan` and, learning from its run, `apply` find it."""
        (self.folder / "calibrations").mkdir()
        shutil.copyfile(calibration, self.folder / "calibrations" / "planned.json")

    def run(self, *commands: Sequence[str]) -> None:
        """Run commands in one process.

        Raises:
            SystemExit: the process broke off; what it said is shown.
        """
        kept = {k: v for k, v in os.environ.items() if not k.startswith("LORASIZE_") or k == "LORASIZE_CACHE"}
        path = os.pathsep.join(filter(None, [str(self.tree), os.environ.get("PYTHONPATH")]))
        kept |= {"PYTHONPATH": path, "OMP_NUM_THREADS": str(self.threads), "OMP_WAIT_POLICY": "PASSIVE"}
        kept |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-P", "-c", DRIVER, str(self.tree), json.dumps(commands)]
        done = subprocess.run(command, cwd=self.folder, env=kept, capture_output=True, text=True, check=False)
        if done.returncode or not self._finished(commands):
            raise SystemExit(f"{self.tree}: {', '.join(c[0] for c in commands)} failed\n{done.stderr[-3000:]}")

    def _finished(self, commands: Sequence[Sequence[str]]) -> bool:
        """Whether no command was refused: over budget (1), not proven (4) and infeasible (5) are results."""
        codes = json.loads((self.folder / "exit_codes.json").read_text("utf-8"))
        return all(codes[command[0]] in (0, 1, 4, 5) for command in commands)


def commands(tiny: bool) -> list[list[str]]:
    """Plan, apply and verify; their reports lie beside what they make."""
    model = ["--model", "model"] if tiny else []
    plan = ["plan", *CORPUS, "--calibration", "calibrations/planned.json", *model, *ALWAYS, *_reports("plan")]
    apply = ["apply", "--seed", "0", *ALWAYS, "--report", "json=apply.json"]
    return [plan, apply, ["verify", "adapter", *ALWAYS, *_reports("verify")]]


def _reports(name: str) -> Iterator[str]:
    """Each kind of report, of a command that measures no time."""
    for kind, suffix in {"json": "json", "markdown": "md", "junit": "xml", "html": "html", "table": "txt"}.items():
        yield from ("--report", f"{kind}={name}.{suffix}")


def run_all(sides: Sequence[Side], inputs: Path, tiny: bool, calibrate: bool) -> None:
    """All commands on the sides that are left to run: in turn, or at the same time where each has one thread."""
    calibration = inputs / "calibration.json"
    if not calibration.exists():  # tiny, and nothing is kept: the first side is COMMIT
        sides[0].run(CALIBRATE)
        shutil.copyfile(sides[0].folder / "made.json", calibration)

    def run(side: Side) -> None:
        side.plan_with(calibration)
        if tiny:
            side.run(*([CALIBRATE] if calibrate and side is sides[-1] else []), *commands(tiny))
        for command in () if tiny else commands(tiny):
            side.run(command)

    with ThreadPoolExecutor(len(sides) if tiny else 1) as pool:
        list(pool.map(run, sides))


def git(*arguments: str) -> bytes:
    """What git says of the repository one stands in.

    Raises:
        SystemExit: it refuses; its reason is on stderr.
    """
    done = subprocess.run(["git", *arguments], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise SystemExit(f"git {' '.join(arguments)} failed")
    return done.stdout


def prepare_inputs(tree: Path, inputs: Path, tiny: bool) -> None:
    """Corpus and calibration of COMMIT; or a few of its records, the start of its page, and a model."""
    inputs.mkdir(parents=True)
    for name in CORPUS:
        text = (tree / "examples" / "update" / name).read_text("utf-8")
        if tiny:
            kept = text.splitlines(keepends=True)[:RECORDS] if name.endswith("l") else text.split(". ")[:1]
            text = "".join(kept)
        (inputs / name).write_text(text, "utf-8")
    if tiny:
        make_model(inputs / "model", (tree / "examples" / "update" / "page.md").read_text("utf-8"))
    else:
        shutil.copyfile(tree / CALIBRATION, inputs / "calibration.json")


def make_model(folder: Path, text: str) -> None:
    """A random Llama that learns a dozen tokens with rank 1: 4 layers, 96 wide, large weights; 400 tokens of BPE."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet, special = sorted(pre_tokenizers.ByteLevel.alphabet()), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator([text], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=special[2], pad_token=special[0], clean_up_tokenization_spaces=False,
        model_max_length=256,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=96, intermediate_size=384, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3,
            tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def kept_as(sha: str, tiny: bool, threads: int) -> str:
    """A name for what COMMIT gives: another library, number of threads or version of this script may change it."""
    versions = [importlib.metadata.version(name) for name in LIBRARIES]
    about = json.dumps([sys.version, versions, threads, Path(__file__).read_text("utf-8")])
    return f"{sha[:12]}-{'tiny' if tiny else 'full'}-{hashlib.sha256(about.encode()).hexdigest()[:8]}"


def made(folder: Path) -> set[str]:
    """Every file that the commands left, by its path in the folder."""
    paths = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {path.as_posix() for path in paths if path.parts[0] not in GIVEN}


def compare(before: Path, after: Path, without: Sequence[str]) -> bool:
    """Print a line for every file; whether all are the same."""
    names = sorted(made(before) | made(after), key=lambda name: (name.endswith("SHA256SUMS"), name))
    if not (after / "made.json").exists():  # no calibration was asked of this tree
        names, without = [name for name in names if name != "made.json"], [*without, "calibrate"]
    touched: set[str] = set()  # files of the adapter with something left out: their sums differ by right
    same = True
    for name in names:
        if name.endswith("SHA256SUMS"):
            paths = [(other.removeprefix("adapter/"),) for other in sorted(touched)]
        else:
            paths = [tuple(path.split(".")) for path in (*MEASURED.get(name, ()), *without)]
        difference, left_out = difference_of(before / name, after / name, paths)
        touched |= {name} if left_out else set()
        same = same and difference is None
        said = f" (without {', '.join(left_out)})" if left_out else ""
        print(f"{name:34}{'same' if difference is None else 'DIFFERS: ' + difference}{said}")
    return same


def difference_of(before: Path, after: Path, paths: Sequence[tuple[str, ...]]) -> tuple[str | None, list[str]]:
    """The first difference of two files, and the fields that were left out of them."""
    if not (before.is_file() and after.is_file()):
        return f"only {'COMMIT' if before.is_file() else 'this tree'} has it", []
    if before.suffix not in (".json", ".jsonl") and before.name != "SHA256SUMS":
        return _of_bytes(before, after), []
    values, left_out = [read(before), read(after)], []
    for path in paths:
        found = [remove(value, path) for value in values]
        left_out += [".".join(path)] if any(found) else []
    first = _of_values(*values)
    return first or (None if left_out else _of_bytes(before, after)), left_out


def read(path: Path) -> Any:
    """JSON; a list of it, where there is one on each line; or the sums by file."""
    text = path.read_text("utf-8")
    if path.name == "SHA256SUMS":
        return dict(line.split("  ")[::-1] for line in text.splitlines())
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


def remove(value: Any, path: tuple[str, ...]) -> int:
    """Take a field out of a JSON value; how often it was there."""
    key, *rest = path
    if key == "*" and isinstance(value, list):
        return sum(remove(item, tuple(rest)) for item in value) if rest else 0
    if not isinstance(value, dict) or key not in value:
        return 0
    if rest:
        return remove(value[key], tuple(rest))
    del value[key]
    return 1


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value in a JSON value with its path, in order."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not items:
        yield path, value
    for key, item in items:
        yield from leaves(item, f"{path}.{key}" if path else str(key))


def _of_values(before: Any, after: Any) -> str | None:
    for one, other in itertools.zip_longest(leaves(before), leaves(after)):
        if one is None or other is None:
            return f"{'this tree' if one is None else 'COMMIT'} alone has {(one or other)[0]}"
        if one[0] != other[0]:
            return f"{other[0]} stands where {one[0]} did"
        if repr(one[1]) != repr(other[1]):  # 1 is not 1.0, nor is it true
            return f"{one[0]} was {one[1]!r:.80}, is {other[1]!r:.80}"
    return None


def _of_bytes(before: Path, after: Path) -> str | None:
    if before.read_bytes() == after.read_bytes():
        return None
    if before.suffix == ".safetensors":
        return _of_weights(before, after)
    lines = [path.read_text("utf-8").splitlines() for path in (before, after)]
    for number, (one, other) in enumerate(itertools.zip_longest(*lines), 1):
        if one is None or other is None:
            return f"{'this tree' if one is None else 'COMMIT'} alone has line {number}"
        if one != other:
            start = max(0, len(os.path.commonprefix([one, other])) - 30)
            return f"line {number} was {one[start:]!r:.80}, is {other[start:]!r:.80}"
    return "the ends of lines"


def _of_weights(before: Path, after: Path) -> str:
    from safetensors.numpy import load_file

    old, new = load_file(before), load_file(after)
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            return f"only {'COMMIT' if name in old else 'this tree'} has {name}"
        if old[name].shape != new[name].shape:
            return f"{name} was {old[name].shape}, is {new[name].shape}"
        if (old[name] != new[name]).any():
            return f"{name} differs by up to {abs(old[name] - new[name]).max():.3g}"
    return "the file's head; the weights are the same"


def main() -> None:
    """Print a line for every file, and exit with 1 where one differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--calibrate", action="store_true", help="with --tiny")
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    parser.add_argument("--without", action="append", default=[], metavar="PATH")
    parser.add_argument("--threads", type=int, metavar="N", help="by default 1 for --tiny, else as many as cores")
    asked = parser.parse_args()
    threads = asked.threads or (1 if asked.tiny else os.cpu_count() or 1)
    here = Path(git("rev-parse", "--show-toplevel").decode().strip())
    sha = git("rev-parse", "--verify", f"{asked.commit}^{{commit}}").decode().strip()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        place = (asked.keep.resolve() if asked.keep else scratch) / kept_as(sha, asked.tiny, threads)
        before, after = Side(scratch / "tree", place / "before", threads), Side(here, scratch / "after", threads)
        known = (place / "done").exists()
        if not known:
            shutil.rmtree(place, ignore_errors=True)
            with tarfile.open(fileobj=io.BytesIO(git("archive", sha))) as archive:
                archive.extractall(before.tree, filter="data")
            prepare_inputs(before.tree, place / "inputs", asked.tiny)
        sides = [after] if known else [before, after]
        for side in sides:
            side.prepare(place / "inputs")
        run_all(sides, place / "inputs", asked.tiny, asked.calibrate)
        (place / "done").touch()
        same = compare(before.folder, after.folder, asked.without)
    print(f"{'the same' if same else 'NOT the same'} as {sha[:12]}")
    raise SystemExit(0 if same else 1)


if __name__ == "__main__":
    main()
