"""Qwen3-VL as policy and as embedder, published or tiny. Only `family` is for others, through `models.registry`."""

MODEL_TYPES = ("qwen3_vl",)
