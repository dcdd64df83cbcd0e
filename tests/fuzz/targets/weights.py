"""atheris on `adapter_model.safetensors` of an adapter folder: see `target`."""

from target import fuzz_call

from lorasize.recall import _check_weights

if __name__ == "__main__":
    fuzz_call("adapter_model.safetensors", lambda path: _check_weights(path.parent))
