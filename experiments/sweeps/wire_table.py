"""The table of experiments.studies.wire."""

from experiments.sweeps.results import Line
from experiments.sweeps.tables import markdown

SEGMENT = 1448  # bytes of a TCP segment's payload


def wire_table(lines: list[Line]) -> str:
    """Compare the ledger's bytes with the bytes that an interface counted."""
    head = (
        *("", "processes", "ledger", "interface", "ratio"),
        *("packets", "segments sent again", "without both"),
    )
    body = []
    for x in lines:
        ledger, sent, packets = x["ledger_bytes"], x["sent_bytes"], x["sent_packets"]
        once = sent - x["headers"] * packets - SEGMENT * x["resent_segments"]
        cells = [x["member"], x["hosts"], f"{ledger:,.0f}", f"{sent:,}"]
        cells += [f"{sent / ledger:.3f}", f"{packets:,}", x["resent_segments"]]
        body.append([*cells, f"{once / ledger:.3f}"])
    return markdown(head, body)
