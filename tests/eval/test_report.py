import json
import re
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from data.schema import NO_ITEM, Candidates, Histories, Holdout
from eval import report as report_module
from eval.page import _warning
from eval.plots import _apart
from eval.protocol import CatalogStats, Evaluation, candidate_recall, evaluate
from eval.report import Comparison, Contribution, Fit, Report, Role, System, write_report
from eval.results import GatePoint, SliceContribution
from eval.significance import PairedTest, Verdict, paired_bootstrap
from eval.words import conclusion, evidence, interval_words, metric_words, number, slice_words
from store.errors import NoSpace

USERS, ITEMS = 60, 120
OF_TOWERS = {
    "target_item/cold": SliceContribution(7, 0.0625, 0.5, 0.375),
    "history_length/1-4": SliceContribution(1234, 0.1, 0.2, 0.4321),
}
OF_TEXTS = {name: SliceContribution(found.users, 0.0, 0.5, 0.5) for name, found in OF_TOWERS.items()}


def a_holdout(part="test") -> Holdout:
    rng = np.random.default_rng(0)
    histories = Histories.of([rng.integers(0, ITEMS, n).tolist() for n in rng.integers(1, 60, USERS)])
    targets = Histories.of(rng.integers(0, ITEMS, (USERS, 1)).tolist())
    return Holdout(part, np.arange(USERS), histories, targets)


def judged(found: float, part="test", seed=1) -> tuple[Evaluation, Candidates]:
    """A system that puts the target of a share `found` of the users first, and finds no other on purpose."""
    asked, rng = a_holdout(part), np.random.default_rng(seed)
    rows = rng.permuted(np.tile(np.arange(ITEMS), (USERS, 1)), axis=1)[:, :100]
    for user in range(int(found * USERS)):
        target = asked.targets[user][0]
        other = np.flatnonzero(rows[user] == target)
        rows[user, other] = rows[user, 0]
        rows[user, 0] = target
    rows[-1] = NO_ITEM
    score = np.where(rows == NO_ITEM, -np.inf, 0).astype(np.float32)
    candidates = Candidates(rows, score)
    popularity = np.random.default_rng(2).integers(0, 9, ITEMS)
    return evaluate(candidates, asked, CatalogStats(popularity, USERS)), candidates


def a_report(part="test", **changes) -> Report:
    whole, candidates = judged(0.8, part)
    ours = System("two-stage", Role.OURS, whole, "retrieval, then reranked")
    parts = System("retrieval alone", Role.STAGE, judged(0.5, part)[0])
    other = System("popularity", Role.BASELINE, judged(0.1, part, seed=3)[0])
    systems = [other, ours, parts]

    def found(name: str) -> np.ndarray:
        return next(system for system in systems if system.name == name).evaluation.per_user["ndcg@10"]

    made = Report(
        title="A run",
        fit=Fit.EVALUATION,
        split="Leave one out.",
        user_ids=[f"u{user}" for user in range(USERS)],
        systems=systems,
        comparisons=[
            Comparison.of(ours, other),
            Comparison.of(ours, parts, question="Does reranking help?"),
        ],
        contributions=[
            Contribution("towers", 0.25, paired_bootstrap(found("two-stage"), found("popularity")), OF_TOWERS),
            Contribution("<b>texts", 0.125, paired_bootstrap(found("popularity"), found("two-stage")), OF_TEXTS),
        ],
        counts={"users": USERS},
        ceiling=candidate_recall(candidates, a_holdout().targets),
        cost={"milliseconds a user": 2.5},
        left_out={"EASE": "20,001 items"},
        notes=["A note."],
        provenance={"command": "python cli.py evaluate"},
    )
    return replace(made, **changes)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("reports") / "first"
    made = a_report()
    page = write_report(directory, made)
    return directory, made, page.read_text()


def test_without_a_reranker_there_is_no_gate(written):
    assert "Whom to rerank" not in written[2]


def test_the_json_holds_every_figure(written):
    directory, made, _ = written
    read = json.loads((directory / "report.json").read_text(), parse_constant=pytest.fail)
    assert [system["name"] for system in read["systems"]] == ["two-stage", "retrieval alone", "popularity"]
    best = read["systems"][0]
    assert best["metrics"] == made.systems[1].evaluation.metrics
    assert best["slices"] == made.systems[1].evaluation.slices
    low, high = best["intervals"]["ndcg@10"]
    assert low < best["metrics"]["ndcg@10"] < high
    assert best["unserved"] == 1
    assert PairedTest(**read["comparisons"][0]["test"]) == made.comparisons[0].test
    assert read["ceiling"]["recall@100"] == made.ceiling[100]
    assert (read["part"], read["fit"], read["users"]) == ("test", "evaluation fit", USERS)


