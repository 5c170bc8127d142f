"""What the page shows of an answer, and how it is asked."""

import pytest
from playwright.sync_api import expect

from serve.keys import Keys, Scope
from tests.pipeline.shop import catalog_rows
from tests.serve.browser import Visit
from tests.serve.hosts import hosted
from tests.serve.page.conftest import MARKUP, titles_in

pytestmark = pytest.mark.browser


def test_both_columns_hold_the_answer_in_its_two_orders(visit):
    visit.open("user=u010&depth=8&k=5")
    assert visit.asked[-1]["user_id"] == "u010"
    items = visit.answer["items"]
    retrieved = sorted(items, key=lambda item: item["retrieval_rank"])
    assert [item["title"] for item in items] != [item["title"] for item in retrieved], "the test needs a reordering"
    assert titles_in(visit, "before") == [item["title"] for item in retrieved[:5]]
    assert titles_in(visit, "after") == [item["title"] for item in items[:5]]
    entering = [item["title"] for item in items[:5] if item["retrieval_rank"] > 5]
    leaving = [item["title"] for item in items[5:] if item["retrieval_rank"] <= 5]
    assert sorted(visit.texts(".before .beyond .title")) == sorted(entering)
    assert sorted(visit.texts(".after .beyond .title")) == sorted(leaving)
    assert len(entering) == len(leaving)


DISTANCES = """() => [...document.querySelectorAll(".lines g.line")].map((line) => {
    const box = document.querySelector(".lines").getBoundingClientRect();
    const middle = (side) => {
        const row = document.querySelector(`.${side} [data-item="${line.dataset.item}"] .place`);
        const at = row.getBoundingClientRect();
        return at.top + at.height / 2 - box.top;
    };
    const ends = [...line.querySelectorAll("circle")].map((end) => Number(end.getAttribute("cy")));
    return [ends[0] - middle("before"), ends[1] - middle("after")];
})"""
"""Of the ends of the lines from the rows that they belong to, in pixels."""


def test_a_line_leads_from_each_item_to_itself_also_when_the_window_changes(visit):
    visit.open("user=u010&depth=8&k=5")
    items = visit.answer["items"]
    number = sum(1 for place, item in enumerate(items) if place < 5 or item["retrieval_rank"] <= 5)
    heights = []
    for width, height in ((1440, 1000), (1100, 1600), (1440, 1000)):
        visit.page.set_viewport_size({"width": width, "height": height})
        visit.page.get_by_role("button", name="Recommend", exact=True).click()
        visit.settle()
        visit.page.wait_for_function("document.querySelectorAll('.lines g.line').length")
        visit.page.wait_for_timeout(100)
        assert visit.page.evaluate(DISTANCES) == [[pytest.approx(0, abs=1)] * 2] * number
        heights.append(visit.page.locator(".columns").evaluate("(node) => node.getBoundingClientRect().height"))
        rows = visit.page.locator(".row").evaluate_all("(rows) => rows.map((row) => row.offsetHeight)")
        assert max(rows) < 80, "the lines must not stretch the rows"
    assert heights[0] == heights[2]


def test_moves_are_counted_in_places(visit):
    visit.open("user=u010&depth=8&k=5")
    moves = visit.page.locator(".after > .rows .move")
    for place, item in enumerate(visit.answer["items"][:5], start=1):
        steps = item["retrieval_rank"] - place
        expected = (
            f"{'up' if steps > 0 else 'down'} {abs(steps)}, from place {item['retrieval_rank']}" if steps else "unmoved"
        )
        expect(moves.nth(place - 1)).to_contain_text(expected)
    moved = sum(item["retrieval_rank"] != place for place, item in enumerate(visit.answer["items"][:5], start=1))
    expect(visit.page.locator("#status")).to_have_text(
        f"5 recommendations for user u010, {moved} of them moved by reranking."
    )


def test_an_item_says_why(visit):
    visit.open("user=u010&depth=8&k=5")
    item = visit.answer["items"][0]
    visit.page.locator(".after summary").first.press("Enter")
    why = visit.page.locator(".after .why").first
    expect(why).to_be_visible()
    reasons = why.locator("ul li").all_text_contents()
    assert reasons == [reason["title"] for reason in item["because"]]
    named = why.locator(".shares dt").all_text_contents()
    shares = why.locator(".shares dd").all_text_contents()
    assert dict(zip(named, shares, strict=True)) == {
        name: f"{round(share * 100)} %" for name, share in item["sources"].items() if name in named
    }
    assert max(item["sources"], key=item["sources"].__getitem__) in named


