"""One strict TOML file for all stages, with dotted overrides; the resolved file lies in the run directory."""

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from baselines.lineup import BaselinesConfig
from data.load import LoadConfig
from data.split import SplitConfig
from index.build import IndexConfig
from recommend.recommender import RecommendConfig
from recommend.sweep import SweepConfig
from rerank.fit import RerankerConfig
from retrieval.retriever import RetrieverConfig
from serve.limits import ServeConfig
from store.errors import BadInput


class Config(BaseModel):
    """Every setting of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: LoadConfig = Field(LoadConfig(), description="how log and catalog are read")
    split: SplitConfig = Field(SplitConfig(), description="what is held out")
    retriever: RetrieverConfig = Field(RetrieverConfig(), description="the first stage")
    index: IndexConfig = Field(IndexConfig(), description="search among item vectors")
    reranker: RerankerConfig = Field(RerankerConfig(), description="the second stage")
    recommend: RecommendConfig = Field(RecommendConfig(), description="what a recommendation looks like")
    serve: ServeConfig = Field(ServeConfig(), description="what a server accepts, and how it gives way")
    sweep: SweepConfig = Field(SweepConfig(), description="what a frontier tries")
    baselines: BaselinesConfig = Field(BaselinesConfig(), description="what reports compare with")

    @property
    def recommending(self) -> RecommendConfig:
        """How to recommend, with the depth that the fusion was fitted at unless another is stated."""
        if self.recommend.depth is not None:
            return self.recommend
        return self.recommend.model_copy(update={"depth": self.reranker.depth})

    def to_toml(self) -> str:
        """The settings as TOML; those that are unset are left out."""
        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))


def read_config(path: Path) -> Config:
    """The settings in a TOML file; what it does not name has its default.

    Raises:
        BadInput: with every unknown key (and the nearest known one) and every bad value.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(f"there is no config file {path}") from error
    except OSError as error:
        raise BadInput(f"the config file {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not TOML: {error}") from error
    return _validated(content, str(path))


def with_overrides(config: Config, assignments: Sequence[str]) -> Config:
    """The settings with `dotted.key=value` assignments; values are TOML, or plain text where they or the setting are.

    Raises:
        BadInput: with every assignment that is wrong.
    """
    content = config.model_dump(mode="json")
    malformed = [assignment for assignment in assignments if "=" not in assignment]
    if malformed:
        raise BadInput.of([f"{text!r} is not of the form key=value" for text in malformed], "--set")
    places: dict[tuple[str, ...], tuple[dict[str, Any], str]] = {}
    for assignment in assignments:
        key, _, text = assignment.partition("=")
        place = content
        *parents, leaf = key.strip().split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise BadInput(f"--set {assignment}: {parent!r} holds a value, not settings")
        place[leaf] = _value(text.strip())
        places[(*parents, leaf)] = (place, text.strip())
    _take_as_text(content, places)
    return _validated(content, "--set")


def resolved_config(
    path: Path | None, assignments: Sequence[str] | None, *, columns: Sequence[str] | None, template: str | None
) -> Config:
    """A config file's settings or the defaults, then assignments, then columns (`name=column`) and an item template.

    Raises:
        BadInput: as the parts do.
    """
    config = with_overrides(read_config(path) if path else Config(), assignments or [])
    malformed = [text for text in columns or [] if "=" not in text]
    if malformed:
        raise BadInput(f"--map {malformed[0]!r} is not of the form user_id=column")
    data: dict[str, Any] = {"columns": {**config.data.columns, **dict(text.split("=", 1) for text in columns or [])}}
    if template is not None:
        data["template"] = template
    return config.model_copy(update={"data": config.data.model_copy(update=data)})


def _take_as_text(content: dict[str, Any], places: Mapping[tuple[str, ...], tuple[dict[str, Any], str]]) -> None:
    """Puts numbers back as they were typed where a setting wants text: a key of digits alone is one."""
    try:
        Config.model_validate(_without_none(content))
    except ValidationError as error:
        for fault in error.errors():
            key = tuple(map(str, fault["loc"]))
            if fault["type"] == "string_type" and key in places:
                place, text = places[key]
                if type(place[key[-1]]) in (int, float):
                    place[key[-1]] = text


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _validated(content: dict[str, Any], where: str) -> Config:
    try:
        return Config.model_validate(_without_none(content))
    except ValidationError as error:
        raise BadInput.of(_faults(error), where) from error


def _faults(error: ValidationError) -> list[str]:
    """One line for each setting; a value that fits none of several types is one fault, not one for each of them."""
    found: dict[str, str] = {}
    for fault in error.errors():
        # A setting's types stand behind its name, as in literal['auto'].
        key = tuple(part for part in fault["loc"] if "[" not in str(part))
        told = _told(key, fault["type"], fault["msg"])
        name, _, words = told.partition(": ")
        earlier = found.get(name)
        found[name] = told if earlier is None else f"{earlier}, or {words.removeprefix('Input should be ')}"
    return list(found.values())


def _told(place: tuple[int | str, ...], kind: str, message: str) -> str:
    key = ".".join(map(str, place))
    if kind != "extra_forbidden":
        return f"{key}: {message}"
    near = difflib.get_close_matches(key, list(_keys(Config)), n=1, cutoff=0.5)
    if near:
        return f"unknown key {key!r}; the nearest known one is {near[0]!r}"
    sections = ", ".join(Config.model_fields)
    return f"unknown key {key!r}; the sections are {sections}, and config.toml of a run names every key"


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _keys(inner, f"{prefix}{name}.")
        yield prefix + name


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return value
