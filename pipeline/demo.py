"""The main job on MovieLens-100k, shown as the commands that a user would type."""

from config import Config
from pipeline.answer import Wish, answer
from pipeline.evaluate import EvaluationOptions, evaluate_run
from pipeline.run_log import RunLog
from pipeline.steps import DEFAULT_RUN, DEMO_DATA, STEPS, prepare_demo
from pipeline.summary import summary
from recommend.recommender import Rerank
from store.artifacts import Run
from store.assets import default_assets_dir


def run_demo(log: RunLog, *, user: str, force: bool) -> None:
    """Prints each command, does it, and ends with the recommendations for `user`.

    Args:
        force: train again what is already there.
    """
    run = Run(DEFAULT_RUN)
    with run.work():
        _show(log, "fetch movielens-100k minilm-l6")
        files = " ".join(
            f"{default_assets_dir().name}/{DEMO_DATA}/{name}.parquet" for name in ("interactions", "items")
        )
        _show(log, f"prepare --run {DEFAULT_RUN} {files}")
        ws = prepare_demo(log, Config())
        for step in STEPS:
            _show(log, f"{step.name} --run {DEFAULT_RUN}")
            if force or not step.is_made(ws):
                step.make(ws, log)
            else:
                log.say("already made")
        _show(log, f"evaluate --run {DEFAULT_RUN}")
        report, page = evaluate_run(ws, EvaluationOptions(), log=log)
        print(summary(report, page))
    # Shown even where it got no weight: a newcomer wants to see what both stages think.
    _show(log, f"recommend --run {DEFAULT_RUN} --user {user} --rerank always")
    answer(ws, Wish(user=user, rerank=Rerank.ALWAYS), as_json=False)


def _show(log: RunLog, command: str) -> None:
    log.say(f"$ python cli.py {command}")
