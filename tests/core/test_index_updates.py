"""An index that is updated, against one that is built anew, and the recall of approximate indexes."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest

from tests.core.test_index import unit
from vsr1_core.search import index_updates
from vsr1_core.search.index import VideoIndex, build_index, read_index, write_index
from vsr1_core.search.index_updates import MAX_MOVED, Training, Updated, updated_index
from vsr1_core.search.recall import recall_at

DIM = 12


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def built(monkeypatch):
    """The number of vectors of each index that is built anew."""
    sizes = []

    def build(ids, vectors, kind):
        sizes.append(len(ids))
        return build_index(ids, vectors, kind)

    monkeypatch.setattr(index_updates, "build_index", build)
    return sizes


class Corpus:
    """Vectors that change, and their index in a folder, which is updated each time."""

    def __init__(self, folder: Path, kind: str, vectors: dict[str, np.ndarray]) -> None:
        self.folder, self.kind, self.vectors = folder, kind, vectors
        self.training: Training | None = None
        self.update()

    def update(self, is_alike: bool = True) -> Updated:
        ids = sorted(self.vectors)
        made = updated_index(
            self.folder if is_alike else None, ids, np.stack([self.vectors[i] for i in ids]), self.kind, self.training
        )
        write_index(self.folder, made.index)
        self.training = made.training
        return made

    def check(self, rng: np.random.Generator) -> None:
        """The index that was written has exactly the vectors of now, and finds and ranks them as a new one does."""
        index, ids = read_index(self.folder), sorted(self.vectors)
        assert sorted(index.ids) == ids
        assert all((vector == self.vectors[i]).all() for i, vector in zip(index.ids, index.vectors, strict=True))
        fresh = build_index(ids, np.stack([self.vectors[i] for i in ids]))
        assert index.faiss_index.ntotal == len(ids)
        queries, right = unit(rng, 5, DIM), list(rng.choice(ids, 5))
        assert index.ranks(queries, right) == fresh.ranks(queries, right)
        found, expected = index.search(fresh.vectors, 1)[0], fresh.search(fresh.vectors, 1)[0]
        assert found == expected == [[i] for i in ids]
        if self.kind == "ivf":
            index.faiss_index.nprobe = 10_000  # all lists, which is exact
            assert index.search(queries, len(ids))[0] == fresh.search(queries, len(ids))[0]


def named(rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    return {f"v{number:06d}": unit(rng, DIM) for number in rng.choice(1_000_000, count, replace=False)}


def edit(corpus: Corpus, rng: np.random.Generator) -> None:
    """Add, change and remove a few vectors each, or none."""
    known = sorted(corpus.vectors)
    for gone in rng.choice(known, rng.integers(0, 12), replace=False):
        del corpus.vectors[gone]
    known = sorted(corpus.vectors)
    for changed in rng.choice(known, rng.integers(0, 12), replace=False):
        corpus.vectors[changed] = unit(rng, DIM)
    corpus.vectors |= named(rng, rng.integers(0, 24))


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
@pytest.mark.parametrize("seed", range(3))
def test_after_any_edits_the_index_has_the_vectors_of_now(tmp_path, kind, seed):
    rng = np.random.default_rng(seed)
    corpus = Corpus(tmp_path / "index", kind, named(rng, 300))
    for _ in range(8):
        edit(corpus, rng)
        corpus.update()
        corpus.check(rng)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_a_corpus_that_only_grows_is_built_once(tmp_path, rng, built, kind):
    corpus = Corpus(tmp_path / "index", kind, named(rng, 300))
    for _ in range(5):
        corpus.vectors |= named(rng, 3)
        assert "3 added, 0 changed, 0 removed" in corpus.update().says
        corpus.check(rng)
    assert built == [300]


def test_an_ivf_index_keeps_its_centroids_when_vectors_change_and_go(tmp_path, rng, built):
    corpus = Corpus(tmp_path / "index", "ivf", named(rng, 300))
    before = read_index(corpus.folder).faiss_index
    first, second, third = sorted(corpus.vectors)[:3]
    del corpus.vectors[first]
    corpus.vectors[second], corpus.vectors[third] = unit(rng, 2, DIM)
    corpus.vectors |= named(rng, 1)
    made = corpus.update()
    assert made.says == "300 vectors, 1 added, 2 changed, 1 removed"
    assert (built, made.training) == ([300], Training(300, 4))
    after = read_index(corpus.folder).faiss_index
    assert before.nlist == after.nlist == 7
    assert (before.quantizer.reconstruct_n(0, 7) == after.quantizer.reconstruct_n(0, 7)).all()
    corpus.check(rng)


def test_an_updated_ivf_index_is_a_new_one_with_the_same_centroids(tmp_path, rng):
    corpus = Corpus(tmp_path / "index", "ivf", named(rng, 400))
    for _ in range(3):
        edit(corpus, rng)
    updated = corpus.update().index
    anew = faiss.clone_index(updated.faiss_index)
    anew.reset()
    anew.add(updated.vectors)
    for number in range(anew.nlist):
        one, other = (_list(index, number) for index in (updated.faiss_index, anew))
        assert one == other


def _list(index, number: int) -> tuple[list[int], list[int]]:
    lists, size = index.invlists, index.invlists.list_size(number)
    if not size:
        return [], []
    codes = faiss.rev_swig_ptr(lists.get_codes(number), size * lists.code_size)
    return faiss.rev_swig_ptr(lists.get_ids(number), size).tolist(), codes.tolist()


def test_an_ivf_index_is_trained_anew_once_half_of_it_moved(tmp_path, rng, built):
    corpus = Corpus(tmp_path / "index", "ivf", named(rng, 200))
    for step in range(1, 12):
        for gone in sorted(corpus.vectors)[:5]:
            del corpus.vectors[gone]
        corpus.vectors |= named(rng, 5)
        made = corpus.update()
        assert made.training == (Training(200, 10 * step) if step <= 10 else Training(200, 0))
    assert built == [200, 200]
    corpus.vectors |= named(rng, int(200 * MAX_MOVED) + 1)
    assert corpus.update().training == Training(301, 0)


def test_an_index_whose_training_is_not_known_counts_from_now_on(tmp_path, rng, built):
    corpus = Corpus(tmp_path / "index", "ivf", named(rng, 200))
    corpus.training = None
    corpus.vectors |= named(rng, 10)
    assert corpus.update().training == Training(200, 10)
    assert built == [200]


@pytest.mark.parametrize("change", ["removed", "changed"])
def test_a_graph_is_built_anew_where_a_vector_changed_or_is_gone(tmp_path, rng, built, change):
    corpus = Corpus(tmp_path / "index", "hnsw", named(rng, 200))
    video = sorted(corpus.vectors)[17]
    if change == "removed":
        del corpus.vectors[video]
    else:
        corpus.vectors[video] = unit(rng, DIM)
    corpus.vectors |= named(rng, 2)
    corpus.update()
    corpus.check(rng)
    assert built == [200, len(corpus.vectors)]


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_the_smallest_change_of_a_number_is_a_change(tmp_path, rng, kind):
    corpus = Corpus(tmp_path / "index", kind, named(rng, 200))
    video = sorted(corpus.vectors)[3]
    corpus.vectors[video] = np.nextafter(corpus.vectors[video], np.float32(2))
    corpus.update()
    index = read_index(corpus.folder)
    assert (index.vectors[index.row_of[video]] == corpus.vectors[video]).all()


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_vectors_that_are_equal_stay_apart(tmp_path, rng, kind):
    corpus = Corpus(tmp_path / "index", kind, dict.fromkeys(named(rng, 60), unit(rng, DIM)) | named(rng, 140))
    for gone in sorted(corpus.vectors)[::7]:
        del corpus.vectors[gone]
    corpus.vectors |= dict.fromkeys(named(rng, 9), corpus.vectors[sorted(corpus.vectors)[0]])
    made = corpus.update().index
    assert sorted(made.ids) == sorted(corpus.vectors)
    assert all((vector == corpus.vectors[i]).all() for i, vector in zip(made.ids, made.vectors, strict=True))
    stored = read_index(corpus.folder)
    assert made.ids == stored.ids
    assert (made.vectors == stored.vectors).all()


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_a_removed_copy_of_the_last_video_is_gone(tmp_path, rng, kind):
    corpus = Corpus(tmp_path / "index", kind, named(rng, 200))
    copy, *_, last = sorted(corpus.vectors)
    corpus.vectors[copy] = corpus.vectors[last]
    corpus.update()
    del corpus.vectors[copy]
    corpus.update()
    corpus.check(rng)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_what_does_not_fit_is_not_taken_over(tmp_path, rng, built, kind):
    vectors, folder = named(rng, 100), tmp_path / "index"
    other_kind = {"ivf": "hnsw", "hnsw": "ivf"}[kind]
    others = {
        "nothing": None,
        "another kind": build_index(sorted(vectors), unit(rng, 100, DIM), other_kind),
        "flat": build_index(sorted(vectors), unit(rng, 100, DIM)),
        "another size": build_index(sorted(vectors), unit(rng, 100, 8), kind),
        "other vectors of the same videos": build_index(sorted(vectors), unit(rng, 100, DIM), kind),
    }
    for other in others.values():
        if other is not None:
            write_index(folder, other)
        Corpus(folder, kind, vectors).check(rng)
    (folder / "index.faiss").write_bytes(b"IwFl and no more")
    Corpus(folder, kind, vectors).check(rng)
    (folder / "id_map.json").write_text("[")
    Corpus(folder, kind, vectors).check(rng)
    Corpus(folder, kind, vectors).update(is_alike=False)
    assert built == [100] * (len(others) + 3)


@pytest.mark.parametrize("wrong", [10_000, -1, 0])
def test_lists_that_name_wrong_vectors_do_no_harm(tmp_path, rng, wrong):
    corpus = Corpus(tmp_path / "index", "ivf", named(rng, 200))
    damaged = read_index(corpus.folder)
    lists = damaged.faiss_index.invlists
    for number in range(damaged.faiss_index.nlist):
        faiss.rev_swig_ptr(lists.get_ids(number), lists.list_size(number))[0] = wrong
    faiss.write_index(damaged.faiss_index, str(corpus.folder / "index.faiss"))
    corpus.vectors |= named(rng, 1)
    corpus.update()
    corpus.check(rng)


def test_what_a_new_index_refuses_an_update_refuses(tmp_path, rng):
    corpus = Corpus(tmp_path / "index", "ivf", named(rng, 100))
    ids, vectors = sorted(corpus.vectors), np.stack([corpus.vectors[i] for i in sorted(corpus.vectors)])
    with pytest.raises(ValueError, match="not unit vectors"):
        updated_index(corpus.folder, ids, 2 * vectors, "ivf")
    with pytest.raises(ValueError, match="occur twice"):
        updated_index(corpus.folder, [ids[0], *ids[:-1]], vectors, "ivf")
    with pytest.raises(ValueError, match="not one of flat, ivf, hnsw"):
        updated_index(corpus.folder, ids, vectors, "tree")


def few_lists(rng: np.random.Generator, nprobe: int) -> VideoIndex:
    index = build_index([str(i) for i in range(2000)], unit(rng, 2000, DIM), "ivf")
    index.faiss_index.nprobe = nprobe
    return index


def test_recall_is_the_share_of_the_nearest_others_that_are_found(rng, monkeypatch):
    monkeypatch.setattr("vsr1_core.search.recall.NUM_SAMPLED", 2000)
    index = few_lists(rng, nprobe=2)
    found = index.faiss_index.search(index.vectors, 101)[1]
    scores = index.vectors @ index.vectors.T
    np.fill_diagonal(scores, -2)
    exact = np.argsort(-scores, axis=1)
    for k, recall in zip((10, 100), recall_at(index, (10, 100)), strict=True):
        shares = [len({*exact[row, :k]} & {*found[row]}) / k for row in range(2000)]
        assert 0.1 < recall < 0.9
        assert recall == pytest.approx(np.mean(shares))


def test_recall_on_a_sample_is_near_that_on_all(rng, monkeypatch):
    index = few_lists(rng, nprobe=4)
    sampled = recall_at(index, (10,))[0]
    monkeypatch.setattr("vsr1_core.search.recall.NUM_SAMPLED", 2000)
    assert sampled == pytest.approx(recall_at(index, (10,))[0], abs=0.05)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_an_index_that_finds_all_has_recall_1(rng, count):
    ids = [str(i) for i in range(count)]
    assert recall_at(build_index(ids, unit(rng, count, DIM)), (10, 100)) == [1, 1]
    assert recall_at(build_index(ids, np.repeat(unit(rng, 1, DIM), count, axis=0)), (3,)) == [1]
