"""The kinds of FAISS indexes: how each is made, told and set, and where it lies. No ids and no files here."""

from __future__ import annotations

from typing import Any

MIN_VECTORS_PER_LIST = 39
"""FAISS warns if there are fewer vectors per k-means centroid."""
NUM_LINKS = 32
"""Links of a vector in an HNSW graph, per layer."""
MAX_GPU_RESULTS = 2048
"""FAISS finds no more for a query on a GPU, and searches no more lists for it."""
GPU_BYTES = 256 << 20
"""Memory for FAISS to work in, beside the index; by itself it takes 1.5 GiB, which the models need."""
REPAIR_GPU = (
    "a GPU index was asked for, but this faiss is built without GPU support (faiss-cpu and faiss-gpu overwrite each "
    "other); run: pip uninstall -y faiss-cpu faiss-gpu && pip install -c constraints.txt -e '.[gpu]'"
)


def load_faiss() -> Any:
    """The module faiss, without types: its stubs lack what only some kinds of indexes have."""
    import faiss

    return faiss


def untrained(kind: str, dim: int, num_vectors: int) -> Any:
    """An empty FAISS index for so many vectors of `dim` numbers. Raises ValueError where there is no such kind."""
    faiss = load_faiss()
    index = faiss.index_factory(dim, _factory_text(kind, num_vectors), faiss.METRIC_INNER_PRODUCT)
    if kind == "ivf":
        index.nprobe = max(1, index.nlist // 8)
    if kind == "hnsw":
        index.hnsw.efConstruction = index.hnsw.efSearch = 200
    return index


def _factory_text(kind: str, num_vectors: int) -> str:
    if kind == "flat":
        return "Flat"
    if kind == "ivf":
        num_lists = min(int(4 * num_vectors**0.5), num_vectors // MIN_VECTORS_PER_LIST)
        return f"IVF{max(1, num_lists)},Flat"
    if kind == "hnsw":
        return f"HNSW{NUM_LINKS}"
    raise ValueError(f"index kind {kind!r} is not one of flat, ivf, hnsw")


def is_of_kind(index: Any, kind: str) -> bool:
    """Whether a FAISS index is one that `untrained` makes for `kind`, of any size, with vectors in it."""
    faiss = load_faiss()
    if kind == "ivf":
        return isinstance(index, faiss.IndexIVFFlat) and isinstance(
            faiss.downcast_index(index.quantizer), faiss.IndexFlat
        )
    if kind == "hnsw":
        return isinstance(index, faiss.IndexHNSWFlat) and index.hnsw.nb_neighbors(1) == NUM_LINKS
    return isinstance(index, faiss.IndexFlat)


def has_gpu() -> bool:
    """Whether this faiss can use a GPU of this machine."""
    faiss = load_faiss()
    return "GPU" in faiss.get_compile_options() and faiss.get_num_gpus() > 0


def on_gpu(index: Any, number: int = 0) -> Any:
    """The index on the GPU of this number. What FAISS searches on CPUs only stays where it is: a graph, and an IVF
    index with too many lists to search. Raises RuntimeError where this faiss or this machine has no such GPU, or the
    GPU too little memory."""
    faiss = load_faiss()
    if "GPU" not in faiss.get_compile_options():
        raise RuntimeError(REPAIR_GPU)
    if not faiss.get_num_gpus():
        raise RuntimeError("a GPU index was asked for, but faiss finds no GPU; check nvidia-smi, or use a CPU index")
    if is_of_kind(index, "hnsw") or (is_of_kind(index, "ivf") and index.nprobe > MAX_GPU_RESULTS):
        return index
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(GPU_BYTES)
    return faiss.index_cpu_to_gpu(resources, number, index)


def is_on_gpu(index: Any) -> bool:
    return type(index).__name__.startswith("Gpu")


def on_cpu(index: Any) -> Any:
    """The index in this computer's memory, wherever it lies."""
    return load_faiss().index_gpu_to_cpu(index) if is_on_gpu(index) else index