def test_the_rerankers_own_order_can_be_seen(visit):
    visit.open("user=u010&depth=8&k=5&rerank=always")
    visit.page.get_by_role("button", name="Reranker alone").click()
    own = sorted(visit.answer["items"], key=lambda item: item["rerank_rank"] or 99)
    assert titles_in(visit, "after") == [item["title"] for item in own[:5]]


def test_a_history_is_composed_with_the_keyboard(visit):
    visit.open("user=u010")
    visit.page.get_by_role("radio", name="A history").press("Space")
    field = visit.page.get_by_role("combobox", name="Add an item of the catalog")
    wanted = [title for _, title, _ in catalog_rows()[:2]]
    for title in wanted:
        field.fill(title)
        expect(visit.page.get_by_role("option").first).to_contain_text(title)
        field.press("ArrowDown")
        assert field.get_attribute("aria-activedescendant")
        field.press("Enter")
        visit.settle()
    assert visit.asked[-1]["history"] == ["i00", "i01"]
    visit.page.get_by_role("button", name=f"Earlier: {wanted[1]}").press("Enter")
    visit.settle()
    assert visit.asked[-1]["history"] == ["i01", "i00"]
    assert visit.page.evaluate("document.activeElement.ariaLabel") == f"Later: {wanted[1]}"
    visit.page.get_by_role("button", name=f"Remove: {wanted[1]}").click()
    visit.settle()
    assert visit.asked[-1]["history"] == ["i00"]
    assert visit.texts(".chip .title") == [wanted[0]]


def test_a_user_is_found_by_the_beginning_of_the_id(visit):
    visit.open("user=u010")
    field = visit.page.get_by_role("combobox", name="User id")
    field.fill("u11")
    expect(visit.page.get_by_role("option")).to_have_text([f"u11{digit}" for digit in range(10)])
    visit.page.get_by_role("option", name="u113").click()
    visit.settle()
    assert visit.asked[-1]["user_id"] == "u113"
    expect(visit.page.get_by_role("heading", level=2)).to_have_text("For user u113")


def test_a_wish_is_answered_without_the_reranker_and_says_so(visit):
    visit.open("user=u010")
    visit.page.get_by_role("radio", name="A wish").check(force=True)
    visit.page.get_by_label("What would they like?").fill("bum dal <b>")
    visit.page.get_by_label("What would they like?").press("Enter")
    visit.settle()
    assert visit.asked[-1]["query"] == "bum dal <b>"
    assert titles_in(visit, "after") == [item["title"] for item in visit.answer["items"][:10]]
    expect(visit.page.get_by_role("heading", level=2)).to_have_text("For “bum dal <b>”")
    expect(visit.page.locator("#notices")).to_contain_text("Not reranked")
    expect(visit.page.locator(".before")).to_have_count(0)


def test_sliders_set_what_is_asked_for(visit):
    visit.open("user=u010&depth=8&k=5")
    visit.page.get_by_role("slider", name="Depth").press("ArrowLeft")
    visit.settle()
    assert visit.asked[-1]["budget"]["depth"] == 7
    visit.page.get_by_role("slider", name="Shown").press("ArrowRight")
    visit.settle()
    assert len(titles_in(visit, "after")) == 6
    tokens = visit.page.get_by_role("slider", name="Tokens, at most")
    tokens.press("Home")
    visit.settle()
    assert visit.asked[-1]["budget"]["max_tokens"] == 50
    assert tokens.get_attribute("aria-valuetext") == "50"
    expect(visit.page.locator("#notices")).to_contain_text(visit.answer["left_out"] or visit.answer["reason"])


def test_the_address_keeps_the_question(visit):
    visit.open("user=u010&depth=8&k=5")
    visit.page.get_by_role("slider", name="Depth").press("ArrowLeft")
    visit.page.get_by_role("radio", name="Always").check(force=True)
    visit.settle()
    asked = visit.asked[-1]
    visit.page.reload()
    visit.settle()
    assert visit.asked[-1] == asked
    assert (asked["budget"]["depth"], asked["rerank"]) == (7, "always")


