// A QRNN that predicts the next word of IMDb's unlabelled reviews: what imdb_pretrained.jsonnet
// starts from (Dai and Le 2015; Howard and Ruder 2018).
//
//   make data-imdb download-glove && allennlp train configs/imdb_lm.jsonnet
//
// Cost: 11 minutes an epoch on two CPU cores with the callback "bfloat16_autocast" and what imdb.jsonnet
// says of memory. Expect: a perplexity of 97 on dev, and of 116 from one epoch (records
// imdb-lm-forward-cpu-word2vec-imdb-300d-2epochs-seed1 and imdb-lm-forward-cpu-word2vec-imdb-300d-seed1,
// from stand-in vectors).
//
// Reviews of unsup.jsonl whose text is in dev.jsonl or test.jsonl are left out. The word vectors stay
// as they are, so that the classifier, which has another vocabulary, can start from the same. Words
// that occur fewer than five times are <unk>, which is the last of the vocabulary and so in the rarest
// cluster of the softmax. Nothing was tuned but the number of epochs.
local imdb = import "imdb.jsonnet";
local path = std.split(std.thisFile, "/");
local root = std.join("/", path[0:std.length(path) - 1] + [".."]) + "/";

function(data="data/imdb", vectors="glove.840B.300d", reverse=false) {
  local vectors_of = imdb(data=data, vectors=vectors).model.text_field_embedder.token_embedders.tokens,
  random_seed: 1,
  numpy_seed: 1,
  pytorch_seed: 1,
  dataset_reader: {
    type: "review_stream",
    held_out: ["dev.jsonl", "test.jsonl"],
    reverse: reverse,
  },
  validation_dataset_reader: {type: "review_stream", reverse: reverse},
  train_data_path: root + data + "/unsup.jsonl",
  validation_data_path: root + data + "/dev.jsonl",
  datasets_for_vocab_creation: ["train"],
  vocabulary: {
    min_count: {tokens: 5},
    non_padded_namespaces: ["tokens"],
    tokens_to_add: {tokens: ["<unk>"]},
  },
  model: {
    type: "language_model",
    embedding: vectors_of + {trainable: false},
    rnn: {
      type: "qrnn",
      input_size: vectors_of.embedding_dim,
      hidden_size: 400,
      num_layers: 3,
      kernel_size: 2,
      pooling: "fo",
      dropout: 0.1,
      forget_bias: 1,
    },
    dropout: 0.1,
    cutoffs: [1000, 10000],
  },
  data_loader: {type: "token_stream", batch_size: 40, bptt: 70},
  validation_data_loader: {type: "token_stream", batch_size: 40, bptt: 70},
  trainer: {
    optimizer: {type: "adam", lr: 2e-3},
    learning_rate_scheduler: {type: "linear_with_warmup", warmup_steps: 300},
    grad_norm: 10,
    validation_metric: "-perplexity",
    num_epochs: 2,
    callbacks: ["run_file", "random_state"],
    checkpointer: {keep_most_recent_by_count: 2},
  },
}
