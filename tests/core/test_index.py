"""The search engine against brute force, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from vsr1_core.search.faiss_kinds import has_gpu, on_gpu
from vsr1_core.search.index import build_index, on_gpu_where_it_pays, read_index, unit_vectors, write_index
from vsr1_core.search.index_updates import updated_index


def unit(rng, *shape):
    values = rng.standard_normal(shape).astype(np.float32)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def vectors(rng):
    return unit(rng, 200, 16)


IDS = [f"v{i:03d}" for i in range(200)]


def test_the_flat_index_finds_what_brute_force_finds(rng, vectors):
    index, queries = build_index(IDS, vectors), unit(rng, 50, 16)
    ids, scores = index.search(queries, 5)
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :5]
    assert ids == [[IDS[c] for c in row] for row in exact]
    assert np.allclose(scores, np.take_along_axis(queries @ vectors.T, exact, 1), atol=1e-6)


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_each_kind_finds_a_video_by_its_own_vector_and_survives_the_disk(tmp_path, vectors, kind):
    write_index(tmp_path / "index", build_index(IDS, vectors, kind))
    index = read_index(tmp_path / "index")
    assert [row[0] for row in index.search(vectors, 1)[0]] == IDS
    assert index.ids == tuple(IDS)
    assert np.allclose(index.vectors, vectors, atol=1e-6)
    assert index.ranks(vectors[:3], IDS[:3]) == [1, 1, 1]


def test_the_files_are_the_published_ones(tmp_path, vectors):
    write_index(tmp_path / "index", build_index(IDS, vectors))
    assert sorted(p.name for p in (tmp_path / "index").iterdir()) == ["id_map.json", "index.faiss"]
    assert json.loads((tmp_path / "index/id_map.json").read_text()) == IDS


def test_k_beyond_the_corpus_gives_each_video_once(rng, vectors):
    for kind in ("flat", "ivf", "hnsw"):
        ids, scores = build_index(IDS[:3], vectors[:3], kind).search(unit(rng, 2, 16), 100)
        assert [sorted(row) for row in ids] == [IDS[:3]] * 2
        assert all(row == sorted(row, reverse=True) for row in scores)


def test_ranks_count_the_videos_with_a_strictly_higher_score(rng, vectors):
    queries = unit(rng, 40, 16)
    right = list(rng.choice(IDS, 40))
    scores = queries @ vectors.T
    own = scores[np.arange(40), [IDS.index(r) for r in right]]
    assert build_index(IDS, vectors).ranks(queries, right) == list(1 + (scores > own[:, None] + 1e-6).sum(1))


def test_copies_of_the_right_video_do_not_push_it_down(rng):
    vector = unit(rng, 1, 64)
    index = build_index(IDS[:50], np.repeat(vector, 50, axis=0))
    assert index.ranks(unit(rng, 7, 64), IDS[10:17]) == [1] * 7


def test_a_right_video_outside_the_index_has_no_rank(vectors):
    index = build_index(IDS, vectors)
    assert index.ranks(vectors[:3], ["v000", "elsewhere", None]) == [1, None, None]


def test_excluded_videos_are_neither_found_nor_counted(vectors):
    index = build_index(IDS, vectors)
    plain, _ = index.search(vectors[:2], 4)
    banned = [set(plain[0][:2]), set()]
    ids, scores = index.search(vectors[:2], 2, exclude=banned)
    assert ids == [plain[0][2:], plain[1][:2]]
    assert [len(row) for row in scores] == [2, 2]
    assert index.ranks(vectors[:1], [plain[0][3]]) == [4]
    assert index.ranks(vectors[:1], [plain[0][3]], exclude=[banned[0] | {"elsewhere"}]) == [2]
    assert index.ranks(vectors[:1], [plain[0][0]], exclude=[banned[0]]) == [None]
    assert index.search(vectors[:1], 2, exclude=[set(IDS)])[0] == [[]]


@pytest.mark.parametrize("ids", [[f"v{i}" for i in range(40)], [f"v{i // 3}//{i}-{i + 2}" for i in range(40)]])
def test_the_ranks_of_many_videos_are_those_of_each_alone(rng, ids):
    index = build_index(ids, unit(rng, 40, 8))
    videos, excluded = [*index.rows_of, "elsewhere"], {ids[0], ids[1], ids[2], ids[30]}
    for query in unit(rng, 5, 8):
        for exclude in ((), excluded):
            alone = [index.ranks(query[None], [video], [exclude])[0] for video in videos]
            assert index.ranks_of(query[None], videos, exclude) == alone
            assert alone.count(None) == 1 + (bool(exclude) and (4 if "v39" in videos else 1))


def test_no_queries_give_no_results(vectors):
    index = build_index(IDS, vectors)
    assert index.search(np.zeros((0, 16)), 3) == ([], [])
    assert index.ranks(np.zeros((0, 16)), []) == []


def test_what_is_no_unit_vector_is_refused(vectors):
    for bad in (vectors * 2, np.where(np.arange(200)[:, None] == 7, np.nan, vectors), vectors * np.inf, vectors[:0]):
        with pytest.raises(ValueError, match="vectors"), np.errstate(all="ignore"):
            build_index(IDS[: len(bad)], bad)
    with pytest.raises(ValueError, match="query vectors are not unit vectors"):
        build_index(IDS, vectors).search(vectors * 0, 1)
    with pytest.raises(ValueError, match="row 7"):
        unit_vectors(np.where(np.arange(200)[:, None] == 7, 3 * vectors, vectors), "video")
    with pytest.raises(ValueError, match=r"1 of 2200 .* row 1300 of length 3"):
        unit_vectors(np.tile(vectors, (11, 1)) * np.where(np.arange(2200) == 1300, 3, 1)[:, None], "video")


def test_ids_and_dimensions_must_fit(rng, vectors):
    with pytest.raises(ValueError, match=r"occur twice.*v001"):
        build_index(["v001", *IDS[1:]], vectors)
    with pytest.raises(ValueError, match="199 video ids for 200 vectors"):
        build_index(IDS[1:], vectors)
    with pytest.raises(ValueError, match="8 dimensions, but the index has 16"):
        build_index(IDS, vectors).search(unit(rng, 1, 8), 1)
    with pytest.raises(ValueError, match="not one of flat, ivf, hnsw"):
        build_index(IDS, vectors, "tree")
    with pytest.raises(ValueError, match="right videos"):
        build_index(IDS, vectors).ranks(vectors[:2], ["v000"])


def test_broken_files_say_what_to_build_again(tmp_path, vectors):
    folder = tmp_path / "index"
    with pytest.raises(FileNotFoundError, match="build the asset video_index again"):
        read_index(folder)
    write_index(folder, build_index(IDS, vectors))
    (folder / "id_map.json").write_text(json.dumps(IDS[1:]))
    with pytest.raises(ValueError, match="199 video ids for 200 vectors"):
        read_index(folder)
    (folder / "index.faiss").write_bytes(b"no index")
    with pytest.raises(ValueError, match="not a FAISS index"):
        read_index(folder)


def test_a_gpu_index_without_gpu_support_says_how_to_repair(vectors):
    import faiss

    if "GPU" in faiss.get_compile_options():
        pytest.skip("this faiss has GPU support")
    with pytest.raises(RuntimeError, match="pip uninstall -y faiss-cpu faiss-gpu"):
        build_index(IDS, vectors, gpu=True)


class GpuIndexStandIn:
    """What a FAISS index on a GPU does, in this computer's memory."""

    def __init__(self, index):
        self.index = index

    def search(self, queries, k):
        if k > 2048:
            raise RuntimeError("GPU index only supports min/max-K selection up to 2048")
        return self.index.search(queries, k)


