"""A run as the steps see it: its config, its data, and the keys of what is or will be made from them.

Keys follow from config and data alone, so a step knows what it needs without being told, finds what is
already made, and a changed setting asks for the right command instead of mixing old with new.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from config import Config, read_config
from data.prepared import load_prepared
from data.schema import Dataset, Holdout, Split
from data.split import group_of_users, make_split
from store.artifacts import Run, Verify, artifact_key, atomic_write
from store.assets import ModelSource, resolve_model
from store.errors import MissingStep
from store.prepared import prepared_key

NOT_MADE_FROM = {"train": {"checkpoint", "tracking"}}
"""Settings of the retriever that change how its training is watched and kept, not what it makes."""


class FitKind(StrEnum):
    """What a model is fitted on."""

    EVALUATION = "evaluation"
    """the training part alone; validation chooses its settings"""
    EARLIER = "earlier"
    """the training part without each user's last `reranker.earlier_targets` items, which teach the reranker"""
    BEFORE_TEST = "before-test"
    """everything before the one moment at which a temporal split asks its test, by the settings chosen before"""
    FINAL = "final"
    """every interaction, by the settings chosen before"""


@dataclass(frozen=True)
class Workspace:
    """An opened run; made by `open_workspace`.

    Attributes:
        dataset_key: of the prepared data set.
        fingerprint: of its content.
    """

    run: Run
    config: Config
    dataset: Dataset
    dataset_key: str
    fingerprint: str
    manifest: Mapping[str, Any]

    @cached_property
    def split(self) -> Split:
        """Train, validation and test, by the config; all questions are asked as lists are served."""
        split = make_split(self.dataset, self.config.split)
        served = self.config.recommend.exclude_known
        validation, test = (replace(asked, exclude_known=served) for asked in (split.validation, split.test))
        return replace(split, validation=validation, test=test)

    @cached_property
    def selectors(self) -> Holdout:
        """Group B's validation: selects models, stops training, fits fusions."""
        validation = self.split.validation
        return validation.take(group_of_users(self.dataset.users)[validation.user_rows].nonzero()[0])

    @cached_property
    def learners(self) -> Holdout:
        """Group A's validation: teaches the reranker."""
        validation = self.split.validation
        return validation.take((~group_of_users(self.dataset.users)[validation.user_rows]).nonzero()[0])

    @cached_property
    def encoder(self) -> ModelSource:
        """The untuned text encoder."""
        return resolve_model(self.config.retriever.encoder.model)

    @cached_property
    def reranker_base(self) -> ModelSource:
        """The language model under the reranker."""
        return resolve_model(self.config.reranker.model)

    def check_models(self) -> None:
        """Finds both models.

        Raises:
            BadInput, MissingStep, CorruptArtifact: as `resolve_model`.
        """
        resolve_model(self.config.retriever.encoder.model)
        resolve_model(self.config.reranker.model)

    def text_vectors_made_from(self) -> dict[str, Any]:
        """Of the catalog's text vectors by the untuned encoder."""
        return {
            "dataset": self.fingerprint,
            "encoder": self.encoder.fingerprint,
            "config": self.config.retriever.encoder.model_dump(mode="json"),
        }

    def retriever_made_from(self, fit: FitKind) -> dict[str, Any]:
        """Of the retriever."""
        earlier = {"left_out": self.config.reranker.earlier_targets} if fit is FitKind.EARLIER else {}
        # Validation selects by lists as they are served.
        protocol = {} if self.config.recommend.exclude_known else {"exclude_known": False}
        config = self.config.retriever.model_dump(mode="json", exclude=NOT_MADE_FROM)
        if self.config.retriever.distil.teacher is None:
            # How it would teach makes nothing: a retriever without a teacher is the one that a taught one begins from.
            del config["distil"]
        for later in ("cold_targets", "topics"):
            # Off they make nothing else either: what was made before there was such a setting keeps its key.
            if not config[later]:
                del config[later]
        return {
            **earlier,
            **protocol,
            "dataset": self.fingerprint,
            "split": self.config.split.model_dump(mode="json"),
            "encoder": self.encoder.fingerprint,
            "config": config,
            "fit": fit.value,
        }

    def retriever_key(self, fit: FitKind) -> str:
        """Where the retriever is, or will be."""
        return artifact_key("retriever", self.retriever_made_from(fit))

    def vectors_made_from(self, fit: FitKind) -> dict[str, Any]:
        """Of the item vectors."""
        return {"retriever": self.retriever_key(fit), "catalog": self.fingerprint}

    def index_made_from(self, fit: FitKind) -> dict[str, Any]:
        """Of the index."""
        return {
            "retriever": self.retriever_key(fit),
            "catalog": self.fingerprint,
            "config": self.config.index.model_dump(mode="json"),
        }

    def index_key(self, fit: FitKind) -> str:
        """Where the index is, or will be."""
        return artifact_key("index", self.index_made_from(fit))

    def reranker_made_from(self, fit: FitKind) -> dict[str, Any]:
        """Of the reranker: always trained on candidates of the evaluation fit, which has not seen its targets."""
        return {
            "retriever": self.retriever_key(FitKind.EVALUATION),
            "base": self.reranker_base.fingerprint,
            "config": self.config.reranker.model_dump(mode="json", exclude={"checkpoint"}),
            "fit": fit.value,
        }

    def reranker_key(self, fit: FitKind) -> str:
        """Where the reranker is, or will be."""
        return artifact_key("reranker", self.reranker_made_from(fit))

    def follows(self, kind: str, fit: FitKind) -> dict[str, str]:
        """Kind → content of what an artifact repeats the choices of, or was weighed against: all of the evaluation fit.

        Keys tell only by which settings that was made; a training made anew may have chosen otherwise.

        Raises:
            MissingStep, CorruptArtifact: when something of it is not there.
        """
        keys = {"retriever": self.retriever_key, "reranker": self.reranker_key}
        others = {"retriever": [], "reranker": ["retriever"]}[kind]
        if fit is not FitKind.EVALUATION:
            others = [*others, kind]
        return {other: self.run.content(other, keys[other](FitKind.EVALUATION)) for other in others}

    def is_current(self, kind: str, fit: FitKind) -> bool:
        """Whether that retriever or reranker, which is there, was made after what is there of the evaluation fit now.

        Raises:
            MissingStep, CorruptArtifact: as `follows`.
        """
        key = self.retriever_key(fit) if kind == "retriever" else self.reranker_key(fit)
        # Older versions did not tell.
        told = self.run.manifest(kind, key).get("follows")
        return told is None or told == self.follows(kind, fit)

    def has_reranker(self, fit: FitKind) -> bool:
        """Whether that fit has a reranker, and one for the retriever that is there now.

        Raises:
            CorruptArtifact: when it has a damaged one, rather than going on as if it had none.
        """
        try:
            self.run.artifact("reranker", self.reranker_key(fit), verify=Verify.FULL)
            return self.is_current("reranker", fit)
        except MissingStep:
            return False

    def command(self, name: str) -> str:
        """How a user runs a step on this run."""
        return f"'python cli.py {name} --run {self.run.root}'"


def open_workspace(root: Path) -> Workspace:
    """The run at `root`, prepared before.

    Raises:
        MissingStep: when nothing has been prepared there.
        CorruptArtifact: when its data or config are damaged.
        BadInput: when its config.toml has been edited into something invalid.
    """
    run = Run(root)
    key = prepared_key(run)
    dataset, manifest = load_prepared(run.artifact("dataset", key, verify=Verify.FULL))
    return Workspace(run, read_config(run.config_path), dataset, key, manifest["fingerprint"], manifest)


def save_config(run: Run, config: Config) -> None:
    """Writes the resolved config beside what it makes."""
    header = "# Every setting of this run, as resolved. Change one with --set section.key=value.\n"
    atomic_write(run.config_path, header + config.to_toml())
