"""Write the same text in the same way: Unicode form, line ends, white space, numbers.

For columns of numbers, *normalisation* scales each to the range 0 to 1, and
*standardisation* takes off the mean and divides by the standard deviation. A text has no
such columns. Its counterpart of normalisation is this stage: what differs without meaning
anything becomes equal, so that it is one token and not several. That may go as far as the
numbers in the text (`numbers`): all digits become 0, or each number becomes one word.
Standardisation happens where texts are measured: anomaly.py compares each document with
the corpus by (value - median) / deviation, since lengths and shares have no common scale.

Code is treated with more care than prose: its strings may hold any character on purpose.
"""

import pathlib
import re
import unicodedata
from dataclasses import dataclass, field

from lm.data.cleaning.markup import strip_markup
from lm.data.cleaning.stage import Applied, Finding
from lm.data.sources.corpus import Document

# Line ends of Windows, also when they were converted twice, and of the old Macintosh.
LINE_END = re.compile("\r+\n|\r")
# Further line ends of Unicode. Compilers do not take them for such, so code keeps them.
PROSE_LINE_END = re.compile("[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
# It begins at the beginning of a run alone: else a run of n spaces inside a line would be
# looked at n times.
TRAILING_SPACE = re.compile(r"(?<![^\S\n])[^\S\n]+(?=\n|\Z)")
# A number that is not part of a name: 3, 1_000, 2.5e-3, 1,234.5; but not the 8 of utf8.
NUMBER = re.compile(r"(?<![\w.])\d[\d_]*(?:[.,]\d+)*(?:[eE][+-]?\d+)?(?!\w)")
NUMBER_WORD = "<number>"
CODE_SUFFIXES = set(
    ".bash .c .cc .cpp .cs .css .cu .cxx .f90 .go .h .hpp .java .jl .js .jsx .kt "
    ".lua .m .php .pl .proto .pxd .py .pyi .pyx .r .rb .rs .scala .sh .sql .swift .toml "
    ".ts .tsx .vue .xml .yaml .yml .zsh".split()
)
PROSE_SUFFIXES = {".htm", ".html", ".md", ".rst", ".tex", ".txt"}
PLACE = re.compile(r"(?:#\d+)?(?:, part \d+)?\Z")  # of a document in its file
CODE_LINE = re.compile(r"[{}()\[\];:=,\\]$|^\s*(?:#|//|/\*|\*|import |return\b)")
CODE_SHARE = 0.4  # of lines that look like code, from which a text is code


@dataclass
class NormaliseConfig:
    # what the documents are; auto: by the file's suffix, else by how the lines look
    kind: str = field(default="auto", metadata={"choices": ("auto", "code", "prose")})
    # Unicode form of prose; code keeps its own
    form: str = field(default="NFC", metadata={"choices": ("none", "NFC", "NFKC")})
    # drop white space at the ends of lines of prose; code keeps it
    trailing_space: bool = True
    # most blank lines in a row, in code too
    blank_lines: int = field(default=2, metadata={"at_least": 1})
    # HTML in the text; strip: drop tags, comments, scripts and styles
    markup: str = field(default="keep", metadata={"choices": ("keep", "strip")})
    # numbers in the text; zero: each digit becomes 0; word: each becomes <number>
    numbers: str = field(default="keep", metadata={"choices": ("keep", "zero", "word")})


def is_code(document: Document) -> bool:
    """Tell code from prose by the suffix of the file, else by the look of the lines."""
    file = PLACE.sub("", document.name.lower())
    suffix = pathlib.PurePath(file.removesuffix(".gz").removesuffix(".zst")).suffix
    if suffix in CODE_SUFFIXES or suffix in PROSE_SUFFIXES:
        return suffix in CODE_SUFFIXES
    lines = [line for line in document.text[:20_000].splitlines() if line.strip()]
    found = sum(CODE_LINE.search(line.rstrip()) is not None for line in lines)
    return found > CODE_SHARE * len(lines)


def normalise(config: NormaliseConfig, document: Document, verdict: None = None) -> Applied:
    """Return the document in normal form, None if no text is left, and what was changed.

    The score of a finding is the number of changes for each character of the document, at
    most 1.
    """
    prose = config.kind == "prose" or config.kind == "auto" and not is_code(document)
    text, changes = document.text, {}
    if config.markup == "strip":
        text, changes["markup"] = strip_markup(text)
    text, changes["line_ends"] = LINE_END.subn("\n", text)
    if prose:
        text, count = PROSE_LINE_END.subn("\n", text)
        changes["line_ends"] += count
    if prose and config.form != "none":
        text, changes["unicode_form"] = to_form(text, config.form)
    if prose and config.trailing_space:
        text, changes["trailing_space"] = TRAILING_SPACE.subn("", text)
    most = config.blank_lines + 1
    runs = rf"\n(?:[^\S\n]*\n){{{most},}}"
    text, changes["blank_lines"] = re.subn(runs, "\n" * most, text)
    if config.numbers != "keep":
        text, changes["numbers"] = NUMBER.subn(REPLACE_NUMBER[config.numbers], text)
    size = max(len(document.text), 1)
    findings = [
        Finding(document.name, kind, min(count / size, 1.0), ACCOUNTS[kind].format(count))
        for kind, count in changes.items()
        if count
    ]
    if text.strip():
        return document._replace(text=text), findings
    account = f"no text in {len(document.text)} characters"
    return None, [*findings, Finding(document.name, "empty", 1.0, account)]


REPLACE_NUMBER = {
    "zero": lambda number: re.sub(r"\d", "0", number[0]),
    "word": lambda number: NUMBER_WORD,
}
ACCOUNTS = {
    "markup": "{} tags and comments dropped",
    "line_ends": "{} line ends became \\n",
    "unicode_form": "{} lines changed their Unicode form",
    "trailing_space": "white space dropped at the ends of {} lines",
    "blank_lines": "{} runs of blank lines shortened",
    "numbers": "{} numbers replaced",
}


def to_form(text: str, form: str) -> tuple[str, int]:
    """Return the text in a Unicode form, and the number of lines that this changed."""
    if unicodedata.is_normalized(form, text):
        return text, 0
    lines = text.split("\n")
    formed = [unicodedata.normalize(form, line) for line in lines]
    changed = sum(new != line for new, line in zip(formed, lines, strict=True))
    return "\n".join(formed), changed
