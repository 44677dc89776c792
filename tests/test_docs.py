"""The pages: what they name exists, and their sentences are short."""

import importlib
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import rldistill

ROOT = Path(__file__).parent.parent
SOURCE = Path(rldistill.__file__).parent
PAGES = sorted(page for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")] if page.name != "decisions.md")
"""Decisions are history: they name code that is gone."""
MODULES = {file.stem for file in SOURCE.rglob("*.py")} | {file.parent.name for file in SOURCE.rglob("__init__.py")}
FOLDERS = ("docs/", "src/", "tests/", "benchmarks/")
FILE_TYPES = {"arrow", "c", "cleanrl_model", "csv", "gif", "h", "html", "json", "jsonl", "md", "mp4", "onnx", "pickle"}
FILE_TYPES |= {"pkl", "png", "pt", "pth", "py", "safetensors", "toml", "zip"}
MOST_WORDS = 40


def parted(text: str) -> tuple[str, str]:
    """The text without its code blocks, and the code blocks."""
    fenced = re.compile(r"^( *)```.*?^\1```[ ]*$", re.MULTILINE | re.DOTALL)
    lines = fenced.sub("", text).splitlines()
    indented = [line.startswith("    ") for line in lines]
    prose = [line for line, is_code in zip(lines, indented, strict=True) if not is_code]
    code = [match[0] for match in fenced.finditer(text)]
    return "\n".join(prose), "\n".join(
        [*code, *(line for line, is_code in zip(lines, indented, strict=True) if is_code)]
    )


def spans(prose: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`\n]+)`", prose)


def dotted_names(page: str, *, strict: bool) -> Iterator[str]:
    """Names of the house, without the `rldistill.` in front; if strict any dotted name is taken for one."""
    prose, code = parted(page)
    for span in spans(prose):
        name = re.fullmatch(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)(?:\(.*\))?", span)
        if name and name[1].split(".")[-1] not in FILE_TYPES:
            first, rest = name[1].split(".", 1)
            if first == "rldistill":
                yield rest
            elif strict or (first in MODULES and find_spec(first) is None):
                yield name[1]
    yield from (name for name in re.findall(r"\brldistill\.([A-Za-z_][\w.]*\w)", code) if not name.endswith(".json"))
    for module, names in re.findall(r"from rldistill(?:\.([\w.]+))? import ([\w, ]+)", code):
        yield from (f"{module}.{name.strip()}".strip(".") for name in names.split(","))


def exists(name: str) -> bool:
    """Whether a dotted name is there, below `rldistill`."""
    parts = name.split(".")
    for number in range(len(parts), -1, -1):
        try:
            thing: object = importlib.import_module(".".join(["rldistill", *parts[:number]]))
        except ModuleNotFoundError:
            continue
        for part in parts[number:]:
            if not hasattr(thing, part):
                return False
            thing = getattr(thing, part)
        return True
    return False


def paths(page: str) -> Iterator[str]:
    """Files of the repository that a page names, and files of the source such as `students/losses.py`."""
    prose, _ = parted(page)
    for span in spans(prose):
        if re.fullmatch(r"[\w/.-]+", span) and (span.startswith(FOLDERS) or ("/" in span and span.endswith(".py"))):
            yield span
    yield from re.findall(r"python ((?:tests|benchmarks)/\w+\.py)", page)


def links(page: str) -> list[str]:
    """Where a page's links to other pages lead."""
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", parted(page)[0]) if not target.startswith("http")]


def anchors(page: str) -> set[str]:
    """The names of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", parted(page)[0], re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def sentences(page: str) -> Iterator[str]:
    """Sentences outside of code and tables; a heading and each entry of a list begin one."""
    prose = re.sub(r"`[^`\n]*`", "code", parted(page)[0])
    prose = re.sub(r"!\[[^]]*\]\([^)]*\)", "", prose)
    prose = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", prose)
    prose = "\n".join("" if line.lstrip().startswith("|") else line for line in prose.splitlines())
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[*-]|\d+\.) )|(?:^|\n)#+ [^\n]*", prose):
        yield from re.split(r"(?<=[.!?])[)*\"]*\s+", " ".join(paragraph.split()))


def words(sentence: str) -> int:
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_what_exists(page: Path) -> None:
    text = page.read_text()
    assert not [name for name in dotted_names(text, strict=page.name == "papers.md") if not exists(name)]
    assert not [path for path in paths(text) if not (ROOT / path).exists() and not (SOURCE / path).exists()]
    for target in links(text):
        place, _, anchor = target.partition("#")
        other = (page.parent / place).resolve() if place else page
        assert other.exists(), target
        assert not anchor or anchor in anchors(other.read_text()), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sentences_are_short(page: Path) -> None:
    assert not [sentence for sentence in sentences(page.read_text()) if words(sentence) > MOST_WORDS]


BAD = """# A title

See `students.losses.kl`, `losses.kl` and `students.losses.gone`, `runs/folder.py` and `runs/gone.py`, `policy.json`.
[One](train.md) links to [another](train.md#a-title).

| a table |
|---|

* An entry
* another `a b c d e`: one two.

```python
rldistill.distill(rldistill.gone)
from rldistill.datasets import info, lost
```
"""


def test_what_is_missing_is_noticed() -> None:
    missing = {name for name in dotted_names(BAD, strict=False) if not exists(name)}
    assert missing == {"losses.kl", "students.losses.gone", "gone", "datasets.lost"}
    assert list(paths(BAD)) == ["runs/folder.py", "runs/gone.py"]
    assert links(BAD) == ["train.md", "train.md#a-title"]
    assert anchors(BAD) == {"a-title"}


def test_long_sentences_are_noticed() -> None:
    assert max(map(words, sentences("so\nmany `words that count as one` " * 20 + "end. Next."))) == 61
    assert list(filter(None, sentences(BAD)))[-2:] == ["* An entry", "* another code: one two."]
