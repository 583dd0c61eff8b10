"""Made-up files in the formats and folders of the study's public data."""

from __future__ import annotations

import json
from pathlib import Path

NEL = "\x85"  # a line separator of Unicode that lies inside sentences


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_cola(root: Path, train: int = 100) -> None:
    """A training set of `train` sentences; the first of each development set is in it too."""
    sentences = {
        "in_domain_train": [f"He sleeps {number}." for number in range(train)],
        "in_domain_dev": ["he  sleeps 0.", *(f"She sings {number}." for number in range(9))],
        "out_of_domain_dev": ["He sleeps 1.", *(f"They run {number}." for number in range(9))],
    }
    for name, texts in sentences.items():
        lines = [f"gj04\t{number % 2}\t{'' if number % 2 else '*'}\t{text}\n" for number, text in enumerate(texts)]
        write(root / "cola" / f"{name}.tsv", "".join(lines).encode())


def write_hate(root: Path, tweets: int = 400) -> None:
    """Every tenth tweet is hateful; Latin-1 bytes, a tweet on two lines, a duplicate, a text with both labels."""
    rows = [f'{number},{int(number % 10 == 0)},"tweet, no. {number} \xf0??"\n' for number in range(tweets)]
    rows += [
        f"{tweets},0,  TWO\n",
        f'{tweets + 1},1,"two\tlines\n of  it"\n',
        f"{tweets + 2},0,two \n",
        f"{tweets + 3},0,both\n{tweets + 4},1,Both\n{tweets + 5},1,BOTH\n",
    ]
    write(root / "twitter_hate" / "train.csv", "".join(["id,label,tweet\n", *rows]).encode("latin-1"))


def write_uci(root: Path, sentences: int = 150) -> None:
    """Sentences of three sites, the first 30 of which all sites have; some hold the line separator NEL."""
    for site in ("amazon_cells", "imdb", "yelp"):
        texts = [f"{'all' if number < 30 else site}{NEL * (number % 7 == 0)} {number}  " for number in range(sentences)]
        lines = [f"{text}\t{number % 2}\n" for number, text in enumerate(texts)]
        write(root / "uci_sentiment" / f"{site}_labelled.txt", "".join(lines).encode())


def write_advglue(root: Path) -> None:
    rows = [{"idx": number, "sentence": f"a film {number} . ", "label": number % 2} for number in range(6)]
    pairs = [{"idx": n, "sentence1": f"a  film {n} . ", "sentence2": "it is .", "label": n % 2} for n in range(4)]
    write(root / "advglue" / "dev.json", json.dumps({"sst2": rows, "rte": pairs}).encode())


def write_glue(root: Path) -> None:
    """RTE and STS-B; the first pair of each development set is in the training set too."""
    header = "index\tsentence1\tsentence2\tlabel\n"
    rows = [f"{n}\tA dog {n} barks.\tA dog is loud.\t{('entailment', 'not_entailment')[n % 2]}\n" for n in range(41)]
    write(root / "glue" / "RTE" / "train.tsv", "".join([header, *rows]).encode())
    rows = [f"{n}\tA  DOG {n} barks.\tA dog is {'loud.' if n == 0 else n}\tentailment\n" for n in range(9)]
    write(root / "glue" / "RTE" / "dev.tsv", "".join([header, *rows]).encode())
    header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    for part, size, word in (("train", 41, "cat"), ("dev", 9, "cow")):
        words = ["hen" if n == 0 else f"{word} {n}" for n in range(size)]
        rows = [f"{n}\tg\tf\t2012\t0\tx\ty\tA {words[n]}.\tThe one.\t{n % 6}.250\n" for n in range(size)]
        write(root / "glue" / "STS-B" / f"{part}.tsv", "".join([header, *rows]).encode())


def write_all(root: Path) -> None:
    """The files of all preparations that read any."""
    for writer in (write_cola, write_glue, write_hate, write_uci, write_advglue):
        writer(root)
