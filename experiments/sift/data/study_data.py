"""The study's data, by name: from public files to canonical TSV and token files.

    python -m experiments.sift.data.study_data cola rte stsb hate uci sentiment advglue --data_root DIR

A preparation reads public files in DIR (`SOURCES` says where to get them) and writes datasets of one task. Splits are
cut in the order of the texts' SHA-256 (`hutto.in_hash_order`), which does not depend on a random generator or on a
file's order. Texts that differ only in case and white space are duplicates.

- `cola`, linguistic acceptability [Warstadt et al. 2019]: `cola_train` and `cola_dev` are the in-domain training set,
  90 : 10; `cola_in_test` and `cola_out_test` are the two public development sets, `cola_all_test` is both together,
  GLUE's. Sentences of a test set are removed from the training set.
- `rte` and `stsb`, entailment and similarity of two sentences in GLUE's splits: `glue_pairs.py`.
- `hate`, hateful tweets (label `negative`) and others (`positive`): of duplicates the first is used, or none if their
  labels differ; then 70 : 10 : 20. `sentiment_hate` has the file's 7 % of hateful tweets; `sentiment_hatebalanced` has
  all hateful tweets of each split and as many of the others, the first ones. Both training sets have the same size:
  that of `sentiment_hate` is cut, to fit a CPU's budget.
- `uci`, sentences of three review sites [Kotzias et al. 2015]: `sentiment_uci10_train` is the first 100 of each site
  (10 %), `sentiment_uci1_train` the first 10 (1 %); `sentiment_uci{amazon,imdb,yelp}_test` are the other 900 of each
  less those in the train set. Names with `flipped` have negative and positive exchanged: hateful is 1 in the tweets'
  file and positive is 1 in these, so that a study that uses the numbers unchanged trains on *unaligned* labels.
- `sentiment`, the four domains of `hutto.py`: its datasets, and for training on another domain than the tweets
  `sentiment_from{amazon,movies,editorials}`, 70 : 10 : 20, with at most as many training examples as the tweets have.
  Their texts are also in `sentiment_{amazon,movies,editorials}_test`, which only tests models of other domains.
- `advglue` and `advglue_rte`: `sentiment_advglue_test` and `rte_advglue_test` are SST-2 and RTE in the development set
  of AdvGLUE [Wang et al. 2021].
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from data_utils.errors import DataError, FlagError, OneLineParser, nearest, run_command_line
from data_utils.pretrained import folder_name
from data_utils.readers import split_columns
from data_utils.storage.files import atomic_write
from data_utils.storage.text_files import read_json, read_lines, read_text
from experiments.preparation import command as preparation
from experiments.sift.data import hutto
from experiments.sift.data.glue_pairs import FOLDER as GLUE_FOLDER
from experiments.sift.data.glue_pairs import Pair, pairs
from experiments.sift.data.hutto import Example, in_hash_order, normal_form, split, without, write_canonical

Datasets = Mapping[str, Sequence[Example | Pair]]  # by file name without suffix

# folder of --data_root -> where to get its files
SOURCES = {
    "cola": "in the folder raw of CoLA's public release, https://nyu-mll.github.io/CoLA",
    "twitter_hate": "the training file of Analytics Vidhya's practice problem Twitter Sentiment Analysis, "
    "https://www.kaggle.com/datasets/arkhoshghalb/twitter-sentiment-analysis-hatred-speech",
    "uci_sentiment": "in Sentiment Labelled Sentences of the UCI repository, https://archive.ics.uci.edu/dataset/331",
    GLUE_FOLDER: "part of GLUE, https://gluebenchmark.com/tasks",
    "advglue": "AdvGLUE's development set, https://adversarialglue.github.io",
}
COLA_COLUMNS = ("source", "label", "mark", "sentence")
COLA_DEV_SHARE = 0.1
UCI_SITES = {"amazon": "amazon_cells_labelled.txt", "imdb": "imdb_labelled.txt", "yelp": "yelp_labelled.txt"}
UCI_POOLS = {"uci10": 100, "uci1": 10}  # training sentences of each site
SENTIMENTS = {"0": "negative", "1": "positive"}
HATE = {"0": "positive", "1": "negative"}  # hateful ~ negative
ENTAILMENTS = {"0": "entailment", "1": "not_entailment"}
FLIPPED = {"negative": "positive", "positive": "negative"}
STAMP = ".study_data.json"


def source(data_root: Path, folder: str, name: str) -> Path:
    """The path of a file in the data folder.

    Raises:
        DataError: it is missing; the message says where to get it.
    """
    path = data_root / folder / name
    if not path.is_file():
        raise DataError(f"not found; the file of this name is {SOURCES[folder]}", path)
    return path


def cola(data_root: Path) -> Datasets:
    """CoLA: in-domain training set, in-domain and out-of-domain test sets."""
    parts = {
        name: _read_cola(source(data_root, "cola", f"{name}.tsv")) for name in ("in_domain_dev", "out_of_domain_dev")
    }
    published = _read_cola(source(data_root, "cola", "in_domain_train.tsv"))
    trained = without(published, [example for part in parts.values() for example in part])
    print(f"cola: {len(published) - len(trained)} sentences of the training set are in a test set and left out")
    ordered = in_hash_order(trained)
    count = round((1 - COLA_DEV_SHARE) * len(ordered))
    return {
        "cola_train": ordered[:count],
        "cola_dev": without(ordered[count:], ordered[:count]),
        "cola_all_test": [example for part in parts.values() for example in part],
        "cola_in_test": parts["in_domain_dev"],
        "cola_out_test": parts["out_of_domain_dev"],
    }


def _read_cola(path: Path) -> list[Example]:
    examples = []
    for number, line in read_lines(path):
        fields = split_columns(line, COLA_COLUMNS, path, number)
        label = _label(fields["label"], {"0": "0", "1": "1"}, path, number)
        examples.append(Example(f"{path.stem}-{number}", label, fields["sentence"].strip()))
    return examples


def glue(task: str, data_root: Path) -> Datasets:
    """A task of GLUE with pairs of sentences; a tenth of its training set is the development set."""
    return pairs(task, partial(source, data_root, GLUE_FOLDER))


def hate(data_root: Path) -> Datasets:
    """Hateful tweets and others: in the file's proportion, and equally many of both."""
    published = _read_hate(source(data_root, "twitter_hate", "train.csv"))
    labels: dict[str, set[str]] = {}
    for example in published:
        labels.setdefault(normal_form(example.text), set()).add(example.label)
    one = {normal_form(example.text): example for example in reversed(published)}  # the first of each
    kept = [example for form, example in one.items() if len(labels[form]) == 1]
    print(
        f"hate: {len(published)} tweets, {len(published) - len(one)} of them duplicates; of the {len(one)} texts "
        f"{len(one) - len(kept)} with both labels are left out"
    )
    raw = split(kept)
    balanced = {name: balance(part) for name, part in raw.items()}
    raw["train"] = raw["train"][: len(balanced["train"])]
    return {
        **{f"sentiment_hate_{name}": part for name, part in raw.items()},
        **{f"sentiment_hatebalanced_{name}": part for name, part in balanced.items()},
    }


