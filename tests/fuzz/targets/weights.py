"""atheris on `adapter_model.safetensors` of an adapter folder: see `target`."""

from target import fuzz_call

from lorasize.artifacts.adapter_folder import WEIGHTS, check_weights

if __name__ == "__main__":
    fuzz_call(f"adapter-{WEIGHTS}", WEIGHTS, lambda path: check_weights(path.parent))
