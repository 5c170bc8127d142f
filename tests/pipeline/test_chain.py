"""From files to recommendations and figures, every step real, on a planted shop of 120 users and 60 items."""

import json
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from config import with_overrides
from data.prepared import load_prepared
from pipeline.build_index import build_index
from pipeline.evaluate import EvaluationOptions, Part, evaluate_run, evaluation_recommender
from pipeline.export import Asked
from pipeline.fit_final import fit_final
from pipeline.prepare import prepare
from pipeline.run_log import RunLog
from pipeline.train_reranker import RECORD, train_reranker
from pipeline.train_retriever import train_retriever, train_seeds
from pipeline.workspace import FitKind, open_workspace
from recommend.recommender import Recommender
from recommend.release import load_reranker, load_stages
from rerank.fit import with_reranker_scores
from rerank.fusion import RERANKER, RETRIEVAL
from retrieval.distributed import ALONE
from retrieval.folder import read_card, read_recipe
from retrieval.own_weights import Part as OwnPart
from store.artifacts import Run
from store.errors import BadInput, MissingStep
from tests.pipeline.oracle import by_user, exported, histories_by_id, metrics
from tests.pipeline.shop import (
    catalog_rows,
    log_rows,
    quiet,
    train,
    weigh_reranker,
    without_last,
    write_rows,
)

PLAIN = EvaluationOptions(baselines=False)


# --- prepare


def test_prepare_writes_what_the_files_say(shop):
    ws = open_workspace(shop.run)
    histories = histories_by_id()
    assert list(ws.dataset.users.ids) == list(histories)
    ids = ws.dataset.catalog.vocabulary.ids
    assert [[ids[row] for row in ws.dataset.interactions[user]] for user in range(120)] == list(histories.values())
    assert ws.dataset.catalog.texts[3] == f"{catalog_rows()[3][1]} | genre3"
    report = load_prepared(ws.run.artifact("dataset", ws.dataset_key))[1]["report"]
    assert report["split"]["test_users"] == 120
    assert report["split"]["validation_users"] == 117  # three users have two interactions only
    assert ws.config == shop.config


def test_prepare_again_finds_its_work_and_touches_no_release(shop, tmp_path):
    root = shop.copy(tmp_path)
    before = (root / "current.json").read_bytes()
    first = open_workspace(root)
    made = {path: path.stat().st_mtime_ns for path in (root / "artifacts").rglob("*")}
    again = prepare(Run(root), shop.log, shop.catalog, users=None, config=shop.config, log=quiet(first))
    assert again.dataset_key == first.dataset_key
    assert {path: path.stat().st_mtime_ns for path in (root / "artifacts").rglob("*")} == made
    assert (root / "current.json").read_bytes() == before


def test_what_is_published_is_served_after_a_new_prepare_of_other_data(shop, tmp_path):
    """A shop with other rows, in another order, is prepared; until it is trained the old one answers, unmixed."""
    ws = open_workspace(shop.copy(tmp_path))
    expected = exported(ws, Asked.NEXT, tmp_path)
    other = write_rows(tmp_path / "other.csv", ["item_id", "title", "genres"], catalog_rows()[::-1])
    few = write_rows(tmp_path / "few.csv", ["user_id", "item_id", "timestamp"], log_rows()[300:])
    new = prepare(ws.run, few, other, users=None, config=ws.config, log=quiet(ws))
    assert new.dataset.users.ids != ws.dataset.users.ids
    assert exported(new, Asked.NEXT, tmp_path).equals(expected)
    with pytest.raises(MissingStep, match=r"has no retriever .*train-retriever --run"):
        evaluate_run(new, PLAIN, log=quiet(new))


# --- the steps name what is missing


def test_each_step_names_the_command_that_is_missing(shop, tmp_path):
    root = tmp_path / "run"
    with pytest.raises(MissingStep, match=r"holds no prepared data.*'python cli.py prepare --run .*run LOG CATALOG'"):
        open_workspace(root)
    ws = prepare(Run(root), shop.log, shop.catalog, users=None, config=shop.config, log=quiet_of(root))
    for step in (build_index, train_reranker, fit_final):
        with pytest.raises(MissingStep, match=r"'python cli.py train-retriever --run .*run'"):
            step(ws, log=quiet(ws))
    with pytest.raises(MissingStep, match="train-retriever"):
        load_stages(ws.run, ws.run.release())
    train_retriever(ws, log=quiet(ws))
    with pytest.raises(MissingStep, match=r"published no index: make it with 'python cli.py build-index --run .*run'"):
        load_stages(ws.run, ws.run.release())
    build_index(ws, log=quiet(ws))
    stages = load_stages(ws.run, ws.run.release())
    assert stages.reranker is None  # without a reranker the first stage serves alone


