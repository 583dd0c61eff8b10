"""Comparisons in words and tables, and how a document shows them."""

from __future__ import annotations

from experiments.sift.reporting.comparisons import Compared, corrected, pairs, sentence
from experiments.sift.reporting.document import Heading, Paragraph, Table, to_html, to_markdown
from experiments.sift.reporting.statistics import Difference


def difference(estimate: float, low: float, high: float, p: float) -> Difference:
    return Difference(estimate, low, high, p, 10)


def test_a_comparison_in_a_sentence():
    unclear = Compared((), "SiFT", "SMART", difference(0.3, -0.41, 1.0, 0.2), 0.4)
    assert sentence(unclear) == (
        "SiFT − SMART: +0.30 points, 95 % interval −0.41 to +1.00, p = 0.400 (Holm), 10 seeds: no difference shown."
    )
    clear = Compared((), "SiFT", "SMART", difference(-2, -3, -1, 1e-5), 3e-5)
    assert sentence(clear).endswith("p < 0.001 (Holm), 10 seeds: SiFT is worse than SMART.")
    better = Compared((), "a", "b", difference(2, 1, 3, 0.01), 0.049)
    assert sentence(better).endswith("a is better than b.")


def test_the_corrected_p_decides():
    found = corrected([((str(n),), "a", "b", difference(1, 0.1, 2, 0.03)) for n in range(2)] + [((), "a", "b", None)])
    assert [one.corrected for one in found] == [0.06, 0.06]
    assert not any(one.significant for one in found)


def test_pairs_are_every_method_against_every_baseline_once():
    found = pairs(["plain", "smart", "sift", "vat"], ["plain", "smart"])
    assert found == [("smart", "plain"), ("sift", "plain"), ("vat", "plain"), ("sift", "smart"), ("vat", "smart")]
    assert pairs(["sift", "vat"], ["plain"]) == []


def test_text_is_shown_as_it_is_in_both_formats():
    blocks = [
        Heading(1, "A", "a"),
        Paragraph("p < 0.05, <b>, a|b, *x*, my_name, _y_"),
        Table("c & d", ["h"], [["<i>"]]),
    ]
    markdown, page = to_markdown(blocks), to_html(blocks, "t")
    assert r"p < 0.05, \<b>, a\|b, \*x\*, my_name, \_y\_" in markdown
    assert "p &lt; 0.05, &lt;b&gt;, a|b" in page and "c &amp; d" in page and "&lt;i&gt;" in page
