"""atheris on `passages.jsonl` of an adapter folder: see `target`."""

from target import fuzz_call

from lorasize.artifacts.adapter_folder import read_addresses

if __name__ == "__main__":
    fuzz_call("adapter-passages.jsonl", "passages.jsonl", lambda path: read_addresses(path.parent))