def test_cost_follows_the_prices(visit):
    visit.open("user=u010&depth=8&k=5")
    amounts = visit.page.locator(".amount .value")
    assert amounts.nth(2).text_content() == "–"
    # A machine for 3,600,000 an hour costs 1 a millisecond, a million tokens for a million 1 a token.
    visit.page.get_by_label("an hour of the machine").fill("3600000")
    visit.page.get_by_label("a million tokens").fill("1000000")
    answer = visit.answer
    ms = sum(answer["stages"][stage] for stage in ("retrieval_ms", "rerank_ms", "explain_ms"))
    one = ms + answer["usage"]["prompt_tokens"] - answer["usage"]["cached_tokens"]
    shown = [float(str(amounts.nth(place).text_content()).replace(",", "")) for place in (2, 3)]
    assert shown == [pytest.approx(one, abs=0.5), pytest.approx(one * 1e6, rel=1e-6)]


def test_a_fault_of_the_filter_stands_at_the_filter(browser, address):
    visit = Visit(browser, address).open("user=u010&where=genre%20%3D%20'genre1'")
    field = visit.page.get_by_label("Filter")
    assert field.get_attribute("aria-invalid") == "true"
    assert "Filter, character 1: " in str(visit.page.locator("#fault-where").text_content())
    field.fill("genres = 'genre1'")
    field.press("Enter")
    visit.settle()
    assert {int(item["item_id"][1:]) % 4 for item in visit.answer["items"]} == {1}
    assert field.get_attribute("aria-invalid") is None
    expect(visit.page.locator("#fault-where")).to_be_empty()
    assert len(titles_in(visit, "after")) > 0
    visit.close()
    assert visit.complaints == []


def test_a_stranger_gets_what_is_popular_and_is_told(visit):
    visit.open("user=nobody%20we%20know")
    assert visit.answer["known_user"] is False
    expect(visit.page.locator("#notices")).to_contain_text("know this user")
    assert len(titles_in(visit, "after")) == len(visit.answer["items"][:10])


def test_a_degraded_answer_is_shown_and_called_so(visit, service, monkeypatch):
    monkeypatch.setattr(service.serving.child, "fault", RuntimeError("out of order <b>today</b>"))
    visit.open("user=u010&k=5")
    assert visit.answer["degraded"] is True
    notice = visit.page.locator("#notices .warn")
    expect(notice).to_contain_text("Degraded")
    expect(notice).to_contain_text("out of order <b>today</b>")
    assert titles_in(visit, "after") == [item["title"] for item in visit.answer["items"][:5]]
    expect(visit.page.locator(".before")).to_have_count(0)


def test_markup_in_titles_stays_text(browser, bare_address):
    visit = Visit(browser, bare_address).open("user=u010&k=5")
    shown = titles_in(visit, "after")
    assert shown == [item["title"] for item in visit.answer["items"][:5]]
    assert all(title.startswith(MARKUP) for title in shown)
    visit.page.get_by_role("radio", name="A history").check(force=True)
    visit.page.get_by_role("combobox", name="Add an item of the catalog").fill("img")
    visit.page.get_by_role("option").first.click()
    visit.settle()
    visit.page.locator(".after summary").first.click()
    assert visit.page.locator("main img, main b").count() == 0
    assert visit.texts(".chip .title")[0].startswith(MARKUP)
    visit.close()
    assert visit.complaints == []


def test_a_run_without_reranker_and_report_says_both(browser, bare_address):
    visit = Visit(browser, bare_address).open("user=u010")
    expect(visit.page.locator("#notices")).to_contain_text("no reranker")
    visit.page.get_by_role("tab", name="Report").click()
    expect(visit.page.locator("#view-report")).to_contain_text("There is no report yet.")
    expect(visit.page.locator("#view-report")).to_contain_text("python cli.py evaluate")
    visit.close()
    assert visit.complaints == []


def test_a_key_is_asked_for_and_forgotten_with_the_tab(browser, service):
    keys = Keys(service.run.root)
    key = keys.add(frozenset({Scope.READ}))
    with hosted(service, keys=keys) as address:
        visit = Visit(browser, address)
        visit.page.goto(address)
        dialog = visit.page.get_by_role("dialog")
        for typed in ("wrong", key):
            dialog.get_by_label("API key").fill(typed)
            dialog.get_by_role("button", name="Use it").click()
        visit.settle()
        assert len(titles_in(visit, "after")) > 0
        assert visit.page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 1]
        assert key not in visit.page.url
        assert key not in str(visit.page.locator(".request pre").text_content())
        visit.close()
        assert visit.complaints == []
    keys.close()
