"""The published reranker as a folder for other programs."""

from pathlib import Path

from pipeline.run_log import RunLog
from pipeline.workspace import Workspace
from recommend.release import load_reranker
from rerank.export import Shape, export_reranker
from store.atomic import atomic_folder
from store.errors import BadInput, MissingStep


def export_published(ws: Workspace, folder: Path, shape: Shape, *, log: RunLog) -> None:
    """Writes the release's reranker into a new folder, which appears only where its scores were found equal.

    Raises:
        BadInput: when the folder is there already, or the reranker cannot have that shape.
        MissingStep: when no reranker is published.
        Mismatch: when what was written scores otherwise; nothing is left.
    """
    if folder.exists():
        raise BadInput(f"-o {folder} is there already: name a folder that is not")
    key = ws.run.release().reranker
    if key is None:
        raise MissingStep(f"{ws.run.root} has published no reranker: make one with {ws.command('train-reranker')}")
    reranker = load_reranker(ws.run, key)[0]
    with atomic_folder(folder) as temporary:
        export_reranker(reranker, temporary, shape)
    log.record({"event": "exported reranker", "key": key, "shape": shape.value, "folder": str(folder)})
