"""Files of a log and a catalog → a validated, split data set in the run directory."""

from pathlib import Path
from typing import Any

from config import Config
from data.assemble import Order
from data.load import load_dataset
from data.prepared import FORMAT, save_prepared
from data.schema import TIMESTAMP
from data.split import split_with_report
from data.times import TimestampUnit
from pipeline.run_log import RunLog
from pipeline.workspace import Workspace, open_workspace, save_config
from recommend.live_log import LiveLog
from store.artifacts import Run, artifact_key
from store.atomic import sha256_of
from store.prepared import save_prepared_key


def prepare(
    run: Run, log_path: Path, catalog_path: Path, *, users: Path | None, config: Config, log: RunLog
) -> Workspace:
    """Validates and splits; what is published in the run stays until new models are.

    Raises:
        BadInput: with every fault of all files.
    """
    with run.work():
        log.say(f"reading {log_path} and {catalog_path}")
        live = LiveLog.of(run.root)
        learnt = live.made_from if live is not None else {}
        amend = live.amended if live is not None and learnt else None
        dataset, loaded = load_dataset(log_path, catalog_path, config.data, users, amend=amend)
        _, divided = split_with_report(dataset, config.split)
        report = {"load": loaded.model_dump(mode="json"), "split": divided.model_dump(mode="json")}
        sources = {"log": sha256_of(log_path), "catalog": sha256_of(catalog_path)}
        made_from: dict[str, Any] = {
            **sources,
            # Older versions forgot it: what they prepared of such a log is prepared anew.
            **({} if dataset.disliked is None else {"disliked": len(dataset.disliked.interactions.item_rows)}),
            "format": FORMAT,
            "data": config.data.model_dump(mode="json"),
            "split": config.split.model_dump(mode="json"),
            **learnt,
        }
        names = {"log": str(log_path), "catalog": str(catalog_path)}
        key = artifact_key("dataset", made_from)
        if not run.has("dataset", key):

            def write(folder: Path) -> None:
                save_prepared(folder, dataset, report=report, made_from={**made_from, "names": names})

            run.write_artifact("dataset", made_from, write)
        save_config(run, config)
        save_prepared_key(run, key)
    if amend is not None:
        went = loaded.dropped["forgotten_users"]
        log.say(f"added: {loaded.added:,} events of the service; left out: {went:,} of users who asked to be forgotten")
    log.record({"event": "prepared", "dataset": key, **_counts(report)})
    if loaded.order is Order.FILE:
        log.say(_in_the_order_of_the_file(config.data.timestamp_unit))
    for part in ("validation", "test"):
        if not report["split"][f"{part}_users"]:
            log.say(f"nobody can be asked in {part}: too few interactions a user, or taken away by split.holdout")
    return open_workspace(run.root)


def _in_the_order_of_the_file(unit: TimestampUnit) -> str:
    taken = "the order of the file is taken as the order of time"
    if unit == TimestampUnit.NONE:
        return f"times are not read (data.timestamp_unit=none): {taken}"
    return f"no time column: {taken}; name a column that holds times by --map {TIMESTAMP}=COLUMN"


def _counts(report: dict[str, Any]) -> dict[str, Any]:
    load, split = report["load"], report["split"]
    dropped = {rule: rows for rule, rows in load["dropped"].items() if rows}
    return {
        "users": load["users"],
        "items": load["items"],
        "interactions": load["interactions"],
        "order": load["order"],
        **({"dropped": dropped} if dropped else {}),
        "validation_users": split["validation_users"],
        "test_users": split["test_users"],
        "cold_items": split["cold_items"],
    }
