"""atheris on `SHA256SUMS` of an adapter folder: see `target`."""

from target import fuzz_call

from lorasize.artifacts.adapter_folder import changed_files

if __name__ == "__main__":
    fuzz_call("adapter-SHA256SUMS", "SHA256SUMS", lambda path: changed_files(path.parent))
