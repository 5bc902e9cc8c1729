"""A flipped bit of a prepared row is found when the row is read, and named."""

import numpy as np
import pytest

from lm.data.rows.checked import CorruptRows, RowsFile, checked_rows


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of RFC 3720, bit by bit."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def test_each_flipped_bit_is_found_when_its_row_is_read(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 2**16, (40, 9), np.uint16)
    file = tmp_path / "train.tokens"
    with RowsFile(file) as written:
        for row in rows:
            written.write(row.tobytes())
    sums = np.fromfile(tmp_path / "train.tokens.crc32c", "<u4")
    assert sums.tolist() == [crc32c(row.tobytes()) for row in rows]

    whole = file.read_bytes()
    for _ in range(60):
        at, bit = int(rng.integers(len(whole))), int(rng.integers(8))
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        bad = at // 18
        here = checked_rows(file, "uint16", rows.shape)
        others = [n for n in range(40) if n != bad]
        np.testing.assert_array_equal(here[others], rows[others])  # rows, lazily
        np.testing.assert_array_equal(here[bad + 1 :], rows[bad + 1 :])
        for index in (bad, [0, bad], slice(bad, None), bad - 40, np.arange(40) == bad,
                      (slice(None), 2)):  # fmt: skip
            with pytest.raises(CorruptRows, match=f"record {bad} of .*train.tokens") as e:
                here[index]
        assert f"its 18 bytes from byte {bad * 18}" in str(e.value)
    file.write_bytes(whole)
    assert type(checked_rows(file, "uint16", rows.shape)[3:5]) is np.ndarray
    (tmp_path / "train.tokens.crc32c").unlink()  # rows of before there were sums
    np.testing.assert_array_equal(checked_rows(file, "uint16", rows.shape)[:], rows)
