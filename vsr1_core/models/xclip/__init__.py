"""X-CLIP (text and video towers of CLIP's kind) as embedder. Only `family` is for others, through `models.registry`."""

MODEL_TYPES = ("xclip",)