def _read_hate(path: Path) -> list[Example]:
    """The examples of rows `id,label,tweet`; the file is UTF-8 or Latin-1. White space becomes single spaces."""
    text = read_text(path, fallback="latin-1")
    rows = csv.DictReader(io.StringIO(text, newline=""))
    expected = ["id", "label", "tweet"]
    if rows.fieldnames != expected:
        raise DataError(f"expected the header {','.join(expected)}, found {','.join(rows.fieldnames or [])}", path, 1)
    examples = []
    for row in _rows(rows, path):
        if None in row or None in row.values():
            raise DataError(f"expected {len(expected)} columns ({', '.join(expected)})", path, rows.line_num)
        label = _label(row["label"], HATE, path, rows.line_num)
        examples.append(Example(f"hate-{row['id']}", label, " ".join(row["tweet"].split())))
    return examples


def _rows(rows: csv.DictReader[str], path: Path) -> Iterator[dict[str, str]]:
    try:
        yield from rows
    except csv.Error as error:
        raise DataError(f"is no CSV ({error})", path, rows.line_num) from error


def balance(examples: Sequence[Example]) -> list[Example]:
    """All examples of the rarer label and equally many of the other, the first ones, in their order."""
    by_label = {label: [example for example in examples if example.label == label] for label in FLIPPED}
    count = min(map(len, by_label.values()))
    kept = {example for part in by_label.values() for example in part[:count]}
    return [example for example in examples if example in kept]


