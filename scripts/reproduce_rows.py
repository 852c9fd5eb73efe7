"""The rows that scripts/reproduce.py trains: the paper's models, and smaller ones for a CPU."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Row(NamedTuple):
    """A row of a table.

    hours: of training on a CPU, roughly, for rows that have no record: from the config's cost.
    gigabytes: of its run, computed: parameters, as often as checkpoints, what the optimizer keeps,
    best.th and the archive hold them. None where it is not known.
    needs: runs that come before it. In needs, name and overrides {runs} is the folder of all runs,
    {seed} the row's seed, and {vectors} "-" and the name of IMDb's word vectors, or nothing for
    GloVe.
    encoders: of IMDb's rows, those parts of the config that read the word vectors.
    """

    experiment: str
    name: str
    config: str
    hours: float | None = None
    gigabytes: float | None = None
    overrides: Mapping[str, Any] = {}
    note: str = ""
    needs: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ("model.seq2vec_encoder",)

    @property
    def part(self) -> str:
        """Of scripts/reproduce.py's PARTS."""
        return self.experiment.split("-")[0]


# of configs/imdb_pretrained.jsonnet and what is built on it
LM_WEIGHTS = {
    "forward": "model.initializer.regexes.0.1.weights_file_path",
    "backward": "model.initializer.regexes.1.1.weights_file_path",
}


def language_model(
    name: str, config: str, overrides: Mapping[str, Any] = {}, note: str = ""
) -> Row:
    """Of IMDb's reviews, for a classifier to start from."""
    return Row("imdb-lm", name, config, 1, 0.4, overrides, note, encoders=("model.rnn",))


def from_language_models(
    name: str,
    config: str,
    hours: float,
    gigabytes: float,
    starts: Mapping[str, str],
    overrides: Mapping[str, Any] = {},
    note: str = "",
) -> Row:
    """starts: for each direction of LM_WEIGHTS that the classifier reads in, its language model."""
    runs = {way: f"imdb-lm-{model}-seed{{seed}}" for way, model in starts.items()}
    weights = {LM_WEIGHTS[way]: f"{{runs}}/{run}/best.th" for way, run in runs.items()}
    encoder = "model.seq2vec_encoder"
    reads = (encoder,) if len(runs) == 1 else tuple(f"{encoder}.{way}_encoder" for way in runs)
    needs = tuple(runs.values())
    return Row("imdb", name, config, hours, gigabytes, {**overrides, **weights}, note, needs, reads)


FORWARD = {"forward": "forward{vectors}"}
BOTH = {**FORWARD, "backward": "backward{vectors}"}
FULL = (
    Row("imdb", "k2{vectors}", "configs/imdb.jsonnet", 10, 0.9),
    Row("imdb", "k4{vectors}", "configs/imdb_k4.jsonnet", None, 0.9),
    Row("imdb", "lstm{vectors}", "configs/imdb_lstm.jsonnet", None, 0.9),
    Row("imdb", "pooled{vectors}", "configs/imdb_pooled.jsonnet", 10, 1.2),
    language_model("forward{vectors}", "configs/imdb_lm.jsonnet"),
    language_model("backward{vectors}", "configs/imdb_lm_reverse.jsonnet"),
    from_language_models("pretrained{vectors}", "configs/imdb_pretrained.jsonnet", 2, 1.2, FORWARD),
    from_language_models(
        "pretrained_both{vectors}", "configs/imdb_pretrained_both.jsonnet", 3, 1.2, BOTH
    ),
    from_language_models("adversarial{vectors}", "configs/imdb_best.jsonnet", 4, 1.2, FORWARD),
    Row("ptb", "qrnn", "configs/ptb.jsonnet", 36, 0.3, {"model.rnn.zoneout": 0}),
    Row("ptb", "zoneout", "configs/ptb.jsonnet", 36, 0.3),
    Row("ptb", "lstm", "configs/ptb_lstm.jsonnet", 48, 0.3),
    Row("ptb", "replication", "configs/ptb_replication.jsonnet", None, 4),
    Row("ptb", "awd", "configs/ptb_awd.jsonnet", None, 0.6),
    Row(
        "ptb",
        "finetuned",
        "configs/ptb_awd_finetune.jsonnet",
        None,
        0.6,
        {
            "vocabulary.directory": "{runs}/ptb-awd-seed{seed}/vocabulary",
            "model.initializer.regexes.0.1.weights_file_path": "{runs}/ptb-awd-seed{seed}/best.th",
        },
        needs=("ptb-awd-seed{seed}",),
    ),
    Row("iwslt", "qrnn", "configs/iwslt_char.yaml", 7.5, 0.4),
    Row("iwslt", "lstm", "configs/iwslt_char_lstm.yaml", None, 0.4),
)