def quiet_of(root: Path) -> RunLog:
    return RunLog(Run(root), "test", quiet=True)


def test_a_made_step_is_found_and_a_changed_setting_asks_for_it_again(shop, tmp_path):
    ws = open_workspace(shop.copy(tmp_path))
    release = ws.run.release()
    assert train_retriever(ws, log=quiet(ws)) == release.retriever
    assert train_reranker(ws, log=quiet(ws)) == release.reranker
    assert ws.run.release() == release
    changed = replace(ws, config=with_overrides(ws.config, ["retriever.recency.epochs=1"]))
    with pytest.raises(MissingStep, match="train-retriever"):
        build_index(changed, log=quiet(ws))
    assert ws.run.release() == release
    train_retriever(changed, log=quiet(ws))
    assert ws.run.release() == release  # served is still the old one, whole
    published = build_index(changed, log=quiet(ws))
    assert published.retriever != release.retriever
    assert published.reranker is None  # the old one was taught by the old retriever


def test_one_seed_gives_one_result(shop, tmp_path):
    again = train(tmp_path / "run", shop.log, shop)
    assert again.run.release() == Run(shop.run).release()
    one, two = (exported(ws, Asked.NEXT, tmp_path) for ws in (again, open_workspace(shop.run)))
    assert one.equals(two)


def test_several_seeds_are_trained_and_the_first_is_the_runs_own(shop, tmp_path):
    ws = open_workspace(shop.copy(tmp_path))
    keys = train_seeds(ws, seeds=3, team=ALONE, log=quiet(ws))
    assert keys[0] == ws.retriever_key(FitKind.EVALUATION)
    assert len(set(keys)) == 3
    told = [json.loads(line) for line in (ws.run.root / "log.jsonl").read_text().splitlines()]
    (seeds,) = [entry for entry in told if entry.get("event") == "seeds"]
    figures = seeds["validation_ndcg@10"]
    assert figures == [read_card(ws.run.artifact("retriever", key)).fused_ndcg10 for key in keys]
    assert seeds["mean"] == pytest.approx(np.mean(figures))
    assert (seeds["lowest"], seeds["highest"]) == (min(figures), max(figures))
    assert len(set(figures)) > 1  # ties happen among few users
    assert ws.config == open_workspace(ws.run.root).config


# --- who is fitted on what


def test_no_test_item_reaches_any_model(shop, tmp_path):
    """A judge takes every user's last item away; what is trained on the rest recommends to the digit what the
    full run recommends for its test users. So nothing in the full run has looked at a test item."""
    blind_log = write_rows(tmp_path / "blind.csv", ["user_id", "item_id", "timestamp"], without_last(log_rows()))
    blind = train(tmp_path / "blind", blind_log, shop, "split.holdout=validation")
    full = open_workspace(shop.copy(tmp_path))
    for ws in (blind, full):
        weigh_reranker(ws.run.root, retrieval=1.0, reranker=0.8)
    theirs = exported(blind, Asked.NEXT, tmp_path)
    ours = exported(full, Asked.TEST, tmp_path)
    assert ours["user_id"].n_unique() == 120
    assert by_user(theirs) == by_user(ours)
    np.testing.assert_array_equal(theirs["score"].to_numpy(), ours["score"].to_numpy())
    # And the test can fail: the model does change with what comes last.
    changed = [row if row[1] != "i30" else [row[0], "i31", row[2]] for row in without_last(log_rows())]
    other_log = write_rows(tmp_path / "changed.csv", ["user_id", "item_id", "timestamp"], changed)
    other = train(tmp_path / "changed", other_log, shop, "split.holdout=validation")
    assert by_user(exported(other, Asked.NEXT, tmp_path)) != by_user(ours)


