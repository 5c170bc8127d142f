"""Splits against histories divided by hand, and properties that no log may break."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.schema import Catalog, Dataset, Disliked, Histories, Holdout
from data.split import (
    HeldOut,
    SplitConfig,
    SplitKind,
    cold_items,
    group_of_users,
    held_out_items,
    make_split,
    next_holdout,
    split_with_report,
)
from data.vocabulary import Vocabulary
from store.errors import BadInput

N_ITEMS = 10


def dataset(*lists: list[int], times: list[list[int | None]] | None = None) -> Dataset:
    log = Histories.of(lists)
    if times is not None:
        flat = [Histories.NO_TIME if time is None else time for one in times for time in one]
        log = Histories(log.item_rows, log.offsets, np.array(flat, dtype=np.int64))
    ids = [f"i{row}" for row in range(N_ITEMS)]
    catalog = Catalog(pl.DataFrame({"item_id": ids, "title": ids, "text": ids}), Vocabulary(ids))
    return Dataset(log, Vocabulary([f"u{place}" for place in range(len(lists))], noun="user"), catalog)


def plain(histories: Histories) -> list[list[int]]:
    return [histories[place].tolist() for place in range(len(histories))]


def asked(holdout: Holdout) -> dict[int, tuple[list[int], list[int]]]:
    """user row → (history, targets)."""
    lists = zip(plain(holdout.histories), plain(holdout.targets), strict=True)
    return dict(zip(holdout.user_rows.tolist(), lists, strict=True))


def test_leave_one_out_takes_the_last_for_test_and_the_one_before_for_validation():
    split, report = split_with_report(dataset([1, 2, 3, 4], [5, 6, 7], [8, 9], [3]), SplitConfig())
    assert plain(split.train) == [[1, 2], [5], [8], [3]]
    assert asked(split.validation) == {0: ([1, 2], [3]), 1: ([5], [6])}
    assert asked(split.test) == {0: ([1, 2, 3], [4]), 1: ([5, 6], [7]), 2: ([8], [9])}
    assert (split.validation.part, split.test.part) == ("validation", "test")
    assert (report.train_rows, report.validation_users, report.test_users) == (5, 2, 3)
    # 0, 4, 6, 7 and 9 are in no training list; of these 6 is a validation target, 4, 7 and 9 are test targets.
    assert report.cold_items == 5
    assert report.cold_targets == {"validation": 1, "test": 3}
    assert cold_items(split, N_ITEMS).tolist() == [row in (0, 4, 6, 7, 9) for row in range(10)]


def test_without_a_test_part_the_last_is_for_validation():
    log = dataset([1, 2, 3], [8, 9], [3])
    split = make_split(log, SplitConfig(holdout=HeldOut.VALIDATION))
    assert plain(split.train) == [[1, 2], [8], [3]]
    assert asked(split.validation) == {0: ([1, 2], [3]), 1: ([8], [9])}
    assert len(split.test) == len(split.test.histories) == len(split.test.targets) == 0


def test_taking_the_test_items_away_beforehand_leaves_train_and_validation_as_they_were():
    lists = [[1, 2, 3, 4], [5, 6, 7], [8, 9, 1]]
    whole = make_split(dataset(*lists), SplitConfig())
    blind = make_split(dataset(*[one[:-1] for one in lists]), SplitConfig(holdout=HeldOut.VALIDATION))
    assert plain(blind.train) == plain(whole.train)
    assert asked(blind.validation) == asked(whole.validation)


def test_repeated_targets_stay_as_in_the_literature_and_are_counted():
    split, report = split_with_report(dataset([1, 2, 1, 2], [3, 4, 5]), SplitConfig())
    assert asked(split.test)[0] == ([1, 2, 1], [2])
    assert report.repeated_targets == {"validation": 1, "test": 1}


def test_a_temporal_split_cuts_all_users_at_one_moment():
    log = dataset(
        [1, 2, 3, 1, 4, 4],
        [5, 6, 5, 7],
        [8, 9],
        [2, 3],
        times=[[10, 20, 30, 41, 42, 43], [15, 35, 45, 46], [40, 50], [12, None]],
    )
    config = SplitConfig(kind=SplitKind.TEMPORAL, cut_time=40, validation_share=0.3)
    split, report = split_with_report(log, config)
    # Before 40 lie 10 12 15 20 30 35: the last 30 % of these six begin at the fifth, 30.
    assert plain(split.train) == [[1, 2], [5], [], [2]]
    assert split.before_test is not None
    assert plain(split.before_test) == [[1, 2, 3], [5, 6], [], [2]]
    assert asked(split.validation) == {0: ([1, 2], [3]), 1: ([5], [6])}
    # User 0 took 1 again, which does not count, and 4 twice, which counts once; user 1 took 5 again.
    assert asked(split.test) == {0: ([1, 2, 3], [4]), 1: ([5, 6], [7])}
    assert split.test.histories.timestamps.tolist() == [10, 20, 30, 15, 35]
    assert split.test.targets.timestamps.tolist() == [42, 46]
    assert report.rows_without_time == 1
    assert report.users_without_history == {"validation": 0, "test": 1}
    assert report.users_without_new_items == {"validation": 0, "test": 0}
    assert (report.validation_from, report.test_from) == ("1970-01-01 00:00:30", "1970-01-01 00:00:40")


def test_a_temporal_split_by_share_of_rows_keeps_ties_together():
    log = dataset([1, 2, 3, 4], [5, 6, 7, 8, 9, 0], times=[[1, 2, 9, 9], [3, 4, 5, 6, 7, 9]])
    split = make_split(log, SplitConfig(kind="temporal", test_share=0.2, validation_share=0.25))
    # Sorted: 1 2 3 4 5 6 7 9 9 9. The ninth begins the last 20 %, and its tie goes with it; of the seven before,
    # the sixth begins the last 25 %.
    assert plain(split.train) == [[1, 2], [5, 6, 7]]
    assert asked(split.validation) == {1: ([5, 6, 7], [8, 9])}
    assert asked(split.test) == {0: ([1, 2], [3, 4]), 1: ([5, 6, 7, 8, 9], [0])}


@pytest.mark.parametrize("kind", ["leave-one-out", "temporal", "cold-items"])
def test_every_part_of_a_split_keeps_its_ratings(kind):
    log = dataset([1, 2, 3, 4], [5, 6, 7], [8, 9], times=[[1, 2, 3, 4], [2, 3, 4], [1, 4]])
    rated = replace(log, interactions=replace(log.interactions, ratings=log.interactions.item_rows.astype("f4") / 2))
    split = make_split(rated, SplitConfig(kind=kind))
    parts = [split.validation, split.test, Holdout.joined([split.validation, split.test], part="all")]
    for lists in (split.train, *(one for part in parts for one in (part.histories, part.targets))):
        assert (lists.ratings * 2).tolist() == lists.item_rows.tolist()
        order = np.arange(len(lists))[::-1].copy()
        assert (lists.take(order).ratings * 2).tolist() == lists.take(order).item_rows.tolist()


def test_users_who_took_nothing_new_or_have_too_short_a_history_fall_out_and_are_counted():
    log = dataset([1, 2, 1], [3, 4], [5, 6, 7], times=[[1, 2, 9], [1, 9], [1, 2, 9]])
    split, report = split_with_report(
        log, SplitConfig(kind="temporal", cut_time=5, validation_share=0.2, min_history=2)
    )
    assert asked(split.test) == {2: ([5, 6], [7])}
    assert report.users_without_history["test"] == 1
    assert report.users_without_new_items["test"] == 1


def test_a_temporal_split_without_a_test_part():
    log = dataset([1, 2, 3], [4, 5], times=[[1, 5, 9], [2, 9]])
    split = make_split(log, SplitConfig(kind="temporal", holdout="validation", cut_time=9))
    assert plain(split.train) == [[1, 2], [4]]
    assert asked(split.validation) == {0: ([1, 2], [3]), 1: ([4], [5])}
    assert len(split.test) == 0


@pytest.mark.parametrize(
    ("times", "config", "told"),
    [
        (None, {}, "needs timestamps.*leave-one-out"),
        ([[None, None, None]], {}, "needs timestamps"),
        ([[7, 7, 7]], {}, "leaves nothing on one side"),
        ([[7, 8, 9]], {"cut_time": 3}, "the cut at 1970-01-01 00:00:03 leaves nothing on one side"),
        ([[7, 8, 9]], {"cut_time": 10}, "leaves nothing on one side"),
        ([[7, 7, 9]], {"cut_time": 9}, "leaves nothing to learn from"),
    ],
)
def test_a_temporal_split_that_cannot_be_is_refused(times, config, told):
    with pytest.raises(BadInput, match=told):
        make_split(dataset([1, 2, 3], times=times), SplitConfig(kind="temporal", **config))


# By the hash of their ids: the first are cold.
BY_HASH = [5, 6, 2, 8, 1, 7, 4, 3, 0, 9]
COLD = {"kind": "cold-items", "cold_items": 2, "validation_share": 0.25}


def test_cold_items_are_out_of_training_with_all_their_interactions():
    log = dataset([5, 0, 2, 1], [4, 6, 7, 8], [9, 5, 6, 9], [2, 6], [4, 3])
    split, report = split_with_report(log, SplitConfig(**COLD))
    assert plain(split.train) == [[0, 1], [4, 7], [9, 9], [], [4, 3]]
    # Nothing warm is known of user 3, so only the test can ask: item 2 is known by then.
    assert asked(split.validation) == {0: ([0, 1], [2]), 1: ([4, 7], [8])}
    assert asked(split.test) == {0: ([0, 2, 1], [5]), 1: ([4, 7, 8], [6]), 2: ([9, 9], [5, 6]), 3: ([2], [6])}
    assert report.users_without_history == {"validation": 1, "test": 0}
    assert report.users_without_new_items == {"validation": 0, "test": 0}
    assert report.cold_targets == {"validation": 2, "test": 5}
    assert (report.train_rows, report.cold_items) == (8, 4)  # cold: the four held out; all others were taken


def test_a_cold_item_taken_twice_is_one_target_and_short_histories_are_not_asked():
    split, report = split_with_report(dataset([5, 0, 5, 1], [5, 4]), SplitConfig(**COLD, min_history=2))
    assert asked(split.test) == {0: ([0, 1], [5])}
    assert report.users_without_history == {"validation": 0, "test": 1}


def test_which_items_are_cold_can_be_asked():
    items = dataset().catalog.vocabulary
    by_count = held_out_items(items, SplitConfig(**COLD))
    assert by_count.asked("test").tolist() == sorted(BY_HASH[:2])
    assert by_count.asked("validation").tolist() == sorted(BY_HASH[2:4])  # a quarter of the other eight
    by_share = held_out_items(items, SplitConfig(kind="cold-items", test_share=0.3))
    assert by_share.asked("test").tolist() == sorted(BY_HASH[:3])
    assert by_share.asked("validation").tolist() == BY_HASH[3:4]  # a tenth of the other seven, rounded


def test_taking_the_cold_items_away_beforehand_leaves_train_and_validation_as_they_were():
    lists = [[5, 0, 2, 1], [4, 6, 7, 8], [9, 5, 6, 9], [2, 6], [4, 3]]
    whole = make_split(dataset(*lists), SplitConfig(**COLD))
    without = dataset(*[[item for item in one if item not in (5, 6)] for one in lists])
    blind = make_split(without, SplitConfig(**COLD, holdout="validation"))
    assert plain(blind.train) == plain(whole.train)
    assert asked(blind.validation) == asked(whole.validation)
    assert len(blind.test) == 0
    with pytest.raises(BadInput, match="taken away beforehand, but 5 interactions are with its 2 items"):
        make_split(dataset(*lists), SplitConfig(**COLD, holdout="validation"))


@pytest.mark.parametrize(
    ("lists", "config", "told"),
    [
        ([[0, 1]], {"cold_items": 9}, "9 items for the test and 1 for validation leave nothing.*catalog of 10"),
        ([[5, 6], [2]], {}, "none of the 3 interactions is with one of the 6 warm items"),
    ],
)
def test_a_cold_split_that_leaves_nothing_to_learn_from_is_refused(lists, config, told):
    with pytest.raises(BadInput, match=told):
        make_split(dataset(*lists), SplitConfig(**{**COLD, **config}))


def test_everybody_is_asked_for_the_next_item_without_an_answer():
    found = next_holdout(dataset([1, 2], [3], times=[[1, 2], [3]]))
    assert found.part == "next"
    assert asked(found) == {0: ([1, 2], []), 1: ([3], [])}
    assert found.histories.timestamps.tolist() == [1, 2, 3]


def test_what_was_disliked_is_known_of_whoever_is_served_and_in_no_question_of_a_split():
    low = Disliked(Histories.of([[7], [8, 9]]), Vocabulary(["nobody else", "u1"]))
    data = replace(dataset([1, 2, 3], [3, 4, 5]), disliked=low)
    found = next_holdout(data).histories
    assert [rows.tolist() for rows in found.known] == [[1, 2, 3], [3, 4, 5, 8, 9]]
    assert plain(found.take(np.array([1, 0])).disliked) == [[8, 9], []]
    assert plain(Histories.joined([Histories.of([[1]]), found]).disliked) == [[], [], [8, 9]]
    split = make_split(data, SplitConfig())
    for part in (split.train, split.validation.histories, split.test.histories):
        assert part.disliked is None


def test_the_group_of_a_user_depends_on_the_id_alone_and_a_fifth_is_b():
    users = [f"user-{number}" for number in range(20_000)]
    group_b = group_of_users(Vocabulary(users))
    assert group_b.mean() == pytest.approx(0.2, abs=0.01)
    assert group_of_users(Vocabulary(users[::-1]))[::-1].tolist() == group_b.tolist()
    # The first eight bytes of each SHA-256, modulo 100: 40 13 46 43 54 83 59 30 95 40.
    assert group_of_users(Vocabulary("0123456789")).tolist() == [name in "58" for name in "0123456789"]


logs = st.lists(st.lists(st.integers(0, N_ITEMS - 1), min_size=1, max_size=6), min_size=1, max_size=6)


@given(logs)
def test_leave_one_out_is_the_definition_for_any_log(lists):
    split = make_split(dataset(*lists), SplitConfig())
    assert plain(split.train) == [one[: max(len(one) - 2, 1)] for one in lists]
    assert asked(split.test) == {place: (one[:-1], one[-1:]) for place, one in enumerate(lists) if len(one) >= 2}
    assert asked(split.validation) == {
        place: (one[:-2], one[-2:-1]) for place, one in enumerate(lists) if len(one) >= 3
    }


@given(logs, st.integers(1, 4), st.integers(1, 3))
def test_a_cold_split_never_shows_a_cold_item_and_loses_nothing_unsaid(lists, count, min_history):
    cold, pseudo_cold = set(BY_HASH[:count]), {BY_HASH[count]}  # a tenth of the others is one item
    try:
        split, report = split_with_report(
            dataset(*lists), SplitConfig(kind="cold-items", cold_items=count, min_history=min_history)
        )
    except BadInput:
        assert {item for one in lists for item in one} <= cold | pseudo_cold
        return
    assert plain(split.train) == [[item for item in one if item not in cold | pseudo_cold] for one in lists]
    for holdout, wanted, hidden in (
        (split.validation, pseudo_cold, cold | pseudo_cold),
        (split.test, cold, cold),
    ):
        known = [[item for item in one if item not in hidden] for one in lists]
        new = [list(dict.fromkeys(item for item in one if item in wanted)) for one in lists]
        active = [place for place in range(len(lists)) if new[place]]
        served = [place for place in active if len(known[place]) >= min_history]
        assert asked(holdout) == {place: (known[place], new[place]) for place in served}
        assert report.users_without_history[holdout.part] == len(active) - len(served)


timed_logs = st.lists(
    st.lists(st.tuples(st.integers(0, N_ITEMS - 1), st.none() | st.integers(0, 9)), min_size=1, max_size=6),
    min_size=1,
    max_size=6,
)


@given(timed_logs, st.integers(1, 9), st.sampled_from([0.1, 0.5, 0.9]), st.integers(1, 3))
def test_a_temporal_split_never_looks_ahead_and_loses_nothing_unsaid(lists, cut, share, min_history):
    lists = [sorted(one, key=lambda row: -1 if row[1] is None else row[1]) for one in lists]
    log = dataset(*[[item for item, _ in one] for one in lists], times=[[time for _, time in one] for one in lists])
    config = SplitConfig(kind="temporal", cut_time=cut, validation_share=share, min_history=min_history)
    try:
        split, report = split_with_report(log, config)
    except BadInput:
        return
    assert len(split.train) == len(lists)
    assert report.rows_without_time == sum(time is None for one in lists for _, time in one)
    expected = {}
    for place, one in enumerate(lists):
        known = [item for item, time in one if time is not None and time < cut]
        later = [item for item, time in one if time is not None and time >= cut]
        new = list(dict.fromkeys(item for item in later if item not in known))
        if len(known) >= min_history and new:
            expected[place] = (known, new)
    assert asked(split.test) == expected
    for place, (history, targets) in asked(split.validation).items():
        assert history == plain(split.train)[place]
        assert targets
        assert not set(targets) & set(history)
        assert len(history) >= min_history
    later = [split.validation.targets.timestamps, split.validation.histories.timestamps]
    if len(later[0]):
        assert later[1].max() < later[0].min()
        assert later[0].max() < cut
