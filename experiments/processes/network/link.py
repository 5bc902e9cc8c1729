"""What a link does to packets, and which packets: decisions by counting, not by chance.

Each decision is a pure function of (seed, sending host, receiving host, cause, number of
the packet). So two runs that send the same packets lose the same ones, whatever else
happens, and a link may change while it runs.
"""

import math
from dataclasses import dataclass, fields

WORD = 1 << 64
GAMMA = 0x9E3779B97F4A7C15
# Each cause draws from a stream of its own, so that one does not change another.
CAUSES = ("loss", "jitter", "reorder", "duplicate", "damage", "swap", "place")
TCP, UDP = 6, 17


@dataclass(frozen=True)
class Link:
    """One direction of a link. A probability is that of each packet by itself."""

    delay: float = 0.0  # seconds on the way
    jitter: float = 0.0  # seconds by which the delay varies, evenly, to both sides
    rate: float = math.inf  # bits a second, headers of IP included
    queue: float = math.inf  # bytes that may wait for the link; it drops what exceeds them
    loss: float = 0.0  # probability that a packet is lost on the way
    duplicate: float = 0.0  # probability that it arrives twice
    reorder: float = 0.0  # probability that it arrives late, so that others overtake it
    late: float = 0.01  # seconds by which such a packet is late
    damage: float = 0.0  # probability that a bit is flipped: TCP's checksum finds it
    swap: float = 0.0  # probability that two words are swapped: TCP's checksum does not

    def told(self) -> dict[str, float]:
        """Return what is not as good as it can be."""
        return {name: x for name, x in vars(self).items() if x != getattr(Link, name)}

    def __post_init__(self):
        for field in fields(self):
            value, name = getattr(self, field.name), field.name
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"link: {name} is {value!r}; expected a number")
            if not value >= 0:  # NaN too
                raise ValueError(f"link: {name} {value} is not a number from 0 up")
            if name in CAUSES and name != "jitter" and value > 1:
                raise ValueError(f"link: {name} {value} is a probability; expected 0 to 1")
        for name in ("delay", "jitter", "late"):
            if math.isinf(getattr(self, name)):
                raise ValueError(
                    f"link: {name} is infinite; a dead link is Network.cut, or loss 1"
                )
        if self.jitter > self.delay:
            raise ValueError(
                f"link: jitter {self.jitter} s exceeds delay {self.delay} s; a packet "
                "cannot arrive before it is sent"
            )
        if self.rate == 0:
            raise ValueError("link: rate 0; a dead link is Network.cut, or loss 1")


def mixed(word: int) -> int:
    """Return 64 bits that look independent of the given ones (SplitMix64's last step)."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % WORD
    return word ^ (word >> 31)


def number(key: int, n: int) -> int:
    """Return the n-th number of SplitMix64 (Steele et al. 2014) from the seed `key`."""
    return mixed((key + n * GAMMA) % WORD)


def uniform(key: int, n: int) -> float:
    """Return a number from 0 up to, but below, 1."""
    return (number(key, n) >> 11) / (1 << 53)


def stream(seed: int, sender: int, receiver: int, cause: str) -> int:
    """Return the key of a cause's decisions on one direction of a link."""
    key = seed
    for part in (sender, receiver, CAUSES.index(cause)):
        key = number(key, part + 1)
    return key


def flipped(packet: bytes, place: float) -> bytes:
    """Flip one bit behind the IP header; `place`, from 0 to 1, says which."""
    header = (packet[0] & 15) * 4
    if len(packet) <= header:
        return packet
    bit = int(place * (len(packet) - header) * 8)
    changed = bytearray(packet)
    changed[header + bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def swapped(packet: bytes, place: float) -> bytes:
    """Swap two unequal, neighbouring 16-bit words of the payload of TCP or UDP.

    The checksum is a sum of such words, so it stays right. A packet without two such words
    is returned as it is.
    """
    first = payload_start(packet)
    num_words = (len(packet) - first) // 2
    for offset in range(num_words - 1):
        at = first + 2 * ((int(place * (num_words - 1)) + offset) % (num_words - 1))
        one, other = packet[at : at + 2], packet[at + 2 : at + 4]
        if one != other:
            return packet[:at] + other + one + packet[at + 4 :]
    return packet


def payload_start(packet: bytes) -> int:
    """Return where the payload of TCP or UDP begins; the packet's end if it has none."""
    header = (packet[0] & 15) * 4
    is_later_fragment = (packet[6] & 0x1F) or packet[7]
    if packet[9] == UDP and not is_later_fragment:
        return header + 8
    if packet[9] == TCP and not is_later_fragment:
        return header + (packet[header + 12] >> 4) * 4
    return len(packet)
