"""Text without its HTML."""

import re
from html.parser import HTMLParser

BLOCKS = (
    "address article aside blockquote br dd div dl dt figcaption figure footer form h1 h2 "
    "h3 h4 h5 h6 header hr li main nav ol option p pre section table td th title tr ul"
).split()
HIDDEN = ("script", "style")  # their content is no text
INLINE = (
    "a abbr area b base big body button caption center cite code col colgroup del details "
    "dfn em embed fieldset font head html i iframe img input ins kbd label legend link map "
    "mark meta nobr noscript object param picture q s samp select small source span strike "
    "strong sub summary sup svg tbody template textarea tfoot thead time tt u var video wbr"
).split()
TAG = rf"</?(?:{'|'.join((*BLOCKS, *HIDDEN, *INLINE))})(?:\s[^<>]*)?/?>|<!doctype\b|<!--"
HTML = re.compile(TAG, re.IGNORECASE)
# A "<" that opens none of these: "x < y", "<stdio.h>", "list<int>".
NO_TAG = re.compile(rf"(?!{TAG})<", re.IGNORECASE)


class Stripper(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.tags = 0
        self.hidden = 0  # depth of elements whose content is no text

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags += 1
        self.hidden += tag in HIDDEN
        self.parts.append("\n" if tag in BLOCKS else "")

    def handle_endtag(self, tag: str) -> None:
        self.tags += 1
        self.hidden = max(self.hidden - (tag in HIDDEN), 0)
        self.parts.append("\n" if tag in BLOCKS and tag != "br" else "")

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags += 1
        self.parts.append("\n" if tag in BLOCKS else "")

    def handle_comment(self, data: str) -> None:
        self.tags += 1

    def handle_decl(self, decl: str) -> None:
        self.tags += 1

    def handle_data(self, data: str) -> None:
        self.parts.append("" if self.hidden else data)


def strip_markup(text: str) -> tuple[str, int]:
    """Return the text without HTML tags, comments, scripts and styles; and their number.

    Character references (&amp;) become characters. A text without a tag of HTML is returned
    as it is, and so is what merely looks like a tag.
    """
    if not HTML.search(text):
        return text, 0
    # What opens a comment that is not closed is text. The parser would look for the end of
    # each such comment up to the end of the text.
    closed = text.rfind("-->") + 1
    text = text[:closed] + text[closed:].replace("<!--", "&lt;!--")
    stripper = Stripper()
    stripper.feed(NO_TAG.sub("&lt;", text))
    stripper.close()
    return "".join(stripper.parts), stripper.tags
