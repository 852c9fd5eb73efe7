"""A trained PTB model with a cache of recent words:

    python scripts/ptb_cache.py runs/ptb_awd_finetune

The continuous cache of Grave et al. 2017 (arXiv 1612.04426): the model's outputs h_i of the last
`window` words are kept with the words w_i that came next, and p(w) becomes
(1 - share) p_model(w) + share p_cache(w), where p_cache(w) is proportional to the sum of
exp(theta h_t . h_i) over the i < t with w_i = w. Nothing is trained. window, theta and share are
chosen on validation; the test part is evaluated once, with the choice.
"""

import argparse
import math
import shlex
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import records
import torch
from files import check_folder, check_root, read_json
from torch import Tensor
from tqdm import tqdm
from with_allennlp import check_data, require

from qrnn.allennlp import TokenStreamLoader  # before allennlp, which it mends

from allennlp.models.archival import load_archive  # isort: skip

WINDOWS = (500, 1000, 2000, 4000)
THETAS = tuple(2.0**n for n in range(-5, 3))
SHARES = tuple(n / 100 for n in range(2, 42, 2))
PIECE = 500  # words


class Read(NamedTuple):
    """A text as the model has read it, N words."""

    outputs: Tensor  # (N, H), what the softmax is given
    words: Tensor  # (N,), what came next
    log_p: Tensor  # (N,), of these words


class Choice(NamedTuple):
    window: int
    theta: float
    share: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path, help="a directory that allennlp train has finished")
    parser.add_argument(
        "--row",
        type=records.row_name,
        default="cache",
        help="name of the row in the report's table",
    )
    parser.add_argument("--note", default="", help="what the reader of the table should know")
    parser.add_argument("--results", type=Path, default=records.RESULTS)
    arguments = parser.parse_args()
    check_root(parser)
    check_folder(parser, "--results", arguments.results)
    require(arguments.run)
    archive = arguments.run / "model.tar.gz"
    print(measure(archive, arguments.row, arguments.note, arguments.results))


def measure(archive: Path, row: str, note: str, results: Path) -> Path:
    started = time.monotonic()
    loaded = load_archive(archive, cuda_device=0 if torch.cuda.is_available() else -1)
    loader = loaded.config.get("validation_data_loader") or loaded.config.get("data_loader")
    softmax = getattr(loaded.model, "softmax", None)
    if not isinstance(softmax, torch.nn.Linear) or loader["type"] != "token_stream":
        sys.exit(f"error: {archive.parent}: expected a language model over a token_stream")
    valid_file = Path(loaded.config["validation_data_path"])
    told = read_json(archive.with_name("run.json"))
    check_data(archive.parent, told["data"], valid_file)
    valid = read(loaded, valid_file)
    choice, valid_perplexity = best(valid)
    test = read(loaded, valid_file.with_stem("test"))
    test_perplexity = perplexity(test, cache(test, choice.window, [choice.theta])[0], choice.share)
    return records.write(
        results,
        {
            "experiment": "ptb",
            "row": row,
            "seed": told["seed"],
            "metrics": {
                "valid_perplexity": valid_perplexity,
                "test_perplexity": test_perplexity,
                "valid_perplexity_without": perplexity(valid, None, 0),
                "parameters": told["parameters"],
                **choice._asdict(),
            },
            "history": [],
            "data": told["data"],
            "note": note,
            "config_sha256": records.sha256(archive.with_name("config.json").read_text("utf-8")),
            "wall_seconds": round(time.monotonic() - started, 1),
            "command": shlex.join(["python", *sys.argv]),
        },
    )


@torch.no_grad()
def read(loaded: Any, file: Path) -> Read:
    """The whole of a file in one row, as it is evaluated."""
    model = loaded.model.eval()
    loader = TokenStreamLoader(loaded.validation_dataset_reader, str(file), PIECE)
    loader.index_with(model.vocab)
    loader.set_target_device(model.softmax.weight.device)
    state, parts = model.initial_state(1), []
    for batch in tqdm(loader, desc=f"reading {file.name}"):
        output, state, _ = model.read(batch["tokens"], state)
        output, words = output[:, 0], batch["targets"][:, 0]
        log_p = model.softmax(output).log_softmax(-1).gather(1, words[:, None])[:, 0]
        parts.append((output, words, log_p))
    return Read(*map(torch.cat, zip(*parts, strict=True)))


def cache(text: Read, window: int, thetas: list[float]) -> Tensor:
    """p_cache of each word, for each theta: (thetas, N). The first word has none: 0."""
    N = len(text.words)
    place = torch.arange(N, device=text.words.device)
    found = text.outputs.new_zeros(len(thetas), N)
    for start in tqdm(range(0, N, PIECE), desc=f"cache of {window:,} words"):
        now = place[start : start + PIECE, None]  # (P, 1)
        then = place[max(0, start - window) : start + PIECE]  # (K,)
        inside = (then < now) & (then >= now - window)
        scores = text.outputs[now[:, 0]] @ text.outputs[then].T
        same = text.words[then] == text.words[now]
        for n, theta in enumerate(thetas):
            p = (theta * scores).masked_fill(~inside, -math.inf).softmax(-1)
            found[n, now[:, 0]] = (p * same).sum(-1).nan_to_num()  # of no words is nan
    return found


def perplexity(text: Read, cached: Tensor | None, share: float) -> float:
    p = text.log_p.double().exp()
    if cached is not None:
        mixed = (1 - share) * p + share * cached.double()
        p = torch.cat([p[:1], mixed[1:]])  # before the first word there is no cache
    return math.exp(-p.log().mean().item())


def best(text: Read) -> tuple[Choice, float]:
    """The choice with the lowest perplexity, and that."""
    found = {}
    for window in WINDOWS:
        for theta, cached in zip(THETAS, cache(text, window, list(THETAS)), strict=True):
            for share in SHARES:
                found[Choice(window, theta, share)] = perplexity(text, cached, share)
    choice = min(found, key=found.__getitem__)
    return choice, found[choice]


if __name__ == "__main__":
    main()
