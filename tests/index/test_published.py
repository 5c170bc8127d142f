"""What a run serves: changes that stay, releases that switch at once, readers that never notice how."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from bench.vectors import ClusteredVectors
from index.build import IndexConfig, Planned, plan_index
from index.changes import Change, ChangeKind
from index.faiss_index import INDEX_FILE, INDEXES, FlatIndex
from index.layout import IndexKind
from index.manifest import read_manifest
from index.measure import recall_of
from index.published import SLOTS, Fresh, PublishedIndex
from store.artifacts import Release, Run
from store.errors import BadInput, CorruptArtifact, Mismatch, MissingStep, RunBusy, UnknownId
from store.releases import KEPT, LIVE, prune, published, roll_back
from tests.contracts.test_vector_index import MILVUS

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(0)
BASE = RNG.standard_normal((30, 4)).astype(np.float32)
QUERIES = RNG.standard_normal((5, 4)).astype(np.float32)
MORE = RNG.standard_normal((3, 4)).astype(np.float32)


def publish(
    run: Run, planned: Planned | None = None, *, beside: dict[str, str] | None = None, **made_from: object
) -> Release:
    index, report = (planned.index, planned.report) if planned else (FlatIndex(BASE), ())
    model = run.write_artifact("retriever", {}, lambda folder: None)
    key = run.write_artifact(
        "index",
        {"retriever": model, **made_from},
        lambda folder: index.save(folder, retriever=model, catalog="c", report=report),
    )
    return run.publish(retriever=model, index=key, live=None, **(beside or {}))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path)
    publish(run)
    return run


def answers(index: PublishedIndex) -> list[list[float]]:
    scores, rows = index.index.search(QUERIES, 12)
    return [*rows.tolist(), *np.round(scores, 4).tolist()]


def same(one: PublishedIndex, other: PublishedIndex) -> None:
    assert answers(one) == answers(other)
    assert one.index.live_rows.tolist() == other.index.live_rows.tolist()
    assert len(one.index) == len(other.index)


def test_changes_are_there_for_whoever_opens_the_run(run: Run) -> None:
    writer = PublishedIndex(run)
    rows = writer.add(MORE, text=np.ones((3, 2), dtype=np.float32))
    writer.update(np.array([2, 30]), MORE[:2] * 2)
    writer.remove(np.array([5, 31]))
    assert rows.tolist() == [30, 31, 32]
    reader = PublishedIndex(run)
    same(reader, writer)
    assert sorted(set(range(33)) - {5, 31}) == reader.index.live_rows.tolist()
    np.testing.assert_array_equal(reader.index.vectors(np.array([2, 30, 32])), [*(MORE[:2] * 2), MORE[2]])
    assert [change.kind for change in reader.changes] == [ChangeKind.PUT, ChangeKind.PUT, ChangeKind.REMOVE]
    assert reader.changes[0].beside["text"].tolist() == [[1, 1]] * 3
    assert reader.index.new_rows(1).tolist() == [33]


def test_a_reader_takes_changes_in_when_it_looks_and_not_before(run: Run) -> None:
    writer, reader = PublishedIndex(run), PublishedIndex(run)
    before = answers(reader)
    writer.add(MORE)
    assert answers(reader) == before
    assert reader.refresh() is Fresh.REPLACED  # the first change gives the release its journal
    same(reader, writer)
    writer.remove(np.array([30]))
    assert (reader.refresh(), reader.refresh()) == (Fresh.CHANGED, Fresh.SAME)
    same(reader, writer)


def test_changes_are_told_though_the_release_is_written_anew_as_it_was(run: Run) -> None:
    writer = PublishedIndex(run)
    writer.add(MORE)
    reader = PublishedIndex(run)
    writer.remove(np.array([30]))
    run.publish()
    assert (reader.refresh(), reader.refresh()) == (Fresh.CHANGED, Fresh.SAME)
    same(reader, writer)
    run.publish()
    assert reader.refresh() is Fresh.SAME


def test_compaction_changes_no_answer_and_nobody_waits(run: Run) -> None:
    writer, reader, late = PublishedIndex(run), PublishedIndex(run), PublishedIndex(run)
    writer.add(MORE)
    writer.update(np.array([2]), MORE[:1])
    writer.remove(np.array([5, 31]))
    reader.refresh()
    before, old = answers(reader), run.release()
    assert writer.index.delta_share == pytest.approx((4 + 2) / 30)
    new = writer.compact()
    assert (new.index != old.index, new.live) == (True, None)
    assert answers(writer) == before == answers(reader)
    assert writer.index.delta_share == 0
    assert reader.refresh() is Fresh.REPLACED
    late.refresh()
    assert answers(reader) == before == answers(late)
    assert writer.add(MORE[:1]).tolist() == [33]  # 31 was given out once
    reader.refresh()
    same(reader, writer)
    again = PublishedIndex(run)
    same(again, writer)
    again.compact()
    same(PublishedIndex(run), writer)


def test_an_index_that_has_grown_is_measured_anew_for_the_recall_that_it_was_built_for(tmp_path: Path) -> None:
    drawn, said = ClusteredVectors(4_800, 16, clusters=60, seed=3), []
    vectors, users, others = drawn.all(), drawn.users(200), drawn.queries(100)
    config = IndexConfig(kind="ivf-fastscan", recall_target=0.9, recall_at=10, sample_users=150)
    planned = plan_index(vectors[:800], users, config)
    assert planned.report[0].effort.probes < planned.index.layout.lists
    run = Run(tmp_path)
    publish(run, planned, config=config.model_dump(mode="json"))
    writer = PublishedIndex(run)
    writer.add(vectors[800:1_000])
    writer.compact(queries=lambda most: users[:most], say=said.append)
    assert said == []
    assert read_manifest(writer.folder).report == planned.report
    writer.add(vectors[1_000:])
    writer.compact(queries=lambda most: users[:most], say=said.append)
    manifest = read_manifest(writer.folder)
    (measured,) = manifest.report
    assert (measured.layout, measured.effort, measured.k) == (manifest.layout, manifest.effort, 10)
    assert manifest.layout.lists > planned.index.layout.lists
    assert measured.recall >= 0.9
    assert [line.split()[0] for line in said] == ["ivf-fastscan"]
    _, found = writer.index.search(others, 10)
    assert recall_of(found, FlatIndex(vectors).search(others, 10)[1]).mean() >= 0.88
    # What was enough for its first lists is not for those that it has now.
    writer.index.base.set_effort(planned.index.effort)
    _, found = writer.index.search(others, 10)
    assert recall_of(found, FlatIndex(vectors).search(others, 10)[1]).mean() < 0.88


def test_what_was_kept_beside_goes_into_the_new_base(run: Run) -> None:
    writer = PublishedIndex(run)
    writer.add(MORE)
    writer.compact(write_beside=lambda folder: (folder / "items").write_text("three"))
    assert (PublishedIndex(run).folder / "items").read_text() == "three"


def test_going_back_gives_the_state_that_was_left(run: Run) -> None:
    writer = PublishedIndex(run)
    writer.add(MORE)
    first = answers(writer)
    writer.compact()
    writer.remove(np.array([0, 1, 2]))
    second = answers(writer)
    assert [one.number for one in published(run)] == [1, 2, 3, 4]
    assert roll_back(run).number == 2
    assert answers(PublishedIndex(run)) == first
    assert roll_back(run, 4).number == 4
    assert answers(PublishedIndex(run)) == second
    assert [one.number for one in published(run)] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(BadInput, match=r"no release 9.*1, 2, 3, 4, 5"):
        roll_back(run, 9)


def test_nothing_to_go_back_to(run: Run, tmp_path: Path) -> None:
    PublishedIndex(run).add(MORE)
    with pytest.raises(BadInput, match="no earlier release of another index"):
        roll_back(run)
    with pytest.raises(BadInput, match="published nothing"):
        roll_back(Run(tmp_path / "none"))


def test_the_last_indexes_stay_and_a_reader_keeps_what_it_has_open(run: Run) -> None:
    reader = PublishedIndex(run)
    before = answers(reader)
    writer = PublishedIndex(run)
    for step in range(5):
        writer.add(MORE[:1] * (step + 1))
        writer.compact()
    kept = [one.release.index for one in published(run)]
    gone = prune(run)
    there = {path.name for path in (run.root / "artifacts" / "index").iterdir()}
    assert len(there) == KEPT
    assert there == set(list(dict.fromkeys(reversed(kept)))[:KEPT])
    assert {one.release.index for one in published(run)} == there
    assert len(list((run.root / LIVE).iterdir())) == KEPT - 1  # the newest base has no changes yet
    assert len([name for name in gone if name.startswith("artifacts")]) == 6 - KEPT
    assert answers(reader) == before
    reader.refresh()
    same(reader, writer)
    assert prune(run) == []


def test_a_reader_whose_journal_is_pruned_since_it_looked_takes_the_next_release(run: Run) -> None:
    writer = PublishedIndex(run)
    writer.add(MORE)
    late = PublishedIndex(run)
    looked = [late._look()]
    look, late._look = late._look, lambda: looked.pop() if looked else look()
    for step in range(KEPT):
        writer.compact()
        writer.add(MORE[:1] * (step + 1))
    prune(run)
    assert late.refresh() is Fresh.REPLACED
    same(late, writer)


def made(run: Run, step: int) -> Release:
    """A release of its own data set, vectors and index."""
    parts = {kind: run.write_artifact(kind, {"step": step}, lambda folder: None) for kind in ("dataset", "vectors")}
    return publish(run, beside=parts, step=step)


def there(run: Run, kind: str) -> set[str]:
    return {path.name for path in (run.root / "artifacts" / kind).iterdir()}


def test_vectors_and_data_sets_go_with_the_last_release_that_names_them(run: Run) -> None:
    releases = [made(run, step) for step in range(5)]
    prepared = run.write_artifact("dataset", {"step": "next"}, lambda folder: None)
    run.publish(dataset=releases[1].dataset)  # the data of an earlier one again
    prune(run)
    assert there(run, "vectors") == {one.vectors for one in releases[-KEPT:]}
    assert there(run, "dataset") == {*(one.dataset for one in releases), prepared}
    prune(run, prepared=prepared)
    assert there(run, "dataset") == {*(one.dataset for one in (releases[1], *releases[-KEPT:])), prepared}
    assert roll_back(run).release.vectors == releases[-2].vectors


def test_what_a_command_at_work_has_just_made_is_left_alone(run: Run) -> None:
    old, *_ = [made(run, step) for step in range(KEPT + 1)]
    fresh = {kind: run.write_artifact(kind, {"step": "next"}, lambda folder: None) for kind in ("index", "vectors")}
    script = (
        "import sys; from pathlib import Path; from store.artifacts import Run\n"
        "with Run(Path(sys.argv[1])).work(): print('at work', flush=True), sys.stdin.readline()"
    )
    command = [sys.executable, "-c", script, str(run.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as other:
        assert other.stdout.readline() == "at work\n"
        prune(run)
        assert old.vectors not in there(run, "vectors")
        assert all(key in there(run, kind) for kind, key in fresh.items())
        other.communicate("\n")
    prune(run)
    assert not any(key in there(run, kind) for kind, key in fresh.items())


def test_a_release_that_is_going_back_far_is_never_pruned(run: Run) -> None:
    writer = PublishedIndex(run)
    writer.add(MORE)
    writer.compact()
    roll_back(run)
    prune(run)
    assert PublishedIndex(run).index.live_rows.tolist() == list(range(33))


@pytest.mark.parametrize("stage", ["index", "journal"])
def test_damage_is_named(run: Run, stage: str) -> None:
    PublishedIndex(run).add(MORE)
    path = next((run.root / "artifacts" / "index").glob(f"*/{INDEX_FILE}"))
    if stage == "journal":
        (path,) = (run.root / LIVE).iterdir()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CorruptArtifact, match=path.name):
        PublishedIndex(run)


def test_a_reader_that_meets_damage_goes_on_with_what_it_has(run: Run) -> None:
    writer, reader = PublishedIndex(run), PublishedIndex(run)
    writer.add(MORE)
    reader.refresh()
    before = answers(reader)
    writer.remove(np.array([0]))
    (path,) = (run.root / LIVE).iterdir()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptArtifact):
        reader.refresh()
    assert answers(reader) == before


def test_slots_that_do_not_fit_are_refused(run: Run) -> None:
    from index.published import open_live, save_slots

    writer = PublishedIndex(run)
    writer.add(MORE)
    writer.compact()
    save_slots(writer.folder, np.arange(5), 33)
    with pytest.raises(CorruptArtifact, match=r"5 rows for 33 vectors"):
        open_live(writer.folder)
    (writer.folder / SLOTS).write_bytes(b"x")
    with pytest.raises(CorruptArtifact, match=SLOTS):
        open_live(writer.folder)


def test_no_index_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(MissingStep, match="build-index"):
        PublishedIndex(Run(tmp_path))


def test_what_is_refused_is_not_written_down(run: Run) -> None:
    writer = PublishedIndex(run)
    writer.add(MORE)
    before = run.release(), len(writer.changes)
    for change, error in (
        (lambda: writer.add(np.ones((1, 5), dtype=np.float32)), Mismatch),
        (lambda: writer.add(np.full((1, 4), np.nan, dtype=np.float32)), BadInput),
        (lambda: writer.update(np.array([40]), MORE[:1]), BadInput),
        (lambda: writer.remove(np.array([40])), UnknownId),
        (lambda: writer.change(Change(ChangeKind.REMOVE, np.array([1, 1]))), BadInput),
    ):
        with pytest.raises(error):
            change()
    assert (run.release(), len(PublishedIndex(run).changes)) == before


def test_removing_everything_leaves_nothing_to_compact(run: Run) -> None:
    writer = PublishedIndex(run)
    writer.remove(np.arange(30))
    with pytest.raises(BadInput, match="at least one"):
        writer.compact()


def test_a_second_writer_is_refused_and_a_later_one_sees_what_the_first_has_done(run: Run) -> None:
    script = (
        "import sys, numpy as np; from index.published import PublishedIndex; from store.artifacts import Run;"
        "from store.errors import RunBusy; writer = PublishedIndex(Run(sys.argv[1]))\n"
        "try: print(writer.add(np.ones((2, 4), dtype=np.float32)).tolist())\n"
        "except RunBusy as error: print(error)\n"
    )

    def other() -> str:
        done = subprocess.run(
            [sys.executable, "-c", script, str(run.root)], cwd=ROOT, check=True, capture_output=True, text=True
        )
        return done.stdout

    writer = PublishedIndex(run)
    with run.lock():
        assert "is being written by process" in other()
    assert other().strip() == "[30, 31]"
    assert writer.add(MORE).tolist() == [32, 33, 34]
    assert RunBusy.exit_code == 7


def test_an_older_run_without_numbers_goes_on(run: Run) -> None:
    import json

    release = asdict(run.release())
    del release["live"]
    (run.root / "current.json").write_text(json.dumps({"format": 1, **release}))
    for record in (run.root / "releases").iterdir():
        record.unlink()
    assert published(run) == []
    writer = PublishedIndex(run)
    writer.add(MORE)
    writer.compact()
    assert [one.number for one in published(run)] == [0, 1, 2]
    roll_back(run)
    assert len(PublishedIndex(run).index.live_rows) == 33


@pytest.mark.parametrize("kind", [pytest.param(IndexKind.MILVUS, marks=MILVUS), IndexKind.IVF_SQ8])
def test_any_kind_of_base_takes_changes_and_is_compacted_as_that_kind(run: Run, kind: IndexKind) -> None:
    publish(run, Planned(INDEXES[kind](BASE), ()))
    writer, reader = PublishedIndex(run), PublishedIndex(run)
    writer.add(MORE)
    writer.remove(np.array([5, 31]))
    before = answers(writer)
    writer.compact()
    assert answers(writer) == before
    reader.refresh()
    same(reader, writer)
    manifest = read_manifest(reader.folder)
    assert (manifest.kind, manifest.count, len(reader.changes)) == (kind, 31, 0)
    writer.add(MORE[:1])
    same(PublishedIndex(run), writer)
