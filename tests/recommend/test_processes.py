"""The process that others are forked from imports while its starter does."""

import subprocess
import sys

BEGIN = """
import sys
from recommend.processes import begin_imports, fresh_context
begin_imports()
assert not {"numpy", "torch", "sentence_transformers"} & sys.modules.keys(), "the starter has imported before it"
import os
child = fresh_context().Process(target=os.getppid)
child.start()
child.join()
print("begun", child.exitcode)
"""


def test_it_is_started_before_the_starter_has_imported_anything() -> None:
    found = subprocess.run([sys.executable, "-c", BEGIN], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["begun", "0"]
