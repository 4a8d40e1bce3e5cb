"""Qwen3-VL as policy and as embedder, the soft query modules, and the loop that decodes text and latents."""
