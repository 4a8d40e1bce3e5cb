"""The asset graph: one module per group, which lists the stages of the group and what the UI shows about them.

`assets._factory` makes Dagster assets from stages. What a stage does is in `vsr1_core`; nothing here decides a result,
and nothing here imports torch, a decoder or FAISS at module level.
"""
