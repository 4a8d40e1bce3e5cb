"""Models by family: what the method asks of a policy and of an embedder (`protocols`), and one folder for each family.

A checkpoint folder is opened by the family that its config.json names (`registry`). Modules beside the family folders
know no family; nothing outside a family's folder imports from it.
"""
