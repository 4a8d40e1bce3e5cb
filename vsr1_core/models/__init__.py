"""Models: what the method needs from a policy and an embedder (`protocols`), and one folder for each model family.

A checkpoint folder is opened by the family that its config.json names (`registry`). The modules beside the family
folders work with any family, and nothing outside a family's folder imports from it.
"""
