"""Imported once, where commands are forked from: all that the commands import."""

import tests.conftest  # noqa: F401  # first: it sets the number of threads

import cli  # noqa: F401, I001
import peft  # noqa: F401
import sentence_transformers  # noqa: F401
import pipeline.answer  # noqa: F401
import pipeline.evaluate  # noqa: F401
import pipeline.export  # noqa: F401
import pipeline.steps  # noqa: F401
