"""atheris on `adapter_model.safetensors` of an adapter folder: see `target`."""

from target import fuzz_call

from lorasize.recall import WEIGHTS, _check_weights

if __name__ == "__main__":
    fuzz_call(f"adapter-{WEIGHTS}", WEIGHTS, lambda path: _check_weights(path.parent))
