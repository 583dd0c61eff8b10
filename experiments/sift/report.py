"""The report of finished studies: one Markdown file, one self-contained HTML page, and a table of all runs.

    python -m experiments.sift.report RESULTS --output DIR

RESULTS holds a folder for each study, as `experiments.sift.matrix` writes it (STUDY/study.yml, STUDY/runs/*.json) or as
`experiments.sift.archive` saves it (*.json.gz). DIR (default: RESULTS) gets report.md, its figures/*.svg, report.html,
and runs.csv, a row for each measure of each run. The same runs give the same files byte for byte.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from data_utils.errors import OneLineParser, run_command_line
from data_utils.storage.files import atomic_write
from experiments.sift.reporting import sections
from experiments.sift.reporting.comparisons import named_comparison
from experiments.sift.reporting.document import (
    FIGURES_FOLDER,
    Block,
    Figure,
    Heading,
    Items,
    Paragraph,
    to_html,
    to_markdown,
)
from experiments.sift.reporting.published import published_blocks, read_published
from experiments.sift.reporting.results import Study, read_studies
from experiments.sift.reporting.run_table import run_table

TITLE = "SiFT, SMART and plain fine-tuning compared"
HOW_TO_READ = (
    "Every metric is recomputed from the golds and probabilities that the runs stored. ± is the standard error over "
    "seeds. A difference is paired: the same seeds and the same examples; its 95 % interval and p-value allow for new "
    "seeds and new examples (examples by bootstrap, seeds by Student's t), and p-values are corrected by Holm for "
    "all comparisons of a table. Intervals are not corrected. With 3 seeds or fewer only large "
    "differences can be shown."
)


def document(studies: Sequence[Study]) -> list[Block]:
    """The content of the report."""
    named = {study.name: named_comparison(study) for study in studies}
    blocks: list[Block] = [Heading(1, TITLE, "top")]
    missing = [line for study in studies for line in _warnings(study)]
    if missing:
        blocks += [Paragraph("Missing:"), Items(missing)]
    for study in studies:
        blocks += [Paragraph(f"{study.name}: {study.definition.question}"), Items(named[study.name][1])]
    blocks.append(Paragraph(HOW_TO_READ))
    for study in studies:
        blocks += _study(study, named[study.name][0])
    return blocks


def _warnings(study: Study) -> list[str]:
    lines = study.missing()
    if study.unlisted:
        what = "runs of settings, methods or seeds that are not in its definition"
        lines.append(f"{study.name}: {study.unlisted} {what} are left out")
    return lines


def _study(study: Study, named: Sequence[Block]) -> list[Block]:
    definition, name = study.definition, study.name
    settings = [setting for setting in definition.settings if study.methods(setting)]
    robust = [
        block for setting in settings for block in (*sections.pgd(study, setting), *sections.characters(study, setting))
    ]
    parts: list[tuple[str, Sequence[Block]]] = [
        ("The comparison named in advance", named),
        ("What was run", sections.what_was_run(study)),
        ("Hyperparameters", sections.tuning(study)),
        ("All methods", [
            *(block for setting in settings for block in sections.methods_by_test(study, setting)),
            *sections.sources_and_targets(study), sections.target_figure(study), *sections.share_figure(study),
        ]),
        ("Other measures", [sections.other_measures(study, setting) for setting in settings]),
        ("Calibration", [block for setting in settings for block in sections.calibration(study, setting)]),
        ("Sensitivity to the seed", [sections.seed_sensitivity(study, setting) for setting in settings]),
        ("Robustness", robust),
        ("Learning curves", sections.learning_curves(study)),
        ("Published numbers", published_blocks(study, read_published())),
    ]  # fmt: skip
    blocks: list[Block] = [Heading(2, f"Study: {name}", name), Paragraph(definition.question)]
    for number, (title, content) in enumerate(parts):
        if content:
            blocks += [Heading(3, title, f"{name}-{number}"), *content]
    return blocks


def write(studies: Sequence[Study], folder: Path) -> None:
    """Write `report.md` with `figures/`, `report.html` and `runs.csv` to a folder."""
    blocks = document(studies)
    for block in blocks:
        for panel in block.panels if isinstance(block, Figure) else ():
            with atomic_write(folder / FIGURES_FOLDER / f"{panel.name}.svg") as file:
                file.write(panel.svg)
    texts = {"report.md": to_markdown(blocks), "report.html": to_html(blocks, TITLE), "runs.csv": run_table(studies)}
    for name, text in texts.items():
        with atomic_write(folder / name) as file:
            file.write(text)


def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder of results, with a folder for each study")
    parser.add_argument("--output", type=Path, help="folder of the report (default: the folder of results)")
    arguments = parser.parse_args(argv)
    folder = arguments.output or arguments.results
    write(read_studies(arguments.results), folder)
    print(f"{folder / 'report.md'}, report.html, runs.csv")


if __name__ == "__main__":
    run_command_line(main)
