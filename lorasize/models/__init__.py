"""Base models: find, convert, fingerprint and load them, and read the shapes of their linear layers.

A model reference enters; a local folder that stock transformers loads (safetensors and tokenizer), its digests, and
the loaded model leave. `open` finds a model and loads it when asked. Linear
layers are read off the model itself, so a new architecture needs no table of names. Only safetensors and GGUF are read,
never a pickle; no remote code runs.
"""

from lorasize.models.conversion import quiet_transformers
from lorasize.models.devices import device_name, dtype_name, pick_device, pick_dtype
from lorasize.models.fingerprint import fingerprint
from lorasize.models.folder import ModelFolder, load, open
from lorasize.models.loading import (
    BaseModel,
    load_tokenizer,
    load_weights,
    max_positions,
    n_ids,
    n_layers,
    quantized_as,
    record_of,
)
from lorasize.models.recorded import recorded_base
from lorasize.models.references import BUILTIN, gguf_of, name_for_loading, resolve
from lorasize.models.shapes import LinearShape, decoder_layers, linear_shapes, transposes_weights, widening_module

__all__ = [
    "BUILTIN",
    "BaseModel",
    "LinearShape",
    "ModelFolder",
    "decoder_layers",
    "device_name",
    "dtype_name",
    "fingerprint",
    "gguf_of",
    "linear_shapes",
    "load",
    "load_tokenizer",
    "load_weights",
    "max_positions",
    "n_ids",
    "n_layers",
    "name_for_loading",
    "open",
    "pick_device",
    "pick_dtype",
    "quantized_as",
    "quiet_transformers",
    "record_of",
    "recorded_base",
    "resolve",
    "transposes_weights",
    "widening_module",
]
