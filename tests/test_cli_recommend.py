"""`recommend` on the command line: its table, its JSON, its file, and its refusals."""

import json
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from store.errors import BadInput, UnknownId
from tests.pipeline.commands import Done, refused, run
from tests.pipeline.shop import Shop, catalog_rows, log_rows, weigh_reranker

CLI = Path(__file__).parents[1] / "cli.py"


def asked(shop: Shop, *options: object) -> Done:
    return run("recommend", "--run", shop.run, *options, cwd=shop.folder)


def test_the_table_of_a_user(shop: Shop):
    done = asked(shop, "--user", "u010")
    titles = {row[0]: row[1] for row in catalog_rows()}
    taken = [item for user, item, _ in log_rows() if user == "u010"]
    assert f"last taken: {' · '.join(titles[item] for item in taken[::-1][:5])}" in done.out
    shown = re.findall(r"^ *\d+ │ (.*?) *│", done.out, re.MULTILINE)
    assert len(shown) == len(set(shown)) == 10
    assert not {titles[item] for item in taken} & set(shown)
    assert re.search(r"cost: 30 candidates, \d+ reranked, \d+ tokens; retrieval [\d.]+ ms, reranking", done.out)


def test_json_is_all_that_is_on_stdout(shop: Shop):
    found = json.loads(asked(shop, "--user", "u010", "--json", "-k", 3).out)
    assert [item["retrieval_rank"] for item in found["items"]] == [1, 2, 3]
    assert found["basis"] == "history"
    assert found["cost"]["candidates"] == 30


def test_a_history_of_items_follows_the_planted_rule(shop: Shop):
    found = json.loads(asked(shop, "--history", "i07, i08,i09", "--json").out)
    assert found["items"][0]["item_id"] == "i10"
    assert "i09" in found["items"][0]["because"]
    assert not {item["item_id"] for item in found["items"]} & {"i07", "i08", "i09"}


def test_an_empty_history_is_given_popular_items_and_told_so(shop: Shop):
    for empty in ("", " , "):
        done = asked(shop, "--history", empty)
        assert done.code == 0, done.err
        assert "no history: these are the popular items of the last days" in done.out
    assert json.loads(asked(shop, "--history", "", "--json").out)["basis"] == "recent popular items"


