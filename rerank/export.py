"""A trained reranker for other programs: one model folder without an adapter, or one that CrossEncoder loads."""

import copy
import json
import logging
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.modules import LogitScore

from rerank import adapters
from rerank.backbone import without_progress_bars
from rerank.card import CARD_FILE, HEAD_FILE
from rerank.decoder import DecoderReranker, yes_and_no
from rerank.packed import PackedReranker
from rerank.prompt import ANSWER, BULLET, NEWLINE, OPENING, QUESTION
from rerank.quantization import is_quantized
from store.errors import BadInput, Mismatch

TOLERANCE = 2e-3
"""Largest difference of a score that an export may have from the reranker that it was made of."""
SAMPLE = (("scarf\ngloves", "hat"), ("scarf\ngloves", "garden hose"), ("Alien", "Aliens"), ("Alien", "a"), ("", "hat"))
"""Pairs that an export is checked on, short enough for any limits on a prompt."""


class Shape(StrEnum):
    """What an export is for."""

    MERGED = "merged"
    """transformers' AutoModel, with the adapter added into the weights, the head beside it"""
    CROSS_ENCODER = "cross-encoder"
    """sentence-transformers' CrossEncoder, one pair at a time; decoders only"""


def export_reranker(reranker: PackedReranker[Any], folder: Path, shape: Shape) -> None:
    """Writes the reranker into `folder`, reads it back and compares the scores of some pairs.

    Raises:
        BadInput: when a reranker of this kind cannot have that shape, or its adapter cannot be merged.
        Mismatch: when what was written scores otherwise.
    """
    if not adapters.merges(reranker.config.adapter):
        raise BadInput(
            f"an adapter of kind {reranker.config.adapter.kind.value!r} cannot be added into the weights: its folder in"
            " the run is its export"
        )
    if is_quantized(adapters.plain(reranker.backbone)):
        raise BadInput(
            "an adapter over weights of four bits cannot be added into them: its folder in the run is its export"
        )
    if shape is Shape.CROSS_ENCODER and not isinstance(reranker, DecoderReranker):
        raise BadInput(
            "sentence-transformers' CrossEncoder has no head like that of an encoder reranker: export it as merged, or"
            " train a decoder"
        )
    if shape is Shape.CROSS_ENCODER and reranker.config.grades:
        raise BadInput(
            "sentence-transformers' CrossEncoder answers yes or no, and this reranker expects ratings: export it as"
            " merged, or train another with the objective listwise"
        )
    merged = reranker if reranker.is_merged else reranker.merged()
    folder.mkdir(parents=True, exist_ok=True)
    with without_progress_bars():
        found = WRITERS[shape](merged, folder)
    wanted = merged.predict(SAMPLE)
    difference = float(np.abs(found - wanted).max())
    if not difference < TOLERANCE:
        raise Mismatch(
            f"the export in {folder} scores differently from the reranker, by up to {difference:.2g}: do not use it"
        )


def _as_model(merged: PackedReranker[Any], folder: Path) -> np.ndarray:
    """Scores of the sample by what was written."""
    merged.backbone.save_pretrained(str(folder))
    merged.prompter.save_tokenizer(folder)
    save_file({name: value.contiguous() for name, value in merged.head.state_dict().items()}, folder / HEAD_FILE)
    card = {"kind": merged.kind, "base": merged.base.name, "config": merged.config.model_dump(mode="json")}
    (folder / CARD_FILE).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    again = type(merged)(
        backbone=type(merged).read_backbone(folder, merged.config),
        head=merged.head,
        prompter=type(merged).new_prompter(folder, merged.config),
        base=merged.base,
        config=merged.config,
    )
    scores: np.ndarray = again.predict(SAMPLE)
    return scores


def _as_cross_encoder(merged: PackedReranker[Any], folder: Path) -> np.ndarray:
    """Scores of the sample by what was written."""
    plain = folder / "model"
    merged.backbone.save_pretrained(str(plain))
    tokenizer = copy.deepcopy(merged.prompter.tokenizer)
    # Before it is loaded: by its template a model is known to take messages.
    tokenizer.chat_template = chat_template(tokenizer)
    tokenizer.save_pretrained(str(plain))
    yes, no = yes_and_no(tokenizer)
    made = CrossEncoder(
        str(plain), model_kwargs={"dtype": torch.float32}, activation_fn=torch.nn.Identity(), device="cpu"
    )
    made[1] = LogitScore(true_token_id=yes, false_token_id=no)
    made.save_pretrained(str(folder))
    for file in sorted(plain.iterdir()):
        file.unlink()
    plain.rmdir()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    again = CrossEncoder(str(folder), model_kwargs={"dtype": torch.float32}, device="cpu")
    return np.asarray(again.predict(list(SAMPLE), show_progress_bar=False), dtype=np.float32)


WRITERS: dict[Shape, Callable[[PackedReranker[Any], Path], np.ndarray]] = {
    Shape.MERGED: _as_model,
    Shape.CROSS_ENCODER: _as_cross_encoder,
}


def chat_template(tokenizer: Any) -> str:
    """Jinja that writes a query, one item a line, and a document as the decoder's prompt."""

    def quoted(text: str) -> str:
        return json.dumps(text)

    begin = "" if tokenizer.bos_token_id is None else "{{ " + quoted(tokenizer.bos_token) + " }}"
    return (
        begin + "{{ " + quoted(OPENING) + " }}"
        "{% for message in messages %}{% if message['role'] == 'query' %}"
        "{% for line in message['content'].split('\\n') %}{% if line %}"
        "{{ " + quoted(BULLET + " ") + " + line.split() | join(' ') + " + quoted(NEWLINE) + " }}"
        "{% endif %}{% endfor %}{% endif %}{% endfor %}"
        "{{ " + quoted(QUESTION) + " }}"
        "{% for message in messages %}{% if message['role'] == 'document' %}"
        "{{ " + quoted(BULLET + " ") + " + message['content'].split() | join(' ') + " + quoted(ANSWER) + " }}"
        "{% endif %}{% endfor %}"
    )
