"""Normal forms of prose and of code, each change counted."""

import ast
import time

from lm.data.cleaning.markup import strip_markup
from lm.data.cleaning.normalise import NormaliseConfig, is_code, normalise
from lm.data.sources.corpus import Document
from lm.data.sources.stdlib import source_files, stdlib_folder


def normal(text: str, name: str = "a.txt", **config) -> tuple[str, dict[str, str]]:
    """Return the text, "" if it is dropped, and kind -> reason of the findings."""
    document, findings = normalise(NormaliseConfig(**config), Document(text, name))
    assert all(x.document == name and 0 < x.score <= 1 for x in findings)
    return document.text if document else "", {x.kind: x.reason for x in findings}


def test_line_ends_of_every_system():
    for end in ("\n", "\r\n", "\r", "\r\r\n"):
        for name in ("a.py", "a.txt"):
            assert normal(f"a{end}b{end}", name)[0] == "a\nb\n"
    assert normal("a\r\nb\rc")[1] == {"line_ends": "2 line ends became \\n"}
    for end in "\x0b\x0c\x85\u2028\u2029":  # line ends in prose, characters in code
        assert normal(f"a{end}b", "a.txt")[0] == "a\nb"
        assert normal(f"a{end}b", "a.py") == (f"a{end}b", {})


def test_unicode_forms_of_prose_alone():
    text = "e\u0301 ﬁ ①"
    assert normal(text)[0] == "é ﬁ ①"
    assert normal(text, form="NFKC")[0] == "é fi 1"
    assert normal(text, form="none") == (text, {})
    assert normal(text, "a.py", form="NFKC") == (text, {})
    assert normal(text, "a.py", kind="prose")[0] == "é ﬁ ①"
    assert list(normal(text)[1]) == ["unicode_form"]


def test_white_space():
    text = "a  \n\n\n\n\n b\t\n"
    assert normal(text)[0] == "a\n\n\n b\n"
    assert set(normal(text)[1]) == {"trailing_space", "blank_lines"}
    assert normal(text, "a.py")[0] == "a  \n\n\n b\t\n"
    assert normal(text, trailing_space=False, blank_lines=1)[0] == "a  \n\n b\t\n"
    assert normal("a\n \n\t\n \n \nb", "a.py")[0] == "a\n\n\nb"  # blank, not empty
    assert normal("a\n\n\nb") == ("a\n\n\nb", {})
    assert normal(" \n\t")[0] == "" and "empty" in normal(" \n\t")[1]


def test_numbers():
    text = "1 of 2.50 is 1,234.5e-3, utf8 x1 1_000 v1.2"
    assert normal(text) == (text, {})
    zero, word = (normal(text, numbers=kind)[0] for kind in ("zero", "word"))
    assert zero == "0 of 0.00 is 0,000.0e-0, utf8 x1 0_000 v1.2"
    n = "<number>"
    assert word == f"{n} of {n} is {n}, utf8 x1 {n} v1.2"
    assert normal(text, numbers="word")[1] == {"numbers": "4 numbers replaced"}


def test_markup():
    page = (
        "<!DOCTYPE html><html><head><style>p {}</style><script>if (a < b) {}</script>"
        "<title>T</title></head><body><!-- note --><p class='x>y'>One &amp; <b>two</b>"
        "<br>three</p></body></html>"
    )
    assert strip_markup(page)[0].split() == ["T", "One", "&", "two", "three"]
    for text in ("if a < b > c:", "#include <stdio.h>\nlist<int> x;", "&amp;", "x <b"):
        assert strip_markup(text) == (text, 0)
    assert strip_markup("<p>list<int> x < y</p>")[0].strip() == "list<int> x < y"
    assert normal("<p>a</p>")[0] == "<p>a</p>"
    # A comment without an end is text.
    assert strip_markup("<b>a</b> <!-- c --> d <!-- e") == ("a  d <!-- e", 3)
    text, changes = normal("<p>a</p>", markup="strip")
    assert text.strip() == "a" and changes["markup"] == "2 tags and comments dropped"


def test_python_means_the_same_afterwards():
    """A sample of modules has the same syntax tree, whether code is known by its name."""
    code = 0
    for path in source_files()[::80]:
        try:
            text = (stdlib_folder() / path).read_bytes().decode()
            tree = ast.dump(ast.parse(text))
        except (UnicodeDecodeError, SyntaxError):
            continue
        if not text.strip():
            continue
        new = normal(text, path.as_posix(), blank_lines=100)[0]
        assert ast.dump(ast.parse(new)) == tree
        code += is_code(Document(text, "part.jsonl#3"))
    assert code > 12


PROSE = """Call me Ishmael. Some years ago, never mind how long precisely, having little
money in my purse, and nothing particular to interest me on shore,
I thought I would sail about a little and see the watery part of the world.
"""


def test_prose_is_told_from_code():
    assert not is_code(Document(PROSE, "part.jsonl#3"))
    assert is_code(Document(PROSE, "a.py")) and not is_code(Document("x = f(y);", "a.md"))
    assert not is_code(Document("", ""))
    for name in ("C#/a.PY", "a.py#3", "a.py#3, part 2", "a.py, part 2", "a.py.gz"):
        assert is_code(Document(PROSE, name)), name


def test_the_time_does_not_grow_with_the_square_of_the_text():
    began = time.process_time()
    spaces = f"a{' ' * 100_000}b"
    assert normal(spaces) == (spaces, {})
    comments = "<!-- " * 40_000
    assert strip_markup(comments) == (comments, 0)
    assert time.process_time() - began < 5