def test_the_curve_of_the_gate_stands_beside_chance(tmp_path):
    curve = [GatePoint(0.0, 0.0, 0.0), GatePoint(0.5, 0.0123, 0.008), GatePoint(1.0, -0.016, -0.016)]
    page = write_report(tmp_path, a_report(gate=curve)).read_text()
    section = page[page.index("<h2>Whom to rerank</h2>") :]
    section = section[: section.index("</section>")]
    for said in ("50%", "+0.0123", "+0.0080", "−0.0160"):
        assert said in section
    saved = json.loads((tmp_path / "report.json").read_text())["gate"]
    assert saved[1] == {"share": 0.5, "gain": 0.0123, "random": 0.008}


def test_what_each_source_adds_is_in_the_json_and_on_the_page(written, tmp_path):
    directory, made, page = written
    first, _ = json.loads((directory / "report.json").read_text())["contributions"]
    assert (first["source"], first["alone"]) == ("towers", 0.25)
    assert PairedTest(**first["test"]) == made.contributions[0].test
    section = page[page.index("<h2>What each source adds</h2>") :]
    section = section[: section.index("</section>")]
    test = made.contributions[0].test
    assert f"weighted sum, {test.ours:.4f} with all of its sources and without a network over them" in section
    assert all(f"<td>{figure:.4f}</td>" in section for figure in (0.25, test.theirs, 0.125))
    assert f"+{test.difference:.4f}<small>+{test.low:.4f} to +{test.high:.4f}</small>" in section
    assert "Weights are fitted anew both with and without it" in section
    assert "▲ helps" in section
    assert f"−{test.difference:.4f}<small>−{test.high:.4f} to −{test.low:.4f}</small>" in section
    assert "▼ harms" in section
    assert "&lt;b&gt;texts" in section
    assert first["slices"]["target_item/cold"] == {"users": 7, "alone": 0.0625, "ours": 0.5, "theirs": 0.375}
    slices = section[section.index("By history length, and for cold items") :]
    for said in ("target never seen in training<small>7 users", "history of 1–4 items<small>1,234 users"):
        assert said in slices
    assert "<td>+0.1250<small>0.0625</small></td><td>−0.2321<small>0.1000</small></td>" in slices
    assert "<td>+0.0000<small>0.0000</small></td>" in slices
    untold = replace(made, contributions=[replace(one, slices={}) for one in made.contributions])
    assert "By history length, and for cold items" not in write_report(tmp_path, untold).read_text()
    none = write_report(tmp_path, replace(made, contributions=[])).read_text()
    assert "What each source adds" not in none


def test_the_parquet_lets_anybody_test_again(written):
    directory, made, _ = written
    frame = pl.read_parquet(directory / "per_user.parquet")
    assert frame["user_id"].dtype == pl.String
    assert len(frame) == 3 * USERS
    values = {
        name: frame.filter(pl.col("system") == name).sort("user_id")["ndcg@10"].to_numpy()
        for name in ("two-stage", "popularity")
    }
    again = paired_bootstrap(values["two-stage"], values["popularity"])
    assert again.difference == pytest.approx(made.comparisons[0].test.difference)
    assert again.verdict == made.comparisons[0].test.verdict == Verdict.HELPS


def test_the_page_leads_with_the_verdict_and_loads_nothing(written):
    _, made, page = written
    body = page[page.index("<body>") :]
    assert body.index("Two-stage is better than popularity.") < body.index("<h2>Systems</h2>")
    assert f"{made.comparisons[0].test.ours:.4f} against" in body
    assert "Does reranking help?" in body
    assert not re.search(r"<script|<link|@import|url\(|https?://", page)
    assert set(re.findall(r'(?:src|srcset)="([^"]{0,22})', page)) == {"data:image/png;base64,"}
    assert page.count("prefers-color-scheme: dark") == 1 + 3
    assert all(match.strip() for match in re.findall(r'alt="([^"]*)"', page))
    assert "two-stage left 1 without any candidate" in body
    assert "20,001 items" in body


def test_titles_ids_and_notes_are_text_and_never_markup(tmp_path):
    evil = '<script>alert("x")</script>'
    made = a_report()
    systems = [replace(system, note=evil) for system in made.systems]
    page = write_report(
        tmp_path,
        replace(made, title=evil, split=evil, notes=[evil], systems=systems, provenance={evil: evil}),
    ).read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 2 + 1 + 1 + 3 + 2


def test_names_that_a_plot_cannot_print_are_no_error(tmp_path):
    made = a_report(comparisons=[])
    names = ["日本語", "$a$ and $b$", "<b> & co"]
    systems = [replace(s, name=name) for s, name in zip(made.systems, names, strict=True)]
    page = write_report(tmp_path, replace(made, systems=systems)).read_text()
    assert "日本語" in page
    assert "&lt;b&gt; &amp; co" in page
    assert "No systems were compared." in page


