"""What users rated below the least rating is not recommended to them, and nothing else comes of it."""

import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from config import with_overrides
from data.schema import Dataset
from pipeline.answer import Wish, answer
from pipeline.build_index import build_index
from pipeline.export import Asked
from pipeline.prepare import prepare
from pipeline.run_log import RunLog
from pipeline.train_retriever import train_retriever
from pipeline.workspace import Workspace, open_workspace
from recommend.asking import Ask
from recommend.events import Event, Events
from recommend.histories import disliked_by
from recommend.recommender import Rerank
from recommend.service import Service
from store.artifacts import Run
from store.errors import UnknownId
from tests.pipeline.living import TWIN, add
from tests.pipeline.oracle import by_user, exported, histories_by_id
from tests.pipeline.shop import ITEMS, START_S, Shop, item_id, log_rows, quiet, write_rows
from tests.serve.conftest import service_on

ALL = {item_id(row) for row in range(ITEMS)}
TAKEN = {user: set(items) for user, items in histories_by_id().items()}
LOW = {user: sorted(ALL - TAKEN[user])[:3] for user in ("u010", "u011")} | {"grumbler": ["i10", "i11"]}
LEFT = {user: ALL - TAKEN[user] - set(LOW[user]) for user in ("u010", "u011")}


def prepared(root: Path, shop: Shop, low: dict[str, list[str]]) -> Workspace:
    """The shop's log, in which everything is rated well, and these items badly."""
    rows = [[*row, "5"] for row in log_rows()]
    rows += [[user, item, str(START_S), "1"] for user, items in low.items() for item in items]
    path = write_rows(root.parent / "rated.csv", ["user_id", "item_id", "timestamp", "rating"], rows)
    config = with_overrides(shop.config, ["data.min_rating=3"])
    return prepare(Run(root), path, shop.catalog, users=None, config=config, log=RunLog(Run(root), "test", quiet=True))


def of_everybody(dataset: Dataset, events: Events | None = None) -> dict[str, list[str]]:
    assert dataset.disliked is not None
    ids = dataset.catalog.vocabulary.ids
    return {user: [ids[row] for row in disliked_by(user, dataset, events)] for user in dataset.disliked.users.ids}


@pytest.fixture(scope="module")
def rated(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rated") / "run"
    ws = prepared(root, shop, LOW)
    train_retriever(ws, log=quiet(ws))
    build_index(ws, log=quiet(ws))
    return root


@pytest.fixture
def root(rated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(rated, tmp_path / "run"))


def answered(root: Path, user: str) -> set[str]:
    found = answer(open_workspace(root), Wish(user=user, k=ITEMS, rerank=Rerank.NEVER), as_json=True)
    return {item.item_id for item in found.items}


def served(service: Service, user: str, **how: bool) -> set[str]:
    answered = service.recommend(Ask(user_id=user, limit=ITEMS, rerank=Rerank.NEVER, **how)).answer
    return {item.item_id for item in answered.items}


def test_it_is_in_no_list_of_the_command_line(root: Path, tmp_path: Path) -> None:
    ws = open_workspace(root)
    assert of_everybody(ws.dataset) == LOW
    assert "grumbler" not in ws.dataset.users
    for towers_only in (False, True):
        lists = by_user(exported(ws, Asked.NEXT, tmp_path, k=ITEMS, towers_only=towers_only))
        assert {user: set(lists[user]) for user in LEFT} == LEFT
        assert "grumbler" not in lists
    assert {user: answered(root, user) for user in LEFT} == LEFT


def test_it_is_in_no_answer_of_a_server_unless_asked_for(root: Path) -> None:
    service = service_on(root)
    for user, left in LEFT.items():
        assert served(service, user) == left
        assert served(service, user, exclude_known=False) == ALL
    # Nobody to the log, and given what is popular.
    assert served(service, "grumbler") == ALL - set(LOW["grumbler"])
    assert served(service, "somebody") == ALL
    service.store([Event("a", "grumbler", "i30", int(time.time()))])
    assert served(service, "grumbler") == ALL - {"i30", *LOW["grumbler"]}
    gone = service.forget("grumbler")
    assert (gone.events, gone.history_items, gone.in_data) == (1, 0, True)
    assert served(service, "grumbler") == ALL
    service.close()


def test_no_question_of_an_evaluation_knows_it(root: Path, tmp_path: Path) -> None:
    ws = open_workspace(root)
    blind = replace(ws, config=with_overrides(ws.config, ["split.holdout=validation"]))  # `next` stands for the test
    for one, part in ((ws, Asked.VALIDATION), (ws, Asked.TEST), (blind, Asked.NEXT)):
        lists = by_user(exported(one, part, tmp_path, k=ITEMS))
        assert all(set(LOW[user]) <= set(lists[user]) for user in LEFT)


def test_it_outlives_items_that_come_and_the_next_prepare(root: Path, shop: Shop) -> None:
    add(root, TWIN)
    assert answered(root, "u010") == LEFT["u010"] | {"twin"}
    before = open_workspace(root)
    low = {**LOW, "u010": [*LOW["u010"], sorted(LEFT["u010"])[0]]}
    after = prepared(root, shop, low)
    assert after.dataset_key != before.dataset_key
    assert after.fingerprint == before.fingerprint  # nothing is trained anew
    build_index(after, log=quiet(after))
    assert answered(root, "u010") == LEFT["u010"] - set(low["u010"]) | {"twin"}


def test_of_who_asked_to_be_forgotten_it_is_not_used_and_not_prepared_again(root: Path, shop: Shop) -> None:
    events = Events(root)
    events.forget("u010")
    events.forget("grumbler")
    dataset = open_workspace(root).dataset
    assert of_everybody(dataset, events) == {"u010": [], "u011": LOW["u011"], "grumbler": []}
    events.add([Event("a", "u010", "i30", int(time.time()) + 1), Event("b", "u011", LOW["u011"][0], START_S)])
    assert set(LOW["u010"]) & answered(root, "u010")
    after = prepared(root, shop, LOW)
    assert of_everybody(after.dataset) == {"u011": LOW["u011"]}
    assert after.manifest["report"]["load"]["added"] == 2
    assert after.manifest["report"]["load"]["dropped"]["below_min_rating"] == 8


def test_a_log_without_low_ratings_makes_what_it_always_made(shop: Shop, tmp_path: Path) -> None:
    ws = prepared(tmp_path / "run", shop, {})
    assert ws.dataset.disliked is None
    assert "disliked" not in ws.manifest["made_from"]
    assert set(ws.manifest["files"]) == {"interactions.parquet", "users.parquet", "items.parquet"}


def test_nobody_is_known_by_it_alone_on_the_command_line(root: Path) -> None:
    with pytest.raises(UnknownId, match="grumbler"):
        answered(root, "grumbler")