def test_a_wish_finds_the_item_of_that_text(shop: Shop):
    row = catalog_rows()[21]
    found = json.loads(asked(shop, "--query", f"{row[1]} | {row[2]}", "--json").out)
    assert (found["items"][0]["item_id"], found["basis"]) == ("i21", "query")
    assert found["items"][0]["score"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("whom", [["--user", "u010"], ["--history", "i07,i08"], ["--history", ""], ["--query", "bal"]])
def test_a_filter_holds_for_every_way_of_asking(shop: Shop, whom):
    options = ["--where", "genres = 'genre1' AND NOT title LIKE 'x%'", "--exclude", "i05,i01", "--json", "-k", 12]
    found = json.loads(asked(shop, *whom, *options).out)["items"]
    genres = {row[0]: row[2] for row in catalog_rows()}
    assert {genres[item["item_id"]] for item in found} == {"genre1"}
    known = {item for user, item, _ in log_rows() if user == "u010"} if "--user" in whom else set(whom[1].split(","))
    left = [item for item, genre in genres.items() if genre == "genre1" and item not in known | {"i05", "i01"}]
    assert len(found) == min(12, len(left))


def test_only_the_listed_items(shop: Shop, tmp_path):
    found = json.loads(asked(shop, "--history", "i07", "--only", "i08, i30,i07", "--json").out)["items"]
    assert {item["item_id"] for item in found} == {"i08", "i30"}
    quoted = json.loads(asked(shop, "--history", '"i07",i09', "--only", '"i08", i30,"i07"', "--json").out)["items"]
    assert {item["item_id"] for item in quoted} == {"i08", "i30"}
    path = tmp_path / "recs.parquet"
    done = asked(shop, "--all", "-k", 20, "-o", path, "--only", "i08,i30,i07,i09")
    assert done.code == 0, done.err
    assert set(pl.read_parquet(path)["item_id"]) == {"i07", "i08", "i09", "i30"}


def test_a_list_that_is_empty_says_why(shop: Shop):
    taken = ",".join([item for user, item, _ in log_rows() if user == "u010"][:2])
    done = asked(shop, "--user", "u010", "--only", taken)
    assert done.code == 0, done.err
    why = f"no items: of the 2 that pass the filter (--only '{taken}') every one was taken already"
    assert why in done.out
    assert "because of" not in done.out
    found = json.loads(asked(shop, "--user", "u010", "--only", taken, "--json").out)
    assert (found["items"], found["no_items"].startswith(why)) == ([], True)
    assert json.loads(asked(shop, "--user", "u010", "--json").out)["no_items"] == ""


def test_a_filter_that_cannot_be_used_is_told(shop: Shop):
    refused(asked(shop, "--user", "u010", "--where", "genre = 'a'"), BadInput, "character 1: unknown.*'genres'")
    refused(asked(shop, "--user", "u010", "--where", "genres = 'a'"), BadInput, "none of the 60 items passes.*--where")
    refused(asked(shop, "--user", "u010", "--only", "i08,none"), UnknownId, "1 of 2 items are unknown: 'none'")


def test_unknown_users_and_items_are_told_the_way_out(shop: Shop):
    way_out = r"--history ITEM,ITEM, or from a wish with --query 'text'"
    refused(asked(shop, "--user", "nobody"), UnknownId, "user 'nobody' is not among the 120 known users", way_out)
    told = refused(asked(shop, "--history", "i01,none"), UnknownId, "1 of 2 items are unknown: 'none'")
    assert "takes ids as the catalog writes them, such as i00, i01, i02; a wish goes into --query 'text'" in told
    assert "--history ITEM" not in told


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (["--user", "u010", "-k", "61"], "k is 61, but the catalog has 60 items: ask for 1 to that many"),
        (["--user", "u010", "-k", "0"], "k is 0"),
        (["--query", "  "], "query is empty"),
        ([], "exactly one of --user ID"),
        (["--user", "u010", "--query", "bal"], "exactly one of --user ID"),
        (["--all"], "needs -o FILE"),
        (["--user", "u010", "-o", "x.parquet"], "-o needs --all"),
        (["--all", "-o", "x.parquet", "--user", "u010"], "--all"),
        (["--all", "-o", "x.parquet", "--split", "train"], "--split is 'train'; it may be validation, test, next"),
        (["--all", "-o", "x.parquet", "-k", "100"], "k is 100, but the catalog has 60 items"),
        (["--user", "u010", "--rerank", "sometimes"], "--rerank is 'sometimes'; it may be auto, always, never"),
    ],
)
def test_bad_questions(shop: Shop, options, pattern):
    refused(asked(shop, *options), BadInput, pattern)
    assert not (shop.folder / "x.parquet").exists()


def test_all_users_into_a_file(shop: Shop, tmp_path):
    path = tmp_path / "deep" / "recs.parquet"
    done = asked(shop, "--all", "--split", "test", "-k", 20, "-o", path)
    assert done.code == 0, done.err
    assert done.out == f"{path}: 2,400 rows\n"
    assert len(pl.read_parquet(path)) == 2400


def test_all_users_into_a_file_without_a_k_gives_what_a_small_catalog_has(shop: Shop, tmp_path):
    path = tmp_path / "recs.parquet"
    done = asked(shop, "--all", "-o", path, "--rerank", "never")
    assert done.code == 0, done.err
    rows = pl.read_parquet(path).group_by("user_id").len()
    taken = pl.DataFrame(log_rows(), schema=["user_id", "item_id", "timestamp"], orient="row").group_by("user_id").len()
    both = rows.join(taken, on="user_id")
    assert len(both) == 120
    assert (both["len"] + both["len_right"] == 60).all()


def test_a_fresh_process_recommends_as_this_one_does(shop: Shop, tmp_path):
    """One real `python cli.py`, from nothing: whatever is in memory here must not matter."""
    root = shop.copy(tmp_path)
    weigh_reranker(root, retrieval=1.0, reranker=0.8)
    arguments = ["recommend", "--run", root, "--user", "u010", "--json"]
    fresh = subprocess.run([sys.executable, CLI, *arguments], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert fresh.stderr == ""
    forked = run(*arguments, cwd=tmp_path)
    fresh_items, items = (json.loads(out)["items"] for out in (fresh.stdout, forked.out))
    assert [item["item_id"] for item in fresh_items] == [item["item_id"] for item in items]
    for one, other in zip(fresh_items, items, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert one["rerank_rank"] == other["rerank_rank"]
