"""What can be said of the page's files without a browser."""

import re

import pytest

from serve.page_files import PAGE

FILES = sorted(PAGE.iterdir())
INDEX = (PAGE / "index.html").read_text()
NAMESPACE = "http://www.w3.org/2000/svg"


def imported(module: str) -> set[str]:
    """The modules that one loads before it runs, and theirs."""
    own = set(re.findall(r'^import .* from "\./(.+?)";$', (PAGE / module).read_text(), re.MULTILINE))
    return own.union(*map(imported, own))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_one_noun_makes_no_markup_and_loads_nothing_from_elsewhere(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text) == []
    assert "//" not in "".join(re.findall(r"https?:\S+|url\(\S+", text.replace(NAMESPACE, "")))


def test_all_that_the_first_view_needs_is_loaded_at_once():
    preloaded = set(re.findall(r'<link rel="modulepreload" href="(.+?)">', INDEX))
    assert preloaded == imported("main.js")


def test_there_is_nothing_that_the_policy_forbids():
    assert re.findall(r"<style|<script>|\sstyle=|\son\w+=", INDEX) == []