def uci(data_root: Path) -> Datasets:
    """Reviews of three sites: small training sets, the rest as test sets; each also with exchanged labels."""
    sites = {
        site: in_hash_order(_read_uci(source(data_root, "uci_sentiment", name))) for site, name in UCI_SITES.items()
    }
    datasets = {
        f"sentiment_{name}_train": [example for ordered in sites.values() for example in ordered[:count]]
        for name, count in UCI_POOLS.items()
    }
    trained = datasets["sentiment_uci10_train"]
    for site, ordered in sites.items():
        others = ordered[UCI_POOLS["uci10"] :]
        datasets[f"sentiment_uci{site}_test"] = tested = without(others, trained)
        print(f"uci: {len(others) - len(tested)} sentences of {site} are in the training set and no test")
    return datasets | {flipped_name(name): flipped(part) for name, part in datasets.items()}


def _read_uci(path: Path) -> list[Example]:
    examples = []
    for number, line in read_lines(path):
        fields = split_columns(line, ("text", "label"), path, number)
        label = _label(fields["label"], SENTIMENTS, path, number)
        examples.append(Example(f"{path.stem}-{number}", label, fields["text"].strip()))
    return examples


def flipped_name(name: str) -> str:
    """`sentiment_uci1_train` → `sentiment_uci1flipped_train`."""
    dataset, part = name.rsplit("_", 1)
    return f"{dataset}flipped_{part}"


def flipped(examples: Iterable[Example]) -> list[Example]:
    """The examples with negative and positive exchanged."""
    return [example._replace(label=FLIPPED[example.label]) for example in examples]


def sentiment(data_root: Path) -> Datasets:
    """The four domains of Hutto & Gilbert, downloaded if needed; nothing is read from `data_root`."""
    domains = hutto.read_domains(hutto.download(hutto.DOWNLOADS))
    parts = hutto.datasets(domains)
    most = len(parts[f"{hutto.TRAINED_DOMAIN}_train"])
    for domain, examples in domains.items():
        if domain != hutto.TRAINED_DOMAIN:
            for name, part in split(examples).items():
                parts[f"from{domain}_{name}"] = part[:most] if name == "train" else part
    return {f"sentiment_{name}": part for name, part in parts.items()}


def advglue(data_root: Path) -> Datasets:
    """The sentences of SST-2 that AdvGLUE's authors changed until models failed."""
    rows = _read_advglue(data_root, "sst2", ("sentence",), SENTIMENTS)
    return {"sentiment_advglue_test": [Example(*row) for row in rows]}


def advglue_rte(data_root: Path) -> Datasets:
    """The pairs of RTE that AdvGLUE's authors changed until models failed."""
    rows = _read_advglue(data_root, "rte", ("sentence1", "sentence2"), ENTAILMENTS)
    return {"rte_advglue_test": [Pair(*row) for row in rows]}