def test_validation_figures_and_a_final_fit_are_warned_about(written, tmp_path):
    _, _, page = written
    assert 'class="warning"' not in page
    final = write_report(tmp_path, a_report("validation", fit=Fit.FINAL)).read_text()
    assert final.index("what they remember, not what they predict") < final.index('class="verdicts"')
    assert "Validation figures." in _warning(a_report("validation"))
    assert _warning(a_report()) == ""


def test_two_reports_of_one_value_are_equal_to_the_byte(written, tmp_path):
    directory, made, _ = written
    write_report(tmp_path, made)
    for name in ("report.json", "report.html", "per_user.parquet"):
        assert (tmp_path / name).read_bytes() == (directory / name).read_bytes()


def test_a_full_disk_leaves_the_last_page(written, tmp_path, monkeypatch):
    _, made, page = written
    write_report(tmp_path, made)

    def refuse(path, content):
        raise NoSpace(f"cannot write {path}")

    monkeypatch.setattr(report_module, "atomic_write", refuse)
    with pytest.raises(NoSpace):
        write_report(tmp_path, replace(made, title="Another"))
    assert (tmp_path / "report.html").read_text() == page


def test_a_report_that_does_not_hang_together_is_refused():
    made = a_report()
    with pytest.raises(ValueError, match="two-stage was judged on 60 users, the report is about 59"):
        replace(made, user_ids=made.user_ids[1:])
    with pytest.raises(ValueError, match="two systems have one name"):
        replace(made, systems=[*made.systems, made.systems[0]])
    with pytest.raises(ValueError, match="a comparison is about popularity, which is not"):
        replace(made, systems=made.systems[1:])
    with pytest.raises(ValueError, match="some systems were judged on validation and some on test"):
        replace(made, systems=[*made.systems, System("x", Role.STAGE, judged(0.5, "validation")[0])])
    with pytest.raises(ValueError, match="at least one system"):
        replace(made, systems=[], comparisons=[])


def a_test(ours, theirs) -> PairedTest:
    return paired_bootstrap(np.array(ours, dtype=float), np.array(theirs, dtype=float))


def test_words_for_every_verdict():
    assert conclusion("two-stage", "EASE", Verdict.HELPS) == "Two-stage is better than EASE."
    assert conclusion("iALS", "EASE", Verdict.HARMS) == "iALS is worse than EASE."
    assert "no evidence that two-stage is better or worse" in conclusion("two-stage", "x", Verdict.NO_EVIDENCE)


def test_the_evidence_says_the_figures():
    said = evidence("ndcg@10", a_test([0.5] * 8 + [0, 1], [1] * 8 + [0, 0.5]))
    assert said.startswith("NDCG@10 0.5000 against 0.8500: −41.2 % (95 % interval −")
    assert said.endswith("Of 10 users 1 are better off, 8 worse off, 1 see no difference.")
    assert "+1.0000 (95 % interval +1.0000 to +1.0000), p < 0.001" in evidence("mrr@10", a_test([1] * 6, [0] * 6))


def test_of_too_few_users_who_differ_neither_interval_nor_p_is_told():
    said = evidence("ndcg@10", a_test([1.0] * 5 + [0.5], [0.75] * 5 + [0.5]))
    assert said == (
        "NDCG@10 0.9167 against 0.7083: +29.4 % by 5 users who differ, too few for an interval and p, which need 6. "
        "Of 6 users 5 are better off, 0 worse off, 1 see no difference."
    )
    assert "+1.0000 by 1 user who differs, too few for" in evidence("mrr@10", a_test([1], [0]))
    assert interval_words(a_test([1, 0], [0, 0])) == "1 user who differs, too few"
    assert interval_words(a_test([1.0] * 6, [0.5] * 6)) == "+0.5000 to +0.5000"


def test_metric_slice_and_number_words():
    assert metric_words("hit_rate@5") == "HitRate@5"
    assert slice_words("history_length/50+") == "history of 50+ items"
    assert slice_words("history_length/0") == "no history"
    said = [number(value) for value in (1234567, 3.0, 0.012345, 212.66, 4321.4, "on a GPU", 0)]
    assert said == ["1,234,567", "3", "0.0123", "212.7", "4,321", "on a GPU", "0"]


def test_labels_are_pushed_apart_and_clusters_stay_centred():
    assert _apart([0.0, 5.0], gap=1) == [0, 5]
    assert _apart([0.0, 0.0, 0.0], gap=1) == [-1, 0, 1]
    assert _apart([0.0, 0.2, 1.0], gap=1) == pytest.approx([-0.6, 0.4, 1.4])
