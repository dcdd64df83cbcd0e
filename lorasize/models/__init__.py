"""Base models: find, convert, fingerprint and load them, and read the shapes of their linear layers.

A model reference enters; a local folder that stock transformers loads (safetensors and tokenizer), its digests, and
the loaded model leave. Linear layers are read off the model itself, so a new architecture needs no table of names. Only
safetensors and GGUF are read, never a pickle; no remote code runs.
"""

from lorasize.models.finding import BUILTIN, file_sha256, fingerprint, quiet_transformers, resolve
from lorasize.models.loading import (
    BaseModel,
    device_name,
    dtype_name,
    load,
    load_tokenizer,
    load_weights,
    max_positions,
    n_layers,
    pick_device,
    pick_dtype,
    record_of,
)
from lorasize.models.shapes import LinearShape, decoder_layers, linear_shapes, transposes_weights, widening_module

__all__ = [
    "BUILTIN",
    "BaseModel",
    "LinearShape",
    "decoder_layers",
    "device_name",
    "dtype_name",
    "file_sha256",
    "fingerprint",
    "linear_shapes",
    "load",
    "load_tokenizer",
    "load_weights",
    "max_positions",
    "n_layers",
    "pick_device",
    "pick_dtype",
    "quiet_transformers",
    "record_of",
    "resolve",
    "transposes_weights",
    "widening_module",
]
