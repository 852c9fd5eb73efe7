// AWD-QRNN on PTB words: the recipe of Merity et al. 2017 with QRNN layers, 24.0M parameters.
//
//   make data-ptb && allennlp train configs/ptb_awd.jsonnet
//   allennlp train configs/ptb_awd_finetune.jsonnet        # optional: goes on from the result
//   python scripts/ptb_cache.py runs/ptb_awd_finetune      # optional: that with a cache of recent words
//
// Cost: not measured; twice the multiplications of ptb.jsonnet, and meant for a GPU.
// Expect: the recipe's authors have 60.6 on validation and 58.3 on test after 550 epochs, 59.1 and
// 56.7 after fine-tuning, 53.4 and 52.6 with the cache too.
//
// Stated there: all numbers below. Not stated, and chosen here: the layers' weights start as
// N(0, 1 / fan-in), the tied embeddings as N(0, 1 / 400).
local ptb = (import "ptb.jsonnet")();

ptb + {
  model: {
    type: "awd_language_model",
    embedding_size: 400,
    hidden_size: 1550,
    num_layers: 4,
    first_kernel_size: 2,
    weight_dropout: 0.1,
    word_dropout: 0.1,
    input_dropout: 0.4,
    hidden_dropout: 0.3,
    output_dropout: 0.4,
    activation_penalty: 2,
    temporal_penalty: 1,
  },
  data_loader: {type: "token_stream", batch_size: 20, bptt: 70, random_length: true},
  trainer: {
    optimizer: {type: "sgd", lr: 30, weight_decay: 1.2e-6},
    grad_norm: 0.2,
    validation_metric: "-perplexity",
    num_epochs: 550,
    callbacks: [
      "run_file",
      "random_state",
      {type: "nt_asgd", window: 5},
      {type: "rate_by_length", bptt: 70},
    ],
    checkpointer: {keep_most_recent_by_count: 2},
  },
}
