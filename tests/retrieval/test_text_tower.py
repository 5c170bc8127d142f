"""What only the words of a history tell is learnt by the text tower."""

from dataclasses import replace

import numpy as np
import torch

from data.schema import Histories, Holdout
from retrieval.encode import centred
from retrieval.towers import TwoTowers
from retrieval.train import TrainConfig, train_towers, validation_ndcg10
from tests.retrieval.bag_encoder import bag_reader, vectors_of
from tests.retrieval.toy import SEQUENCE, WORDED

COLOURS, THINGS = 6, 40
TEXTS = [f"{colour}-paint" for colour in range(COLOURS)] + [
    f"colour{row % COLOURS} name{row}" for row in range(THINGS * COLOURS)
]


def painted(things: np.ndarray) -> tuple[list[list[int]], list[int]]:
    """Planted: after a thing of a colour comes the paint of that colour."""
    return [[COLOURS + thing] for thing in things.tolist()], (things % COLOURS).tolist()


def test_histories_of_things_that_nobody_took_before_are_understood_by_their_words():
    things = np.random.default_rng(0).permutation(THINGS * COLOURS)
    histories, paints = painted(things[:160])
    train = Histories.of([[*history, paint] for history, paint in zip(histories, paints, strict=True)])
    histories, paints = painted(things[160:])
    asked = Holdout("validation", np.arange(80), Histories.of(histories), Histories.of([[paint] for paint in paints]))
    found = {}
    pace = {"epochs": 30, "history_items": 2}
    for name, config in (("text", WORDED), ("ids", SEQUENCE.model_copy(update={"text_dim": 0}))):
        torch.manual_seed(0)
        text = torch.from_numpy(centred(vectors_of(TEXTS)))
        model = TwoTowers(text, config.model_copy(update=pace), reader=bag_reader(TEXTS))
        training = TrainConfig(precision="float32", patience=30)
        train_towers(model, train, asked, config=training, name=f"{name}-1", log=lambda entry: None)
        found[name] = validation_ndcg10(model, asked)
    assert found["text"] > 0.9
    # Whoever guesses has all six paints before the things, at best: the mean of 1 / log2(rank + 1) is .56.
    assert found["ids"] < 0.7


def test_what_only_a_users_own_words_tell_is_learnt():
    """Planted: all begin with one thing; which paint follows is said by the users table alone."""
    colours = np.random.default_rng(0).integers(0, COLOURS, 240)
    about = [" ".join(4 * [f"colour{colour}"]) for colour in colours.tolist()]
    train = Histories.of([[COLOURS, paint] for paint in colours[:160].tolist()], about=about[:160])
    known = Histories.of([[COLOURS]] * 80, about=about[160:])
    asked = Holdout("validation", np.arange(80), known, Histories.of(colours[160:, None].tolist()))
    torch.manual_seed(0)
    settings = WORDED.model_copy(update={"epochs": 30, "history_items": 2})
    model = TwoTowers(torch.from_numpy(centred(vectors_of(TEXTS))), settings, reader=bag_reader(TEXTS))
    training = TrainConfig(precision="float32", patience=30)
    train_towers(model, train, asked, config=training, name="text-1", log=lambda entry: None)
    assert validation_ndcg10(model, asked) > 0.9
    untold = replace(asked, histories=replace(known, about=None))
    assert validation_ndcg10(model, untold) < 0.7
