"""Events are seen by the next recommendation, and a user who is forgotten is nobody."""

import time

import pytest

from recommend.events import RECALLED, Event
from recommend.histories import known_of
from tests.serve.conftest import Client


def event(name: str, user: str, item: str, **more):
    return {"event_id": name, "user_id": user, "item_id": item, **more}


def first_for(client: Client, user: str) -> dict:
    return client.post("/v1/recommend", {"user_id": user, "limit": 5, "rerank": "never"}).json()


def test_an_event_is_seen_by_the_next_recommendation(client: Client):
    assert first_for(client, "newcomer")["known_user"] is False
    stored = client.post("/v1/events", event("n1", "newcomer", "i30"))
    assert stored.status_code == 200
    assert (stored.json()["accepted"], stored.json()["duplicates"]) == (1, 0)
    answer = first_for(client, "newcomer")
    assert (answer["known_user"], answer["basis"]) == (True, "history")
    assert answer["items"][0]["item_id"] == "i31"
    assert client.post("/v1/events", event("n1", "newcomer", "i30")).json()["duplicates"] == 1


def test_events_go_on_from_the_log(client: Client):
    known = client.service.serving.recommender.history_of("u020").tolist()
    fresh = next(row for row in range(59) if row not in known and row + 1 not in known)
    body = {"events": [event("g1", "u020", f"i{fresh:02d}", timestamp=int(time.time()))]}
    assert client.post("/v1/events", body).status_code == 200
    answer = first_for(client, "u020")
    assert f"i{fresh:02d}" not in [item["item_id"] for item in answer["items"]]
    assert answer["items"][0]["item_id"] == f"i{fresh + 1:02d}"


def test_what_was_taken_before_a_thousand_events_is_not_recommended_again(client: Client):
    many = [Event(f"m{n}", "collector", f"i{n % 50:02d}", 1_600_000_000 + n) for n in range(50)]
    many += [Event(f"o{n}", "collector", f"i{50 + n % 5}", 1_600_001_000 + n) for n in range(RECALLED)]
    client.service.store(many)
    answer = client.post("/v1/recommend", {"user_id": "collector", "limit": 20, "rerank": "never"}).json()
    assert {item["item_id"] for item in answer["items"]} == {f"i{n}" for n in range(55, 60)}
    history = known_of("collector", client.service.serving.recommender.dataset, client.service.events).item_rows
    assert history[:50].tolist() == list(range(50))  # what towers look at stays the latest


def test_items_that_do_not_exist_are_named_and_kept(client: Client):
    found = client.post("/v1/events", {"events": [event("x1", "someone", "nothing"), event("x2", "someone", "i01")]})
    assert found.json()["unknown_items"] == ["nothing"]
    answer = first_for(client, "someone")
    assert answer["unknown_items"] == ["nothing"]
    assert answer["basis"] == "history"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"events": []}, "at least 1 item"),
        (event("e", "u", "i", timestamp=int(time.time()) + 3600), "in the future"),
        (event("e", "u", "i", timestamp=-1), "timestamp"),
        (event("e", "u", "i", timestamp=1_700_000_000_000), "timestamp"),
        (event("", "u", "i"), "event_id"),
        ({"user_id": "u", "item_id": "i"}, "event_id: Field required"),
        ({"events": [event("e", "u", None)]}, "events.0.item_id"),
        ([], "body"),
    ],
)
def test_a_bad_event_is_refused(client: Client, body, told: str):
    found = client.post("/v1/events", body)
    assert found.status_code == 422
    error = found.json()["error"]
    assert told in " ".join([error["message"], *error["faults"]])


def test_a_batch_is_stored_as_a_whole_or_not_at_all(client: Client):
    before = len(client.service.events)
    body = {"events": [event("good", "u", "i01"), event("bad", "u", "i01", timestamp=int(time.time()) + 9999)]}
    found = client.post("/v1/events", body)
    assert "events.1.timestamp" in found.json()["error"]["message"]
    assert len(client.service.events) == before


def test_a_user_is_forgotten(client: Client):
    client.post("/v1/events", event("f1", "u030", "i02"))
    logged = len(client.service.serving.recommender.history_of("u030"))
    child = client.service.serving.child
    before = child.forgotten
    gone = client.ask("DELETE", "/v1/users/u030").json()
    assert (gone["events"], gone["history_items"]) == (1, logged)
    assert "next training" in gone["remains"]
    assert child.forgotten == before + 1
    assert first_for(client, "u030")["known_user"] is False
    assert first_for(client, "u030")["basis"] == "recent popular items"
    again = client.ask("DELETE", "/v1/users/u030").json()
    assert (again["events"], again["history_items"]) == (0, 0)
    assert "next training" in again["remains"]  # the published data set still has what the log had
    client.post("/v1/events", event("f2", "u030", "i30"))
    assert first_for(client, "u030")["items"][0]["item_id"] == "i31"


def test_events_that_the_log_has_too_are_no_less_of_its_history(client: Client):
    log = client.service.serving.recommender.interactions
    row = client.service.serving.recommender.users.row("u031")
    logged = [
        (f"i{item:02d}", int(moment))
        for item, moment in zip(log[row], log.timestamps[log.offsets[row] : log.offsets[row + 1]], strict=True)
    ]
    same = [event(f"same{n}", "u031", item, timestamp=moment) for n, (item, moment) in enumerate(logged)]
    client.post("/v1/events", {"events": same})
    gone = client.ask("DELETE", "/v1/users/u031").json()
    assert (gone["events"], gone["history_items"]) == (len(logged), len(logged))
    assert "next training" in gone["remains"]


def test_of_a_user_of_events_alone_nothing_remains(client: Client):
    client.post("/v1/events", event("alone", "lone user", "i02"))
    gone = client.ask("DELETE", "/v1/users/lone%20user").json()
    assert (gone["events"], gone["history_items"], gone["remains"]) == (1, 0, "nothing")


def test_who_is_forgotten_is_not_found_until_back(client: Client):
    def found() -> list[str]:
        return client.get("/v1/users", params={"search": "u04", "limit": 9}).json()["users"]

    assert found() == [f"u04{n}" for n in range(9)]
    client.ask("DELETE", "/v1/users/u041")
    assert found() == [f"u04{n}" for n in range(10) if n != 1]
    client.post("/v1/events", event("back", "u041", "i02"))
    assert "u041" in found()


def test_a_user_id_may_hold_anything(client: Client):
    client.post("/v1/events", event("s1", "a/b?c #d", "i02"))
    assert client.ask("DELETE", "/v1/users/a%2Fb%3Fc%20%23d").json()["events"] == 1