def use_stand_in(monkeypatch):
    """A faiss that has a GPU, whose indexes are stand-ins."""
    import faiss

    def moved(resources, device, index):
        name = "Gpu" + type(index).__name__.removesuffix("IP")
        return type(name, (GpuIndexStandIn,), {"getDevice": lambda self: device})(index)

    resources = type("Resources", (), {"setTempMemory": lambda self, count: None})
    for name, value in {
        "get_compile_options": lambda: "GPU", "get_num_gpus": lambda: 1, "StandardGpuResources": resources,
        "index_cpu_to_gpu": moved, "index_gpu_to_cpu": lambda index: index.index,
    }.items():  # fmt: skip
        monkeypatch.setattr(faiss, name, value, raising=False)


REAL = pytest.param(
    None, id="real", marks=[pytest.mark.gpu, pytest.mark.skipif(not has_gpu(), reason="faiss finds no GPU here")]
)


@pytest.fixture(params=[pytest.param(use_stand_in, id="stand-in"), REAL])
def gpu(request, monkeypatch):
    """A GPU for indexes of 200 vectors and more: a stand-in, and that of this machine."""
    if request.param:
        request.param(monkeypatch)
    monkeypatch.setattr("vsr1_core.search.index.MIN_ON_GPU", 200)
    return monkeypatch


