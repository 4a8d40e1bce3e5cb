"""X-CLIP (text and video towers like those of CLIP) as embedder. Other packages use only `family`, through
`models.registry`."""

MODEL_TYPES = ("xclip",)
