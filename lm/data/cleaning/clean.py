"""Cleaning of documents: remove what differs between platforms, and nothing else."""


def clean(text: str) -> str:
    """Unify line ends; drop a byte-order mark and NUL characters."""
    text = text.removeprefix("\ufeff").replace("\x00", "")
    return text.replace("\r\n", "\n").replace("\r", "\n")