def test_blind_data_have_no_test_part_and_say_so(shop, tmp_path):
    blind_log = write_rows(tmp_path / "blind.csv", ["user_id", "item_id", "timestamp"], without_last(log_rows()))
    config = with_overrides(shop.config, ["split.holdout=validation"])
    root = tmp_path / "run"
    ws = prepare(Run(root), blind_log, shop.catalog, users=None, config=config, log=quiet_of(root))
    train_retriever(ws, log=quiet(ws))
    with pytest.raises(BadInput, match=r"test part of .*run has nobody to ask.*--split validation"):
        evaluate_run(ws, EvaluationOptions(part=Part.TEST), log=quiet(ws))
    with pytest.raises(BadInput, match=r"test part of .*run has no users; try --split next"):
        exported(ws, Asked.TEST, tmp_path)


def _rows_of_users() -> list[list[list[str]]]:
    return [list(rows) for _, rows in groupby(log_rows(), key=lambda row: row[0])]


@pytest.mark.parametrize(
    ("taken", "part", "told"),
    [
        (1, Part.TEST, "no user has the 2 interactions that it takes; give more interactions of some users"),
        (1, Part.VALIDATION, "no user has the 3 interactions that it takes; give more interactions of some users"),
        (2, Part.VALIDATION, "no user has the 3 interactions that it takes; try --split test"),
    ],
)
def test_a_log_that_is_too_short_to_ask_anybody_says_how_much_it_takes(shop, tmp_path, taken, part, told):
    rows = [row for rows in _rows_of_users() for row in rows[:taken]]
    short = write_rows(tmp_path / "short.csv", ["user_id", "item_id", "timestamp"], rows)
    root = tmp_path / "run"
    ws = prepare(Run(root), short, shop.catalog, users=None, config=shop.config, log=quiet_of(root))
    with pytest.raises(BadInput, match=f"{part} part of .*run has nobody to ask: {told}"):
        evaluate_run(ws, EvaluationOptions(part=part), log=quiet(ws))


def test_where_group_b_alone_is_empty_it_is_named(shop, tmp_path):
    group_a = [row for row in log_rows() if row[0] in {"u010", "u011"}]
    short = write_rows(tmp_path / "short.csv", ["user_id", "item_id", "timestamp"], group_a)
    root = tmp_path / "run"
    ws = prepare(Run(root), short, shop.catalog, users=None, config=shop.config, log=quiet_of(root))
    assert len(ws.learners) == 2
    with pytest.raises(BadInput, match=r"no user of group B, 20 % of users by hash, has the 3 .*; try --split test"):
        evaluate_run(ws, PLAIN, log=quiet(ws))


# --- the final fit


def test_the_final_fit_is_served_while_the_figures_stay(shop, tmp_path):
    root = shop.copy(tmp_path)
    weigh_reranker(root, retrieval=1.0, reranker=0.8)
    ws = open_workspace(root)
    evaluate_run(ws, PLAIN, log=quiet(ws))
    before, test_before = metrics(ws, "validation"), exported(ws, Asked.TEST, tmp_path)
    next_before = exported(ws, Asked.NEXT, tmp_path)
    release = fit_final(ws, log=quiet(ws))
    assert release.retriever == ws.retriever_key(FitKind.FINAL)
    assert release.reranker == ws.reranker_key(FitKind.FINAL)
    assert ws.run.release() == release
    report, _ = evaluate_run(ws, PLAIN, log=quiet(ws))
    assert metrics(ws, "validation") == before
    assert any("What is published is the final fit" in note for note in report.notes)
    assert exported(ws, Asked.TEST, tmp_path).equals(test_before)
    assert by_user(exported(ws, Asked.NEXT, tmp_path)) != by_user(next_before)
    served = Recommender(load_stages(ws.run, release), ws.config.recommending)
    assert served.fit == "final"
    # Chosen on validation, repeated for the scale of its own scores.
    weights = served.second.fusion.weights
    asked = ws.selectors
    candidates = served.retriever.candidates(asked.histories, ws.config.reranker.depth)
    theirs = load_reranker(ws.run, ws.reranker_key(FitKind.EVALUATION))[0]
    spread, its_spread = (
        with_reranker_scores(one, ws.dataset.catalog.texts, candidates, asked.histories).sources[RERANKER].std()
        for one in (theirs, served.second.reranker)
    )
    assert weights[RETRIEVAL] == 1.0
    assert weights[RERANKER] * its_spread == pytest.approx(0.8 * spread, rel=0.5)
    record = json.loads((ws.run.artifact("reranker", release.reranker) / RECORD).read_text())["fusion"]
    assert record["weights"] == weights
    assert record["users"] == len(asked) > 0
    assert served.recommend(served.history_of("u010")).release_fit == "final"
    # It has counted every interaction, the last ones too.
    alone = load_stages(ws.run, release).retriever.transitions.weights
    last = [ws.dataset.catalog.vocabulary.rows(items[-2:]) for items in histories_by_id().values()]
    assert all(alone[before, after] > 0 for before, after in last)


