"""The tables of links, from made-up measurements whose answers are simple."""

from experiments.sweeps.link_tables import TIMED_EVERY, slow_link_table, wire_table


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


def test_seconds_to_a_loss_over_links():
    """int8 needs twice the steps; its step takes 1 s, that of the base 1 s + 9 s / rate."""
    curves = [
        {"member": "shard_map", "steps": 30, "loss": 2.0, "curve": [[10, 4.0], [20, 3.0]]},
        {"member": "int8", "steps": 60, "loss": 2.0, "curve": [[20, 4.0], [40, 3.0]]},
    ]
    timed = [
        {"member": member, "rate": rate, "seconds": [seconds] * TIMED_EVERY}
        for member, rate, seconds in [
            ("shard_map", 100, 1.09), ("shard_map", 1, 10.0), ("int8", 100, 1.0),
            ("int8", 1, 1.0),
        ]
    ]  # fmt: skip
    text = slow_link_table(timed, curves)
    assert "2.000" in text  # the loss that both reach
    found = cells(text)
    assert found["shard_map"] == ["30", "33", "300", ""]
    steps, fast, slow, pays = found["int8"]
    assert (steps, fast, slow) == ("60", "60", "60")
    assert 1 < float(pays) < 100


def test_a_member_that_never_gets_there_has_no_line():
    best = {"shard_map": 2.0, "bfloat16": 2.0, "int8": 3.0}
    curves = [
        {"member": member, "steps": 20, "loss": loss, "curve": [[10, 4.0]]}
        for member, loss in best.items()
    ]
    timed = [{"member": member, "rate": 10, "seconds": [1.0]} for member in best]
    tables = slow_link_table(timed, curves).split("To a validation loss of ")
    found = {text.partition(":")[0]: cells(text) for text in tables if text}
    assert found["3.000"]["shard_map"][:2] == ["15", "15"]  # half-way from 4 to 2
    assert found["3.000"]["int8"][:2] == ["20", "20"]
    assert "int8" not in found["2.000"] and found["2.000"]["bfloat16"][0] == "20"
