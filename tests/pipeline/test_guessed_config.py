"""What quickstart guesses of files that state nothing."""

from pathlib import Path

from config import Config, with_overrides
from pipeline.run_log import RunLog
from pipeline.steps import guessed_config
from tests.pipeline.shop import Shop, log_rows, write_rows


def guessed(shop: Shop, log: Path, *settings: str) -> tuple[dict[str, str], str]:
    config = guessed_config(with_overrides(Config(), settings), log, shop.catalog, None, RunLog(None, "test"))
    return config.data.columns, config.data.timestamp_unit


def test_the_time_is_found_under_a_name_of_its_own_and_never_silently_among_several(shop: Shop, tmp_path, capsys):
    rows = [[user, item, f"{time}000"] for user, item, time in log_rows()]
    log = write_rows(tmp_path / "log.csv", ["user_id", "item_id", "event_ts"], rows)
    columns, unit = guessed(shop, log)
    assert (columns["log.timestamp"], unit) == ("event_ts", "ms")
    assert "log.timestamp = event_ts" in capsys.readouterr().err
    log = write_rows(
        tmp_path / "log.csv", ["user_id", "item_id", "event_ts", "paid_at"], [[*row, row[2]] for row in rows]
    )
    assert guessed(shop, log)[0]["log.timestamp"] == "event_ts"
    assert (
        "paid_at would do for the time, too: to take it instead, use --map timestamp=paid_at" in capsys.readouterr().err
    )
    columns, unit = guessed(shop, log, 'data.columns={timestamp="paid_at"}')
    assert (columns, unit) == ({**columns, "timestamp": "paid_at"}, "ms")
    assert "would do" not in capsys.readouterr().err
