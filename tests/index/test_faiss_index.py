"""The folder that an index is kept in: nothing altered, truncated or foreign is served."""

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from index.faiss_base import INDEX_FILE, VECTORS_FILE
from index.faiss_index import INDEXES, FlatIndex, load_index
from index.layout import FAISS, IndexKind
from index.manifest import MANIFEST_FILE, canary_queries, read_manifest
from store.errors import CorruptArtifact, Mismatch, MissingStep

ROOT = Path(__file__).parents[2]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    vectors = np.random.default_rng(0).standard_normal((100, 8)).astype(np.float32)
    FlatIndex(vectors).save(tmp_path, retriever="r1", catalog="c1")
    return tmp_path


def rewrite(folder: Path, **fields: object) -> None:
    path = folder / MANIFEST_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_the_manifest_names_what_the_index_was_made_from(saved: Path) -> None:
    manifest = read_manifest(saved)
    assert (manifest.kind, manifest.metric) == ("flat", "inner_product")
    assert (manifest.count, manifest.dimension) == (100, 8)
    assert (manifest.retriever, manifest.catalog) == ("r1", "c1")
    assert manifest.bytes == (saved / INDEX_FILE).stat().st_size
    assert [len(canary.rows) for canary in manifest.canaries] == [10] * 8


def test_another_retriever_or_catalog_is_refused(saved: Path) -> None:
    assert len(FlatIndex.load(saved, retriever="r1", catalog="c1")) == 100
    with pytest.raises(Mismatch, match=r"retriever r1.*retriever r2.*build-index"):
        FlatIndex.load(saved, retriever="r2")
    with pytest.raises(Mismatch, match=r"catalog c1.*catalog c2.*build-index"):
        FlatIndex.load(saved, catalog="c2")


def test_an_unknown_kind_is_refused(saved: Path) -> None:
    rewrite(saved, kind="annoy")
    with pytest.raises(Mismatch, match=r"annoy.*flat"):
        load_index(saved)


def test_another_metric_is_refused(saved: Path) -> None:
    vectors = load_index(saved).vectors(np.arange(100))
    other = FAISS.IndexFlatL2(8)
    other.add(vectors)
    FAISS.write_index(other, str(saved / INDEX_FILE))
    with pytest.raises(Mismatch, match=r"FAISS's metric 1.*inner_product.*build-index"):
        load_index(saved)
    rewrite(saved, metric="cosine")
    with pytest.raises(Mismatch, match=r"cosine.*inner_product.*build-index"):
        load_index(saved)


def test_no_index_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(MissingStep, match="build-index"):
        load_index(tmp_path)


@pytest.mark.parametrize("kept", [0, 10, 500])
def test_a_truncated_index_is_refused(saved: Path, kept: int) -> None:
    path = saved / INDEX_FILE
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CorruptArtifact, match=f"has {kept} bytes"):
        load_index(saved)


def test_a_file_that_is_no_index_is_refused(saved: Path) -> None:
    path = saved / INDEX_FILE
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(CorruptArtifact, match="not a readable FAISS index"):
        load_index(saved)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"kind": "flat"}'])
def test_an_unreadable_manifest_is_refused(saved: Path, content: str) -> None:
    (saved / MANIFEST_FILE).write_text(content)
    with pytest.raises(CorruptArtifact, match="manifest"):
        load_index(saved)


def test_a_manifest_from_a_newer_version_is_refused(saved: Path) -> None:
    rewrite(saved, format=99, novelty=True)
    with pytest.raises(Mismatch, match=r"format 99, this version reads up to 2.*newer version"):
        load_index(saved)


def test_a_manifest_of_the_first_version_is_read(saved: Path) -> None:
    path = saved / MANIFEST_FILE
    newer = ("format", "layout", "effort", "report")
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key not in newer}))
    assert load_index(saved).kind is IndexKind.FLAT


def test_truncated_vectors_beside_a_quantised_index_are_refused(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
    INDEXES[IndexKind.IVF_RABITQ](vectors).save(tmp_path, retriever="r", catalog="c")
    path = tmp_path / VECTORS_FILE
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CorruptArtifact, match=r"15,992 bytes, 500 vectors of 8 × float32 have 16,000"):
        load_index(tmp_path)


def test_a_count_that_differs_is_refused(saved: Path) -> None:
    rewrite(saved, count=99)
    with pytest.raises(CorruptArtifact, match=r"holds 100.*says 99"):
        load_index(saved)


def test_canaries_notice_other_vectors(saved: Path) -> None:
    other = np.random.default_rng(1).standard_normal((100, 8)).astype(np.float32)
    folder = saved / "other"
    folder.mkdir()
    FlatIndex(other).save(folder, retriever="r1", catalog="c1")
    (folder / INDEX_FILE).replace(saved / INDEX_FILE)
    with pytest.raises(CorruptArtifact, match="canary"):
        load_index(saved)


def test_canaries_notice_two_items_that_changed_places(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((100, 8)).astype(np.float32)
    index = FlatIndex(vectors)
    index.save(tmp_path, retriever="r", catalog="c")
    _, rows = index.search(canary_queries(8), 2)
    first, second = rows[0]
    vectors[[first, second]] = vectors[[second, first]]
    folder = tmp_path / "swapped"
    folder.mkdir()
    FlatIndex(vectors).save(folder, retriever="r", catalog="c")
    (folder / INDEX_FILE).replace(tmp_path / INDEX_FILE)
    with pytest.raises(CorruptArtifact, match="canary"):
        load_index(tmp_path)


def test_canaries_bear_ties_and_small_catalogs(tmp_path: Path) -> None:
    FlatIndex(np.ones((3, 2), dtype=np.float32)).save(tmp_path, retriever="r", catalog="c")
    assert len(load_index(tmp_path)) == 3


def test_vectors_come_back_by_row(saved: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((100, 8)).astype(np.float32)
    np.testing.assert_array_equal(load_index(saved).vectors(np.array([7, 3])), vectors[[7, 3]])


def test_a_long_history_does_not_widen_the_search_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    index = FlatIndex(rng.standard_normal((5_000, 4)).astype(np.float32))
    exclude = [np.arange(5)] * 30 + [np.arange(4_000)]
    fetched: list[tuple[int, int]] = []
    search = FlatIndex._search_alike

    def spy(self, queries, k, exclude, *, longest, allowed):
        fetched.append((len(queries), longest))
        return search(self, queries, k, exclude, longest=longest, allowed=allowed)

    monkeypatch.setattr(FlatIndex, "_search_alike", spy)
    index.search(rng.standard_normal((31, 4)).astype(np.float32), 10, exclude=exclude)
    assert fetched == [(30, 5), (1, 4_000)]


def test_a_full_disk_is_an_error_not_a_short_file(tmp_path: Path) -> None:
    script = (
        "import numpy as np, sys; from pathlib import Path; from index.faiss_index import FlatIndex\n"
        "index = FlatIndex(np.ones((1000, 16), dtype=np.float32))\n"
        "try: index.save(Path(sys.argv[1]), retriever='r', catalog='c')\n"
        "except OSError as error: print(type(error).__name__, error.errno)\n"
    )

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        preexec_fn=limit,
    )
    assert done.stdout.split() == ["OSError", "27"]
