"""The tab of the report and its frontier."""

from dataclasses import asdict

import numpy as np
import pytest
from playwright.sync_api import expect

from eval.significance import paired_bootstrap
from eval.words import conclusion, evidence, interval_words
from tests.eval.test_report import a_report

pytestmark = pytest.mark.browser


def test_the_report_says_what_the_written_page_says(visit):
    visit.open("user=u010&tab=report")
    expect(visit.page.locator(".verdict")).to_have_count(2)
    made = a_report()
    for place, found in enumerate(made.comparisons):
        card = visit.page.locator(".verdict").nth(place)
        expect(card.locator("h3")).to_have_text(conclusion(found.ours, found.theirs, found.test.verdict))
        expect(card.locator("p.muted")).to_have_text(evidence(found.metric, found.test))
        expect(card.locator(".tag")).to_contain_text(found.test.verdict.value)
    systems = visit.page.get_by_role("region", name="System, table").locator("tbody tr")
    for place, system in enumerate(made.ranked):
        low, high = made.intervals()[system.name].low, made.intervals()[system.name].high
        expect(systems.nth(place)).to_contain_text(system.name)
        expect(systems.nth(place)).to_contain_text(f"{system.evaluation.metrics['ndcg@10']:.4f}")
        expect(systems.nth(place)).to_contain_text(f"{low:.4f} – {high:.4f}")
    expect(visit.page.get_by_role("region", name="Source, table")).to_contain_text("<b>texts")
    assert visit.page.locator("#view-report b").count() == 0


def test_too_few_users_who_differ_are_told_as_on_the_written_page(visit):
    visit.open("user=u010&tab=report")
    say = """async found => {
        const words = await import('/words.js');
        return [words.evidence(found), words.intervalWords(found.test)];
    }"""
    for ours, theirs in (([1.0] * 5 + [0.5], [0.75] * 5 + [0.5]), ([1.0], [0.0]), ([1.0] * 6, [0.75] * 6)):
        test = paired_bootstrap(np.array(ours), np.array(theirs))
        found = {"metric": "ndcg@10", "test": asdict(test)}
        said = visit.page.evaluate(say, found)
        assert said == [evidence("ndcg@10", test), interval_words(test).replace("-", "−")]


def test_a_point_of_the_frontier_is_tried_at_once(visit):
    visit.open("user=u010&tab=report")
    visit.page.get_by_role("button", name="Try tiny, float32, 5 deep: NDCG@10 0.5100, no evidence").click()
    visit.settle()
    assert (visit.asked[-1]["budget"], visit.asked[-1]["rerank"]) == ({"depth": 5}, "always")
    expect(visit.page.get_by_role("tab", name="Recommend")).to_have_attribute("aria-selected", "true")
    expect(visit.page.get_by_role("slider", name="Depth")).to_have_attribute("aria-valuetext", "5 candidates read")
    expect(visit.page.locator("#notices")).to_contain_text("tiny, float32, 5 deep")


def test_tabs_and_points_answer_to_arrow_keys(visit):
    visit.open("user=u010")
    visit.page.get_by_role("tab", name="Recommend").press("ArrowRight")
    expect(visit.page.locator("#view-report .dot")).to_have_count(3)
    points = visit.page.locator("#view-report .dot[tabindex='0']")
    expect(points).to_have_count(1)
    points.press("Home")
    points.press("ArrowRight")
    expect(visit.page.locator(".told strong")).to_have_text("tiny, float32, 5 deep")
    points.press("Enter")
    visit.settle()
    assert visit.asked[-1]["budget"]["depth"] == 5
