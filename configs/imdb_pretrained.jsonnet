// IMDb from a language model: the QRNN of imdb_lm.jsonnet, trained on to classify reviews.
//
//   make data-imdb download-glove && allennlp train configs/imdb_lm.jsonnet
//   allennlp train configs/imdb_pretrained.jsonnet     # goes on from runs/imdb_lm
//
// Cost: 8 minutes an epoch on one CPU core with the callback "bfloat16_autocast" and what imdb.jsonnet
// says of memory. Expect, from stand-in vectors: 91.6, 92.0 and 91.5 % on test and 92.8, 92.9 and 92.2 %
// on dev (records imdb-pretrained-lm2-cpu-word2vec-imdb-300d-seed1, -seed2 and -seed3). After two
// epochs from a language model of one it was 92.5 and 92.1 % on test and 92.8 % on dev, and without the
// language model 91.5 % and 92.6 % (imdb-pretrained-cpu-word2vec-imdb-300d-seed1 and -seed2,
// imdb-pretrained-not-...).
//
// Head, dropout before the layers and the classifier, and smoothed labels as in imdb_pooled.jsonnet.
// Adam's rate rises to 1e-3 over the first 200 steps and falls to zero over the others; 3e-4 for
// embeddings and pretrained layers was no better on dev (92.6 %, record imdb-pretrained-rates-...), and
// nothing else was tried. run=null: the same model from random layers.
local path = std.split(std.thisFile, "/");
local root = std.join("/", path[0:std.length(path) - 1] + [".."]) + "/";

// reverse_run: of imdb_lm_reverse.jsonnet, for a second QRNN that reads backwards.
function(vectors="glove.840B.300d", run="runs/imdb_lm", reverse_run=null)
  local rnn = (import "imdb_lm.jsonnet")(vectors=vectors).model.rnn;
  local parameters = [
    "layers.%d.%s" % [n, name]
    for n in std.range(0, rnn.num_layers - 1)
    for name in ["weight", "bias"]
  ];
  local from(run, encoder) = [encoder, {
    type: "pretrained",
    weights_file_path: root + run + "/best.th",
    parameter_name_overrides: {
      ["_" + encoder + ".module." + name]: "rnn." + name
      for name in parameters
    },
  }];
  local pooled = (import "imdb_pooled.jsonnet")(vectors=vectors);
  local encoder = rnn + {dropout: 0.3, heads: pooled.model.seq2vec_encoder.heads};
  pooled + {
    model+: {
      seq2vec_encoder: if reverse_run == null then encoder else {
        type: "bidirectional",
        forward_encoder: encoder,
        backward_encoder: encoder,
      },
      [if run != null then "initializer"]: {
        regexes: if reverse_run == null then [from(run, "seq2vec_encoder")] else [
          from(run, "seq2vec_encoder.forward_encoder"),
          from(reverse_run, "seq2vec_encoder.backward_encoder"),
        ],
      },
    },
    trainer+: {
      optimizer: {type: "adam", lr: 1e-3},
      learning_rate_scheduler: {type: "linear_with_warmup", warmup_steps: 200},
      moving_average:: null,
      num_epochs: 3,
    },
  }
