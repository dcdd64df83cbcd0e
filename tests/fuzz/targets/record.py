"""atheris on `lorasize.json` of an adapter folder: see `target`."""

from target import fuzz_call

from lorasize.artifacts.adapter_folder import read_record

if __name__ == "__main__":
    fuzz_call("adapter-lorasize.json", "lorasize.json", lambda path: read_record(path.parent))