SMALL_PTB = {
    "model.rnn.input_size": 200,
    "model.rnn.hidden_size": 200,
    "trainer.optimizer.lr": 0.35,
    "trainer.num_epochs": 8,
    "trainer.learning_rate_scheduler": {
        "type": "multi_step",
        "milestones": [5, 6, 7],
        "gamma": 0.5,
    },
}
SMALL_PTB_NOTE = (
    "8 epochs instead of 72, 2 x 200 units, rate 0.35, halved in each of the last three epochs"
)
SMALL_IWSLT = {
    "use_cuda": False,
    "training.logging_freq": 100,
    "model.encoder.num_layers": 2,
    "model.decoder.num_layers": 2,
    "model.encoder.embeddings.embedding_dim": 64,
    "model.decoder.embeddings.embedding_dim": 64,
    "model.decoder.hidden_size": 192,
}
SMALL_IWSLT_QRNN = {
    **SMALL_IWSLT,
    "training.validation_freq": 3000,
    "model.encoder.hidden_size": 192,
    "training.updates": 12000,
}
SMALL_IWSLT_LSTM = {
    **SMALL_IWSLT,
    "training.validation_freq": 500,
    "model.encoder.hidden_size": 96,
    "training.updates": 1500,
    "testing.beam_size": 1,
}
IWSLT_NOTE = "2 layers of 192 units, about an hour of one CPU core"
SMALL_IMDB = {
    "trainer.num_epochs": 2,
    "trainer.callbacks": ["run_file", "random_state", "bfloat16_autocast"],
}
IMDB_NOTE = "2 epochs instead of at most 20, trained in bfloat16"
IMDB_LM_NOTE = "2 epochs instead of at most 3, trained in bfloat16"
FORWARD_CPU = {"forward": "forward-cpu{vectors}"}
BOTH_CPU = {**FORWARD_CPU, "backward": "backward-cpu{vectors}"}
BFLOAT16 = {"trainer.callbacks": SMALL_IMDB["trainer.callbacks"]}
SHORT_PTB = {
    "trainer.num_epochs": 18,
    "trainer.learning_rate_scheduler": {
        "type": "multi_step",
        "milestones": list(range(4, 18)),
        "gamma": 0.78,
    },
    **BFLOAT16,
}
SHORT_PTB_NOTE = (
    "18 epochs instead of 72, the rate 1 for 4 of them and then 0.78 times the last; trained in "
    "bfloat16"
)
ONE_EPOCH = {"trainer.num_epochs": 1, **BFLOAT16}, "1 epoch instead of 2, trained in bfloat16"

# How the committed records were made, but that there the classifiers of other seeds than 1 started
# from the language model of seed 1 or 2, as their notes say.
CPU = (
    Row("imdb", "k2-cpu{vectors}", "configs/imdb.jsonnet", 2, 0.4, SMALL_IMDB, IMDB_NOTE),
    Row("imdb", "k4-cpu{vectors}", "configs/imdb_k4.jsonnet", 2, 0.4, SMALL_IMDB, IMDB_NOTE),
    Row("imdb", "lstm-cpu{vectors}", "configs/imdb_lstm.jsonnet", 2, 0.4, SMALL_IMDB, IMDB_NOTE),
    # its records are older than the config's name
    Row("imdb", "best-cpu{vectors}", "configs/imdb_pooled.jsonnet", 2, 0.4, SMALL_IMDB, IMDB_NOTE),
    language_model("forward-cpu{vectors}", "configs/imdb_lm.jsonnet", *ONE_EPOCH),
    language_model("backward-cpu{vectors}", "configs/imdb_lm_reverse.jsonnet", *ONE_EPOCH),
    language_model(
        "forward-cpu{vectors}-2epochs", "configs/imdb_lm.jsonnet", BFLOAT16, "trained in bfloat16"
    ),
    from_language_models(
        "pretrained-cpu{vectors}",
        "configs/imdb_pretrained.jsonnet",
        2,
        0.7,
        FORWARD_CPU,
        SMALL_IMDB,
        IMDB_LM_NOTE,
    ),
    from_language_models(
        "pretrained_both-cpu{vectors}",
        "configs/imdb_pretrained_both.jsonnet",
        3,
        0.7,
        BOTH_CPU,
        SMALL_IMDB,
        IMDB_LM_NOTE,
    ),
    from_language_models(
        "pretrained-lm2-cpu{vectors}",
        "configs/imdb_pretrained.jsonnet",
        2,
        0.7,
        {"forward": "forward-cpu{vectors}-2epochs"},
        BFLOAT16,
        "3 epochs, from a language model of 2 epochs; trained in bfloat16",
    ),
    from_language_models(
        "adversarial-cpu{vectors}",
        "configs/imdb_best.jsonnet",
        4,
        0.7,
        FORWARD_CPU,
        SMALL_IMDB,
        IMDB_LM_NOTE,
    ),
    from_language_models(
        "adversarial-lm2-cpu{vectors}",
        "configs/imdb_best.jsonnet",
        4,
        0.7,
        {"forward": "forward-cpu{vectors}-2epochs"},
        BFLOAT16,
        "3 epochs, from a language model of 2 epochs; trained in bfloat16",
    ),
    Row(
        "ptb",
        "qrnn-cpu",
        "configs/ptb.jsonnet",
        2,
        0.3,
        {"model.rnn.zoneout": 0, **SHORT_PTB},
        SHORT_PTB_NOTE,
    ),
    Row("ptb", "lstm-18epochs-cpu", "configs/ptb_lstm.jsonnet", 2, 0.3, SHORT_PTB, SHORT_PTB_NOTE),
    Row("ptb", "zoneout-cpu", "configs/ptb.jsonnet", None, 0.1, SMALL_PTB, SMALL_PTB_NOTE),
    Row("ptb", "lstm-cpu", "configs/ptb_lstm.jsonnet", None, 0.1, SMALL_PTB, SMALL_PTB_NOTE),
    Row("iwslt", "qrnn-cpu", "configs/iwslt_char.yaml", 1, 0.1, SMALL_IWSLT_QRNN, IWSLT_NOTE),
    Row(
        "iwslt",
        "lstm-cpu",
        "configs/iwslt_char_lstm.yaml",
        1,
        0.1,
        SMALL_IWSLT_LSTM,
        f"{IWSLT_NOTE}; decoded greedily",
    ),
)
