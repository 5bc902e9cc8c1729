"""All that `inspect` says about a corpus, as the value that inspect.json holds."""

import collections
import heapq
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from experiments.inspection.observe import Observed
from experiments.inspection.repeats import clusters_report, leakage_report, near_copies

WORST = 5  # of a kind that are shown
DONE = ("masked", "repaired")  # tell what the config's action would do about an anomaly
NO_ANOMALY = ("exact_dedup", "near_dedup", "leakage", "normalise")


def anomalies(observed: Observed) -> Iterator[dict[str, Any]]:
    """Yield document, kind, score and reason of what stages find wrong with documents.

    Copies are told apart, and what `normalise` evens out is no fault.
    """
    for each in observed.findings():
        if each["stage"] not in NO_ANOMALY and each["kind"] not in DONE:
            yield {name: each[name] for name in ("document", "kind", "score", "reason")}


def by_kind(observed: Observed) -> dict[str, dict[str, Any]]:
    """Map each kind of anomaly to how many there are, and the worst of them."""
    count: collections.Counter = collections.Counter()
    worst: dict[str, list] = collections.defaultdict(list)
    for number, each in enumerate(anomalies(observed)):
        kind = each["kind"]
        count[kind] += 1
        heapq.heappush(worst[kind], (each["score"], -number, each))
        if len(worst[kind]) > WORST:
            heapq.heappop(worst[kind])
    return {
        kind: {
            "findings": num,
            "worst": [each for *_, each in sorted(worst[kind], reverse=True)],
        }
        for kind, num in count.most_common()
    }


def report(observed: Observed) -> dict[str, Any]:
    exact = observed.copies.get("exact_dedup", {})
    near = near_copies(observed)
    return {
        "exact_duplicates": len(exact),
        "near_duplicates": len(near),
        "clusters": {
            "exact": clusters_report(observed, exact),
            "near": clusters_report(observed, near),
        },
        "kinds": by_kind(observed),
        "leakage": leakage_report(observed),
    }


def write_json(file: pathlib.Path, found: dict[str, Any], observed: Observed) -> None:
    """Write the report with all anomalies, of which there may be more than memory holds."""
    partial = file.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as out:
        out.write(json.dumps(found, indent=1).removesuffix("\n}") + ',\n "anomalies": [')
        for number, each in enumerate(anomalies(observed)):
            out.write(("," if number else "") + "\n  " + json.dumps(each))
        out.write("\n ]\n}\n")
    partial.replace(file)