def test_the_final_fit_repeats_the_epochs_that_validation_chose(shop, tmp_path):
    ws = open_workspace(shop.copy(tmp_path))
    fit_final(ws, log=quiet(ws))
    cards = [
        json.loads((ws.run.artifact("retriever", ws.retriever_key(fit)) / "retriever.json").read_text())
        for fit in (FitKind.EVALUATION, FitKind.FINAL)
    ]
    assert cards[0]["epochs"] == cards[1]["epochs"]
    assert cards[1]["epochs"] == {record["name"]: len(record["epochs"]) for record in cards[1]["records"]}
    assert cards[0]["tower_weights"] == cards[1]["tower_weights"]
    assert cards[0]["transitions"] == cards[1]["transitions"]


def test_a_final_fit_is_made_again_only_where_asked(shop, tmp_path):
    ws = open_workspace(shop.copy(tmp_path))
    fit_final(ws, log=quiet(ws))
    folder = ws.run.artifact("retriever", ws.retriever_key(FitKind.FINAL))
    made = (folder / "towers.safetensors").stat().st_mtime_ns
    fit_final(ws, log=quiet(ws))
    assert (folder / "towers.safetensors").stat().st_mtime_ns == made
    fit_final(ws, log=quiet(ws), force=True)
    assert (folder / "towers.safetensors").stat().st_mtime_ns > made


def test_a_tuned_encoder_reads_wishes_too(shop, tmp_path, capsys):
    """The encoder is tuned by LoRA: a wish must be read by the tuned one, in whose space the catalog's vectors lie."""
    from pipeline.answer import Wish, answer

    ws = train(
        tmp_path / "run",
        shop.log,
        shop,
        "retriever.finetune.method=lora",
        "retriever.finetune.learning_rate=0.05",
        "retriever.finetune.lora_rank=4",
    )
    for row in (3, 29):
        found = answer(ws, Wish(query=ws.dataset.catalog.texts[row], k=1), as_json=True)
        assert found.items[0].item_id == f"i{row:02d}"
        assert found.items[0].retrieval_score == pytest.approx(1, abs=1e-3)
    fit_final(ws, log=quiet(ws))
    found = answer(ws, Wish(query=ws.dataset.catalog.texts[3], k=1), as_json=True)
    assert (found.items[0].item_id, found.release_fit) == ("i03", "final")
    capsys.readouterr()


def test_a_temporal_split_goes_all_the_way(shop, tmp_path):
    ws = train(tmp_path / "run", shop.log, shop, "split.kind=temporal", "split.test_share=0.2")
    report, _ = evaluate_run(ws, EvaluationOptions(part=Part.TEST, baselines=False), log=quiet(ws))
    assert "global temporal" in report.split
    frame = exported(ws, Asked.TEST, tmp_path, k=20)
    assert frame["user_id"].n_unique() == len(ws.split.test) == len(report.user_ids)
    times = np.array([int(row[2]) for row in log_rows()])
    cut = np.sort(times)[int(0.8 * len(times))]
    assert ws.split.train.timestamps.max() < cut
    # Asked about validation it knows the training part; asked about the test, everything before the cut.
    taken = {
        part: evaluation_recommender(ws, part, with_reranker=False, log=quiet(ws)).retriever.trend.taken
        for part in (Part.VALIDATION, Part.TEST)
    }
    assert len(taken[Part.TEST]) == (times < cut).sum()
    assert len(taken[Part.VALIDATION]) == len(ws.split.train.item_rows) < (times < cut).sum()
    # So what is cold in the test is what nobody took before the cut.
    before = np.bincount(ws.split.before_test.item_rows, minlength=len(ws.dataset.catalog))
    cold = int((before[ws.split.test.targets.item_rows] == 0).sum())
    slices = next(system for system in report.systems if system.name == "retrieval only").evaluation.slices
    assert slices.get("target_item/cold", {"targets": 0})["targets"] == cold
    assert slices["target_item/warm"]["targets"] == len(ws.split.test.targets.item_rows) - cold
    # The settings are those that validation chose.
    cards = [
        read_card(ws.run.artifact("retriever", ws.retriever_key(fit)))
        for fit in (FitKind.EVALUATION, FitKind.BEFORE_TEST)
    ]
    assert cards[0].transitions == cards[1].transitions