@pytest.fixture
def searches(monkeypatch):
    """The numbers of results that are asked for of FAISS, in order."""
    asked = []

    def counted(index):
        def search(queries, k):
            asked.append(k)
            return type(index).search(index, queries, k)

        index.search = search
        return index

    monkeypatch.setattr("vsr1_core.search.index.on_gpu", lambda index, number: counted(on_gpu(index, number)))
    return asked


def assert_same_but_for_ties(found, wanted, queries, index):
    """Scores that are equal but for their rounding may change places."""
    exact = queries @ index.vectors.T
    for row, ours, theirs in zip(exact, found, wanted, strict=True):
        assert len(set(ours)) == len(theirs)
        first, second = ([row[index.row_of[each]] for each in ids] for ids in (ours, theirs))
        assert np.allclose(first, second, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["flat", "ivf"])
@pytest.mark.parametrize("ids", [[f"v{i}" for i in range(3000)], [f"v{i // 3}//{i}-{i + 2}" for i in range(3000)]])
def test_an_index_on_a_gpu_finds_and_ranks_what_it_does_on_the_cpu(gpu, searches, rng, tmp_path, kind, ids):
    vectors, queries = unit(rng, 3000, 16), unit(rng, 9, 16)
    index = build_index(ids, vectors, kind)
    moved, right = on_gpu_where_it_pays(index), list(index.rows_of)[:9]
    assert type(moved.faiss_index).__name__ == {"flat": "GpuIndexFlat", "ivf": "GpuIndexIVFFlat"}[kind]

    def assert_same(k, like=index):
        found, scores = moved.search(queries, k)
        wanted, true = like.search(queries, k)
        assert_same_but_for_ties(found, wanted, queries, index)
        assert all(np.allclose(ours, theirs, atol=1e-6, rtol=0) for ours, theirs in zip(scores, true, strict=True))

    assert_same(50)
    assert searches == [50]
    found, _, ranks = moved.search_and_rank(queries, 5, right)
    assert_same_but_for_ties(found, index.search(queries, 5)[0], queries, index)
    assert ranks == index.ranks(queries, right) == moved.ranks(queries, right)
    asked = {"ivf": [5], "flat": [] if index.has_windows else [2048, 2048]}  # ranks of windows need all products
    assert searches == [50, *asked[kind]]
    searches.clear()
    assert_same(2048)
    assert searches == [2048]
    assert_same(2049, like=build_index(ids, vectors))  # more than FAISS finds on a GPU
    assert searches == [2048]
    for query in queries:
        assert_same_but_for_ties(moved.search(query[None], 7)[0], index.search(query[None], 7)[0], query[None], index)
    banned = [set(ids[:3])] * 9
    assert_same_but_for_ties(moved.search(queries, 7, banned)[0], index.search(queries, 7, banned)[0], queries, index)
    write_index(tmp_path / "index", moved)
    assert_same_but_for_ties(
        read_index(tmp_path / "index").search(queries, 50)[0], index.search(queries, 50)[0], queries, index
    )


def rounding_index(index, error):
    """A flat index on a GPU whose products are off by up to `error`, any way."""
    rng = np.random.default_rng(1)

    def search(queries, k):
        scores = queries @ index.vectors.T
        scores += rng.choice([-error, 0, error], scores.shape).astype(np.float32)
        rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, rows, 1), rows

    return replace(index, faiss_index=type("GpuIndexFlat", (), {"search": staticmethod(search)})())


def near_ties(rng, num_videos):
    """Videos of 64 numbers with scores for the first axis in steps that a GPU may or may not tell apart."""
    steps = rng.choice([0, 3e-7, 8e-7, 1.2e-6, 3e-6, 1e-5, 1e-3], num_videos).cumsum()
    rest = unit(rng, num_videos, 63)
    scores = 0.5 + (steps - steps.mean())
    rows = np.concatenate([scores[:, None], np.sqrt(1 - scores**2)[:, None] * rest], axis=1)
    return rows[rng.permutation(num_videos)].astype(np.float32)


