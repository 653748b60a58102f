"""A tiny language model with random weights, for the real Ollama on a CPU: real queueing, loading and unloading, no sense.

A Llama with 2 layers of width 128 and a vocabulary of bytes: 0.8 MB. As small as that, so that a core without wide
vectors answers 16 tokens in 0.15 s, and slots, not arithmetic, are what is queued for.
"""

from __future__ import annotations

from pathlib import Path

NAME = "tollgate/tiny"
LAYERS, WIDTH, HIDDEN, HEADS, CONTEXT = 2, 128, 256, 4, 8192
# What a byte-level vocabulary shows for the bytes that have no picture of their own (GPT-2's table of 2019).
_SHOWN = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_FIRST_SUBSTITUTE = 256
_EOS = "<|end|>"


def write(path: Path, *, seed: int = 0) -> None:
    """Write the model as a GGUF file (version 3, f16 weights); the same bytes for the same seed."""
    # Not at the top: only whoever asks for the real engine needs them.
    import gguf
    import numpy as np

    dice = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(NAME)
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    tokens = [*_bytes(), "th", _EOS]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * (len(tokens) - 1) + [gguf.TokenType.CONTROL])
    # The tokenizer wants at least one merge.
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(len(tokens) - 1)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(False)

    def matrix(name: str, rows: int, columns: int) -> None:
        writer.add_tensor(name, (dice.standard_normal((rows, columns)) / columns**0.5).astype(np.float16))

    def ones(name: str) -> None:
        writer.add_tensor(name, np.ones(WIDTH, dtype=np.float32))

    matrix("token_embd.weight", len(tokens), WIDTH)
    for layer in range(LAYERS):
        ones(f"blk.{layer}.attn_norm.weight")
        ones(f"blk.{layer}.ffn_norm.weight")
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{layer}.{part}.weight", WIDTH, WIDTH)
        matrix(f"blk.{layer}.ffn_gate.weight", HIDDEN, WIDTH)
        matrix(f"blk.{layer}.ffn_up.weight", HIDDEN, WIDTH)
        matrix(f"blk.{layer}.ffn_down.weight", WIDTH, HIDDEN)
    ones("output_norm.weight")
    matrix("output.weight", len(tokens), WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _bytes() -> list[str]:
    """One character for each of the 256 bytes."""
    shown, substitutes = set(_SHOWN), iter(range(_FIRST_SUBSTITUTE, 2 * _FIRST_SUBSTITUTE))
    return [chr(byte) if byte in shown else chr(next(substitutes)) for byte in range(256)]
