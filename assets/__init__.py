"""The asset graph: one module a group, each naming what its stages are and what is worth showing about them.

How a stage becomes a Dagster asset is in `assets._factory`. What a stage does is in `vsr1_core`; nothing here
decides a result, and nothing here imports torch, a decoder or FAISS at module level.
"""