# --- weights of their own


def test_too_few_cold_targets_share_the_weights_and_the_report_says_so(shop, tmp_path):
    ws = open_workspace(shop.copy(tmp_path))
    plain = ws.retriever_made_from(FitKind.EVALUATION)
    assert "cold_targets" not in plain["config"]  # off it changes no key: what was made before is still found
    asked = replace(ws, config=with_overrides(ws.config, ["retriever.cold_targets=500"]))
    assert asked.retriever_made_from(FitKind.EVALUATION)["config"]["cold_targets"] == 500
    cards, fusions = [], []
    for each in (ws, asked):
        folder = each.run.artifact("retriever", train_retriever(each, log=quiet(each)))
        cards.append(read_card(folder))
        fusions.append(read_recipe(folder).fusion)
    (told,) = cards[1].own_weights
    assert (told.part, told.needed, told.gain, told.kept) == (OwnPart.COLD, 500, None, False)
    assert cards[0].own_weights == ()
    assert fusions[0] == fusions[1]
    report, page = evaluate_run(asked, EvaluationOptions(rerank=False, baselines=False), log=quiet(asked))
    words = "Cold items share the weights of all: own ones were not tried on"
    assert [note for note in report.notes if note.startswith(words)] == [told.words]
    assert words in page.read_text()
    silent, _ = evaluate_run(ws, EvaluationOptions(rerank=False, baselines=False), log=quiet(ws))
    assert not any(note.startswith("Cold items") for note in silent.notes)


def test_a_split_by_cold_items_lets_them_weigh_the_sources_in_their_own_way(shop, tmp_path):
    run = Run(tmp_path / "run")
    settings = [
        "split.kind=cold-items",
        "split.cold_items=12",
        "split.validation_share=0.3",
        "retriever.cold_targets=5",
    ]
    config = with_overrides(shop.config, settings)
    log = RunLog(run, "test", quiet=True)
    ws = prepare(run, shop.log, shop.catalog, users=None, config=config, log=log)
    folder = ws.run.artifact("retriever", train_retriever(ws, log=log))
    (told,) = read_card(folder).own_weights
    assert told.targets >= 5
    assert told.gain is not None
    report, _ = evaluate_run(ws, EvaluationOptions(baselines=False), log=log)
    assert told.words in report.notes
    # Everything that is asked is cold, so that this slice is the whole.
    for source in report.contributions:
        assert set(source.slices) >= {"target_item/cold"}
        assert source.slices["target_item/cold"].ours == pytest.approx(source.test.ours)


# --- a tuned encoder


def test_a_tuned_encoder_is_asked_kept_or_dropped_and_repeated_by_the_final_fit(shop, tmp_path):
    root = shop.copy(tmp_path)
    ws = open_workspace(root)
    tuned = with_overrides(ws.config, ["retriever.finetune.method=lora", "retriever.finetune.rounds=1"])
    ws = replace(ws, config=tuned)
    key = train_retriever(ws, log=quiet(ws))
    card = read_card(ws.run.artifact("retriever", key))
    assert card.config.finetune.method == "lora"
    assert card.tuning_rounds in (0, 1)  # the frozen encoder may be the better one
    assert card.tuned == (card.tuning_rounds > 0)
    final = read_card(ws.run.artifact("retriever", train_retriever(ws, log=quiet(ws), fit=FitKind.FINAL)))
    assert final.tuning_rounds == card.tuning_rounds