def _read_advglue(data_root: Path, task: str, texts: Sequence[str], labels: dict[str, str]) -> list[tuple[str, ...]]:
    """Id, label and texts of each of a task's examples."""
    path = source(data_root, "advglue", "dev.json")
    try:
        return [
            (
                f"advglue-{row['idx']}",
                _label(str(row["label"]), labels, path),
                *(" ".join(row[name].split()) for name in texts),
            )
            for row in read_json(path)[task]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        expected = f"expected JSON, a list `{task}` of objects with idx, {', '.join(texts)} and label"
        raise DataError(expected, path) from error


PREPARATIONS: dict[str, Callable[[Path], Datasets]] = {
    "cola": cola,
    "rte": partial(glue, "rte"),
    "stsb": partial(glue, "stsb"),
    "hate": hate,
    "uci": uci,
    "sentiment": sentiment,
    "advglue": advglue,
    "advglue_rte": advglue_rte,
}


def _label(text: str, names: dict[str, str], path: Path, line: int | None = None) -> str:
    if text not in names:
        raise DataError(f"found label {text!r}, accepted: {', '.join(names)}", path, line)
    return names[text]


def write(names: Iterable[str], data_root: Path, root: Path) -> dict[Path, Sequence[Example | Pair]]:
    """Run preparations and write `ROOT/DATASET.tsv`; returns the examples by file.

    Raises:
        FlagError: there is no preparation of that name.
        DataError: a file is missing, malformed or cannot be written.
    """
    written: dict[Path, Sequence[Example | Pair]] = {}
    for name in names:
        if name not in PREPARATIONS:
            accepted = ", ".join(PREPARATIONS)
            raise FlagError(f"data: found {name!r}{nearest(name, PREPARATIONS)}, accepted: {accepted}")
        for dataset, examples in PREPARATIONS[name](data_root).items():
            written[root / f"{dataset}.tsv"] = examples
    for path, examples in written.items():
        write_canonical(path, examples)
    return written


def prepare(names: Iterable[str], data_root: Path, canonical_root: Path, encoder: str, task_def: Path) -> Path:
    """Run preparations and tokenize their files, unless token files of the same texts are there.

    Several processes may run this at once: files appear when they are complete, and all processes write the same.

    Args:
        names: of `PREPARATIONS`.
        data_root: the folder of the public files.
        canonical_root: the folder of the TSV files; all TSV files in it are tokenized.
        encoder: as in `prepro_std.py --model`.
        task_def: YAML with the task of the datasets.

    Returns:
        the token files' folder.

    Raises:
        UserError: as `write`; or the task does not have a label.
    """
    folder = canonical_root / folder_name(encoder)
    origins = {}
    for path in write(names, data_root, canonical_root):
        parts = (encoder.encode(), task_def.read_bytes(), path.read_bytes())
        origins[path.stem] = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    stamp = folder / STAMP
    known = _read_stamp(stamp)
    if any(known.get(name) != origin or not (folder / f"{name}.json").is_file() for name, origin in origins.items()):
        preparation.main(["--model", encoder, "--root_dir", str(canonical_root), "--task_def", str(task_def)])
        with atomic_write(stamp) as file:
            json.dump(known | origins, file, indent=1)
    return folder


def _read_stamp(stamp: Path) -> dict[str, str]:
    """Hashes of what each token file was made from, by name; empty if the file is missing or damaged."""
    try:
        found = read_json(stamp)
    except DataError:
        return {}
    return found if isinstance(found, dict) else {}


def shared_texts(datasets: Datasets) -> dict[tuple[str, str], int]:
    """How many texts of each training or development set are in each test set, where there are any."""
    tested = {name: part for name, part in datasets.items() if name.endswith("_test")}
    pairs = {
        (name, test): len(part) - len(without(part, tested[test]))
        for name, part in datasets.items()
        if name not in tested
        for test in tested
    }
    return {pair: count for pair, count in pairs.items() if count}


def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(description="The study's data as canonical TSV files.")
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"one or more of {', '.join(PREPARATIONS)}")
    parser.add_argument("--data_root", type=Path, required=True, help="folder of the public files")
    parser.add_argument("--root_dir", type=Path, default=Path("data/study"), help="folder of the TSV files")
    arguments = parser.parse_args(argv)
    written = write(arguments.names, arguments.data_root, arguments.root_dir)
    for path, examples in written.items():
        first = min(example.label for example in examples)
        share = sum(example.label == first for example in examples) / len(examples)
        print(f"{path}: {len(examples)} examples, {share:.1%} {first}")
    for (name, test), count in shared_texts({path.stem: part for path, part in written.items()}).items():
        print(f"{name} shares {count} texts with {test}: no test for a model trained on it")


if __name__ == "__main__":
    run_command_line(main)
