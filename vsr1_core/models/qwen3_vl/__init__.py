"""Qwen3-VL as policy and embedder, published or tiny. Other packages use only `family`, through `models.registry`."""

MODEL_TYPES = ("qwen3_vl",)