@pytest.mark.parametrize("most", [1, 20, 199, 200, 2048])
@pytest.mark.parametrize("corpus", ["random", "near ties", "copies"])
def test_ranks_by_a_gpu_that_rounds_otherwise_are_those_of_the_cpu(monkeypatch, rng, most, corpus):
    monkeypatch.setattr("vsr1_core.search.index.MAX_GPU_RESULTS", most)
    vectors = {
        "random": lambda: unit(rng, 200, 64),
        "near ties": lambda: near_ties(rng, 200),
        "copies": lambda: np.repeat(unit(rng, 4, 64), 50, axis=0),
    }[corpus]()
    index = build_index(IDS, vectors)
    queries = np.concatenate([np.eye(64, dtype=np.float32)[[0] * 150], unit(rng, 52, 64)])
    right = [*rng.permutation(IDS), "elsewhere", None]
    exclude = [set(rng.choice(IDS, 5)) if i % 3 == 0 else set() for i in range(202)]
    moved = rounding_index(index, 4e-6)  # the bound is 15e-6
    for banned in (None, exclude):
        ranks = index.ranks(queries, right, banned)
        assert moved.ranks(queries, right, banned) == ranks
        assert moved.search_and_rank(queries, 1, right, banned)[2] == ranks
        assert ranks[-2:] == [None, None]


def test_only_queries_whose_right_video_a_gpu_did_not_find_are_ranked_by_all_products(monkeypatch, rng, vectors):
    from vsr1_core.search import index as module

    monkeypatch.setattr(module, "MAX_GPU_RESULTS", 20)
    index, ranked, compare = build_index(IDS, vectors), [], module.best_and_higher
    moved, queries = rounding_index(index, 3e-7), unit(rng, 200, 16)
    ranks = index.ranks(queries, IDS)
    monkeypatch.setattr(
        module, "best_and_higher", lambda queries, *others: ranked.append(len(queries)) or compare(queries, *others)
    )
    assert moved.ranks(queries, IDS) == ranks
    assert ranked == [sum(rank >= 20 for rank in ranks)]
    assert 0 < ranked[0] < 200


def test_an_ivf_index_that_was_written_from_a_gpu_is_continued(gpu, rng, tmp_path):
    ids, vectors = [f"v{i}" for i in range(3000)], unit(rng, 3000, 16)
    moved = on_gpu_where_it_pays(build_index(ids, vectors, "ivf"))
    write_index(tmp_path / "index", moved)
    more = np.concatenate([vectors, unit(rng, 30, 16)])
    updated = updated_index(tmp_path / "index", [*ids, *(f"new{i}" for i in range(30))], more, "ivf")
    assert updated.says == "3,030 vectors, 30 added, 0 changed, 0 removed"
    again = on_gpu_where_it_pays(updated.index)
    assert [row[0] for row in again.search(more[2990:], 1)[0]] == list(updated.index.ids[2990:])


def test_an_index_that_searches_more_lists_than_faiss_can_on_a_gpu_stays_on_the_cpu(gpu, rng, vectors):
    index = build_index(IDS, vectors, "ivf")
    index.faiss_index.nprobe = 2048
    assert on_gpu_where_it_pays(index).faiss_index is not index.faiss_index
    index.faiss_index.nprobe = 2049
    assert on_gpu_where_it_pays(index).faiss_index is index.faiss_index


def test_small_indexes_and_graphs_and_what_finds_no_room_stay_on_the_cpu(gpu, rng, vectors):
    import faiss

    few, graph, index = (
        build_index(IDS[:199], vectors[:199]),
        build_index(IDS, vectors, "hnsw"),
        build_index(IDS, vectors),
    )
    assert on_gpu_where_it_pays(few) is few
    assert on_gpu_where_it_pays(graph).faiss_index is graph.faiss_index

    def full(*args):
        raise RuntimeError("out of memory")

    gpu.setattr(faiss, "index_cpu_to_gpu", full)
    assert on_gpu_where_it_pays(index) is index


def test_an_index_goes_to_the_gpu_of_its_process(monkeypatch, vectors):
    use_stand_in(monkeypatch)
    monkeypatch.setattr("vsr1_core.search.index.MIN_ON_GPU", 1)
    index = build_index(IDS, vectors)
    for device, number in {"cuda": 0, "cuda:0": 0, "cuda:3": 3}.items():
        assert on_gpu_where_it_pays(index, device).faiss_index.getDevice() == number
    assert on_gpu_where_it_pays(index, "cpu") is index


def test_without_a_gpu_an_index_stays_where_it_is(monkeypatch, vectors):
    import faiss

    from vsr1_core.search import index as module

    monkeypatch.setattr(module, "MIN_ON_GPU", 1)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    index = build_index(IDS, vectors)
    assert on_gpu_where_it_pays(index) is index
