"""Mojibake made by hand is restored to the byte, and clean source code is not touched."""

from lm.data.cleaning.fix import FixConfig, fix
from lm.data.sources.corpus import Document
from lm.data.sources.stdlib import source_files, stdlib_folder

# Modules that are not clean: mojibake in a literal, a byte-order mark inside a comment.
NOT_CLEAN = {"test/test_getpass.py", "test/test_shelve.py", "zipfile/_path/__init__.py"}
UNDEFINED = b"\x81\x8d\x8f\x90\x9d"  # in windows-1252
LANGUAGES = (
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "Voix ambiguë d’un cœur qui, au zéphyr, préfère les jattes de kiwis – là-bas…",
    "Pchnąć w tę łódź jeża lub ośm skrzyń fig.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "いろはにほへと ちりぬるを。視野無限廣，窗外有藍天。",
    "x = 'Å'  # Peter Åstrand",
    "print('naïve')",
    "10 €, 5 × 3 = 15°",
    "“quoted” — 'and not'",
)


def fixed(text: str, **config: bool) -> tuple[str, list[str]]:
    """Return the fixed text, "" if it is dropped, and the kinds of the findings."""
    document, findings = fix(FixConfig(**config), Document(text, "a.txt"))
    assert all(x.document == "a.txt" and 0 < x.score <= 1 for x in findings), findings
    return document.text if document else "", [x.kind for x in findings]


def windows_1252(raw: bytes) -> str:
    """Decode as WHATWG says: the five bytes that windows-1252 lacks are Latin-1's."""
    codecs = ("latin-1" if x in UNDEFINED else "cp1252" for x in raw)
    return "".join(bytes([x]).decode(c) for x, c in zip(raw, codecs, strict=True))


def modules() -> dict[str, str]:
    found = {}
    for path in source_files():
        try:
            text = (stdlib_folder() / path).read_bytes().decode()
        except UnicodeDecodeError:
            continue
        if text.strip():
            found[path.as_posix()] = text
    return found


def test_planted_mojibake_is_restored_to_the_byte():
    texts = {k: text for k, text in modules().items() if k not in NOT_CLEAN}
    wide = [text for text in texts.values() if not text.isascii() and len(text) < 2e4]
    assert len(wide) > 30
    texts = [*LANGUAGES, *(f"{x}\n\n# plain ASCII\n" for x in LANGUAGES), *wide]
    restored = []
    for text in texts:
        once, west = text.encode().decode("latin-1"), windows_1252(text.encode())
        twice = once.encode().decode("latin-1")
        assert once != text != west and twice != once
        for spoilt in (once, west, twice):
            again, kinds = fixed(spoilt)
            restored.append(again == text and "mojibake" in kinds)
            assert fixed(spoilt, mojibake=False, controls=False)[0] == spoilt
    assert sum(restored) >= 0.99 * len(restored)


def test_clean_text_is_not_touched():
    for text in LANGUAGES:
        assert fixed(text) == (text, [])
    texts = modules()
    touched = {name for name, text in texts.items() if fixed(text)[0] != text}
    assert touched <= NOT_CLEAN and len(texts) > 500
    # The rest of ftfy is off: entities, quotes, ligatures, widths, Unicode forms.
    for text in (
        "&amp; &lt;",
        "“a” ‘b’",
        "ﬁ",
        "ＡＢ ｱ",
        "e\u0301 \u212b",
        "a\r\nb\u2028c\f",
    ):
        assert fixed(text) == (text, [])


def test_a_document_of_two_encodings_is_restored_line_by_line():
    good, bad = LANGUAGES[3], LANGUAGES[0].encode().decode("latin-1")
    assert fixed(f"{good}\n{bad}\n") == (f"{good}\n{LANGUAGES[0]}\n", ["mojibake"])
    shown = f"{good}\nassert repair('PÃ¶p') == 'Pöp'\n"  # mojibake that is meant
    assert fixed(shown) == (shown, [])


def test_characters_that_mean_nothing():
    cases = [
        ("a\x00b\x07c\x7f", ("abc", ["control_characters"])),
        ("\x1b[31mred\x1b[0m", ("red", ["terminal_escapes"])),
        ("it\x92s", ("it’s", ["mojibake"])),  # windows-1252 decoded as Latin-1
        ("a\ufeffb", ("ab", ["byte_order_mark"])),
        ("\ufeffa", ("\ufeffa", [])),  # the first one is no business of this stage
        ("a\ud83d\ude00b", ("a\U0001f600b", ["surrogates"])),
        ("a\ud83db", ("a\ufffdb", ["surrogates", "lost_characters"])),
        ("a\ufffd\ufffdb", ("a\ufffd\ufffdb", ["lost_characters"])),
        ("\t\n\f\r\n x", ("\t\n\f\r\n x", [])),
        ("", ("", ["empty"])),
        (" \n\x00", ("", ["control_characters", "empty"])),
    ]
    for text, expected in cases:
        assert fixed(text) == expected, repr(text)
    assert fixed("a\x00b", controls=False)[0] == "a\x00b"
    _, [finding] = fix(FixConfig(), Document("a\ufffd\ufffdb", "x"))
    assert finding.score == 0.5 and "2 replacement characters" in finding.reason
