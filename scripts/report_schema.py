"""What a record must hold, beyond what every record must, to have its place in the report."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import records

Kind = tuple[str, Callable[[Any], bool]]


def _or_null(kind: Kind) -> Kind:
    return f"{kind[0]} or null", lambda value: value is None or kind[1](value)


TEXT: Kind = ("a string", lambda value: isinstance(value, str))
NUMBER: Kind = ("a number", records.is_number)
TRUTH: Kind = ("true or false", lambda value: isinstance(value, bool))
POSITIVE: Kind = ("a positive number", lambda v: records.is_number(v) and v > 0)
SHAPE = dict.fromkeys(("batch", "length", "units"), NUMBER)

METRICS: dict[str, Mapping[str, Kind]] = {
    "imdb": dict.fromkeys(("dev_accuracy", "test_accuracy"), NUMBER),
    "imdb-lm": dict.fromkeys(("valid_perplexity", "parameters"), NUMBER),
    "ptb": dict.fromkeys(("valid_perplexity", "test_perplexity", "parameters"), NUMBER),
    "iwslt": {
        **dict.fromkeys(("dev_bleu", "test_bleu", "dev_perplexity", "parameters"), NUMBER),
        "characters": NUMBER,
        "updates": POSITIVE,
        "train_chars_per_second": POSITIVE,
    },
}
HISTORY = {
    "imdb": ("validation_accuracy", "seconds"),
    **dict.fromkeys(("imdb-lm", "ptb"), ("validation_perplexity", "seconds")),
    "iwslt": ("steps", "bleu", "ppl"),
}
TABLES: dict[str, Mapping[str, Kind]] = {
    "bench-figure4": {
        **dict.fromkeys(("mode", "dtype", "lstm_dtype"), TEXT),
        **dict.fromkeys(("batch", "length", "paper_ratio"), NUMBER),
        "ratio": POSITIVE,
        "graph_ratio": _or_null(POSITIVE),
    },
    "bench-ptb-step": {"model": TEXT, "part": TEXT, "share": NUMBER},
    "ptb-start": {
        "weights": TEXT,
        **dict.fromkeys(("forget_bias", "epoch", "train_perplexity", "valid_perplexity"), NUMBER),
    },
    "imdb-errors": {
        **dict.fromkeys(("model", "by", "group"), TEXT),
        "reviews": POSITIVE,
        "wrong": NUMBER,
    },
    "bench-scan": {
        **dict.fromkeys(("kind", "dtype"), TEXT),
        **dict.fromkeys(("columns", "length", "share"), NUMBER),
        "bytes": POSITIVE,
        "graph_share": _or_null(NUMBER),
    },
    "bench-peers": {
        "peer": TEXT,
        "mode": _or_null(TEXT),
        "reason": _or_null(TEXT),
        **dict.fromkeys((*SHAPE, "ratio", "graph_ratio"), _or_null(NUMBER)),
    },
    "bench-memory": {
        **SHAPE,
        "dtype": TEXT,
        **dict.fromkeys(("ours_bytes", "lstm_bytes", "torchqrnn_bytes"), NUMBER),
    },
    "bench-growth": {"varies": TEXT, "factor": NUMBER, "ratio": NUMBER},
    "bench-translation": {"model": TEXT, "parameters": NUMBER, "speed_over_lstm": NUMBER},
    "bench-reviews": {
        "model": TEXT,
        "parameters": NUMBER,
        "dtype": TEXT,
        "speed_over_lstm": NUMBER,
    },
    "bench-convolution": {
        **dict.fromkeys(("dtype", "mode", "way"), TEXT),
        **dict.fromkeys(("kernel", "inputs", "length", "batch", "ratio"), NUMBER),
    },
}
OPTIONAL: dict[str, Mapping[str, Kind]] = {
    "bench-figure4": {"product_share": NUMBER},
    "bench-ptb-step": dict.fromkeys(
        ("ms", "paper_ms", "paper_share", "lstm_over_qrnn", "paper_lstm_over_qrnn"),
        _or_null(NUMBER),
    ),
    "bench-translation": {"ms": _or_null(NUMBER)},
    "bench-reviews": {"ms": _or_null(NUMBER)},
}


def check(name: str, record: Mapping[str, Any]) -> None:
    """Raises RecordError, which names the file and the field, unless `record` has what the report
    shows of its experiment, under the name that its fields give it. records.check comes first."""
    experiment, row, seed = record["experiment"], record["row"], record["seed"]
    if experiment not in METRICS and experiment not in TABLES:
        known = ", ".join([*METRICS, *TABLES])
        raise records.RecordError(
            f"{name}: experiment: expected one of {known}, got {experiment!r}"
        )
    if not records.ROW.fullmatch(row):
        raise records.RecordError(f"{name}: row: expected letters, digits, . _ and -, got {row!r}")
    if name != (expected := records.path(Path(), experiment, row, seed).name):
        raise records.RecordError(f"{name}: expected the name {expected}, as its fields say")
    _need(name, "", record, _those_in(record, {"note": TEXT}))
    if experiment in TABLES:
        if not record.get("table"):
            raise records.RecordError(f"{name}: table: expected rows")
        if data := record["data"]:
            note = {} if data.get("official") else {"note": TEXT}
            _need(name, "data.", data, {"official": TRUTH, **note})
        for n, line in enumerate(record["table"]):
            _need(name, f"table[{n}].", line, TABLES[experiment])
            # of a column that only some records have, the first row says whether this one has
            others = _those_in(record["table"][0], OPTIONAL.get(experiment, {}))
            _need(name, f"table[{n}].", line, others)
        return
    if "table" in record:
        raise records.RecordError(f"{name}: table: expected metrics and history")
    if seed is None:
        raise records.RecordError(f"{name}: seed: expected int, got None")
    _need(name, "metrics.", record["metrics"], METRICS[experiment])
    for n, epoch in enumerate(record["history"]):
        _need(name, f"history[{n}].", epoch, dict.fromkeys(HISTORY[experiment], NUMBER))
    data = record["data"]
    told = dict.fromkeys(("note", "fingerprint", "vectors"), TEXT)
    if experiment == "iwslt":
        told["counts"] = ("train.en.characters, a number", _has_characters)
    needed = _those_in(data, told)
    if not data["official"]:
        needed["note"] = TEXT
    if experiment in ("imdb", "imdb-lm"):
        needed["vectors"] = TEXT
    _need(name, "data.", data, needed)
    if experiment == "iwslt":
        _need(name, "", record, {"attention": ("source, target and weights", _is_attention)})


def _need(name: str, where: str, found: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
    for field, (expected, fits) in kinds.items():
        if field not in found:
            raise records.RecordError(f"{name}: {where}{field} is missing, expected {expected}")
        if not fits(found[field]):
            raise records.RecordError(
                f"{name}: {where}{field}: expected {expected}, got {found[field]!r:.80}"
            )


def _those_in(found: Mapping[str, Any], kinds: Mapping[str, Kind]) -> dict[str, Kind]:
    return {field: kind for field, kind in kinds.items() if field in found}


def _has_characters(told: Any) -> bool:
    for key in ("train", "en", "characters"):
        if not isinstance(told, dict) or key not in told:
            return False
        told = told[key]
    return records.is_number(told)


def _is_attention(told: Any) -> bool:
    """Symbols of source and target, and for each of the latter a weight on each of the former."""
    if not isinstance(told, dict) or not {"source", "target", "weights"} <= told.keys():
        return False
    source, target, weights = (told[field] for field in ("source", "target", "weights"))
    if not all(isinstance(value, list) and value for value in (source, target, weights)):
        return False
    return (
        all(isinstance(symbol, str) for symbol in [*source, *target])
        and len(weights) == len(target)
        and all(isinstance(w, list) and len(w) == len(source) for w in weights)
        and all(records.is_number(value) for w in weights for value in w)
    )
