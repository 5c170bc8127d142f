"""Settings: one strict file, dotted overrides, and messages that name the way out."""

import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel

from config import Config, read_config, with_overrides
from store.errors import BadInput


def told(*assignments: str) -> str:
    with pytest.raises(BadInput) as raised:
        with_overrides(Config(), assignments)
    return str(raised.value)


def every_model(model: type[BaseModel], path: str = "") -> list[tuple[str, type[BaseModel]]]:
    found = [(path, model)]
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += every_model(field.annotation, f"{path}{name}.")
    return found


def test_an_override_changes_one_setting_and_leaves_the_others():
    config = with_overrides(Config(), ["retriever.recency.epochs=3", "recommend.k = 7"])
    assert (config.retriever.recency.epochs, config.recommend.k) == (3, 7)
    back = with_overrides(config, [f"retriever.recency.epochs={Config().retriever.recency.epochs}", "recommend.k=10"])
    assert back == Config()


@pytest.mark.parametrize(
    ("assignment", "found"),
    [
        ("data.min_rating=4", 4.0),
        ("data.template={title} | {genres}", "{title} | {genres}"),
        ("reranker.model=hub:owner/name@abc=1", "hub:owner/name@abc=1"),
        ('retriever.encoder.model="minilm-l6"', "minilm-l6"),
        ("recommend.exclude_known=false", False),
        ("baselines.recent_days=[7, 30.5]", (7.0, 30.5)),
        ("data.columns.user_id=visitor", "visitor"),
        ("split.kind=temporal", "temporal"),
        ("reranker.teacher=1234567890123456", "1234567890123456"),
        ("reranker.teacher=12345678901234e6", "12345678901234e6"),
        ("retriever.distil.teacher=0012345678901234", "0012345678901234"),
        ("data.columns.user_id=1", "1"),
        ("data.template=1.50", "1.50"),
    ],
)
def test_values_are_toml_or_else_plain_text(assignment, found):
    value = with_overrides(Config(), [assignment])
    for name in assignment.split("=", 1)[0].split("."):
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    assert value == found


def test_only_a_number_is_text_where_text_is_wanted():
    for value in ("true", "[1]"):
        assert "data.template: Input should be a valid string" in told(f"data.template={value}")


def test_the_last_of_several_overrides_of_one_key_wins():
    assert with_overrides(Config(), ["recommend.k=3", "recommend.k=4"]).recommend.k == 4


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("retriever.recency.epoch", "retriever.recency.epochs"),
        ("retreiver.recency.epochs", "retriever"),
        ("recommend.dept", "recommend.depth"),
        ("split.holdouts", "split.holdout"),
        ("rerank", "reranker"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_known_one(key, nearest):
    message = told(f"{key}=1")
    assert "unknown key" in message
    assert f"nearest known one is {nearest!r}" in message


def test_every_fault_is_told_at_once():
    message = told("recommend.k=none", "retriever.recency.epoch=2", "reranker.depth=0")
    assert "3 faults" in message
    assert all(key in message for key in ("recommend.k", "retriever.recency.epoch", "reranker.depth"))


def test_what_is_no_assignment_is_refused():
    assert "'recommend.k' is not of the form key=value" in told("recommend.k")
    assert "'k' holds a value, not settings" in told("recommend.k.more=1")
    assert "retriever" in told("retriever=3")


def test_a_file_gives_what_it_names_and_defaults_for_the_rest(tmp_path):
    (tmp_path / "own.toml").write_text('[recommend]\nk = 3\n[data.columns]\nuser_id = "visitor"\n')
    config = read_config(tmp_path / "own.toml")
    assert config == with_overrides(Config(), ["recommend.k=3", "data.columns.user_id=visitor"])


def test_the_resolved_file_reads_back_as_the_same_settings(tmp_path):
    config = with_overrides(Config(), ["data.template={title}", "split.cut_time=1600000000", "data.min_rating=3.5"])
    (tmp_path / "config.toml").write_text(config.to_toml())
    assert read_config(tmp_path / "config.toml") == config
    (tmp_path / "defaults.toml").write_text(Config().to_toml())
    assert read_config(tmp_path / "defaults.toml") == Config()
    assert set(tomllib.loads(Config().to_toml())) == set(Config.model_fields)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[recommend]\nkk = 3\n", r"own\.toml: unknown key 'recommend.kk'; the nearest known one is 'recommend.k'"),
        ("[recommend\n", r"own\.toml is not TOML: .*line 1"),
        ("[recommend]\nk = 0\n", r"own\.toml: recommend\.k: .*greater than or equal to 1"),
        (b"\xff\xfe", r"own\.toml is not TOML"),
    ],
)
def test_a_bad_file_is_named_with_its_fault(tmp_path, content, message):
    path = tmp_path / "own.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInput, match=message):
        read_config(path)


def test_a_file_that_is_not_there_or_is_a_folder_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match=r"there is no config file .*none\.toml"):
        read_config(tmp_path / "none.toml")
    with pytest.raises(BadInput, match="cannot be read: Is a directory"):
        read_config(tmp_path)


def test_every_setting_is_described_and_every_section_strict_and_frozen():
    bare = [
        f"{path}{name}"
        for path, model in every_model(Config)
        for name, field in model.model_fields.items()
        if not field.description
    ]
    assert not bare
    assert all(model.model_config["extra"] == "forbid" for _, model in every_model(Config))
    assert all(model.model_config["frozen"] for _, model in every_model(Config))


def test_no_default_names_a_path_of_this_machine():
    assert str(Path.cwd()) not in Config().to_toml()


def test_a_value_that_fits_none_of_several_types_is_one_fault():
    with pytest.raises(BadInput) as told:
        with_overrides(Config(), ["index.kind=nonsense"])
    assert "'hnsw'" in str(told.value)
    assert "'auto'" in str(told.value)
    assert "[" not in str(told.value)
    assert "faults" not in str(told.value)
