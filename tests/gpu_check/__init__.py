"""What one short loan of a GPU should tell: whether the published sizes run there, how fast, and in how much memory.

    python -m tests.gpu_check                                  # Qwen3-VL-2B's true size, random weights, bf16
    python -m tests.gpu_check --device cpu --size tiny         # the same parts, on any machine

It needs torch, transformers and safetensors; the training parts also need trl, datasets and peft, the parts that search
need faiss, and the part that builds a corpus needs polars, duckdb and av. Dagster is not used.
"""
