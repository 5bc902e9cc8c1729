"""The table of the wire, from a made-up measurement whose answer is simple."""

from experiments.sweeps.wire_table import wire_table


def cells(text: str) -> dict[str, list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: others for first, *others in split}


def test_bytes_of_the_wire_without_headers_and_what_was_sent_again():
    line = {
        "member": "ring", "hosts": 2, "ledger_bytes": 1e6, "resent_segments": 2,
        "sent_bytes": 1_000_000 + 52 * 500 + 1448 * 2, "sent_packets": 500, "headers": 52,
    }  # fmt: skip
    ledger, sent, ratio, packets, again, once = cells(wire_table([line]))["ring"][1:]
    assert (ledger, sent, packets, again) == ("1,000,000", "1,028,896", "500", "2")
    assert (ratio, once) == ("1.029", "1.000")
