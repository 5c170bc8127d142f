"""Imported once, where commands are forked from: all that the commands import, and tests.conftest for its settings."""

from importlib import import_module

for name in (
    "tests.conftest",  # first: it sets the number of threads
    "cli",
    "peft",
    "sentence_transformers",
    "sentence_transformers.sentence_transformer.modules",
    "pipeline.answer",
    "pipeline.demo",
    "pipeline.evaluate",
    "pipeline.export",
    "pipeline.fit_final",
    "pipeline.steps",
):
    import_module(name)
