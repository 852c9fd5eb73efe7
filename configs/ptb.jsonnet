// Language model on PTB words, the paper's: 2 x 640 QRNN with zoneout (Bradbury et al. 2016, 3.2).
//
//   make data-ptb && allennlp train configs/ptb.jsonnet
//   allennlp evaluate runs/ptb/model.tar.gz data/ptb/test.txt
//
// Cost: four minutes an epoch on two CPU cores in bfloat16 (record ptb-qrnn-cpu-seed1); 3 seconds on
// an H100 (TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1: TF32 in matrix products).
// Expect: 82.1 on validation and 78.1 on test, 82.3 and 78.6 without zoneout (zoneout=0, or
// -o '{"model.rnn.zoneout": 0}'); the paper has 82.1 and 78.3, 82.9 and 79.9.
//
// Stated in the paper: layers, width, k, dropout 0.5 on the embeddings and between layers, SGD, rate
// 1 for 6 epochs and then 0.95 times the last, 72 epochs, L2 2e-4, gradients rescaled at norm 10,
// batch 20, 105 steps, state carried over, zoneout 0.1. The rates fit the loss that
// "language_model" optimises: summed over time, averaged over the batch.
// Not stated, and chosen here:
// - pooling fo with an untied softmax, which gives the "18M" parameters (17.7);
// - dropout 0.5 on the last layer's output too, as in Zaremba et al. 2014;
// - embeddings start as U(-0.05, 0.05), gates as N(0, 4 / fan-in), the softmax as N(0, 1 / fan-in),
//   biases, forget gates' included, at 0: the best of what scripts/ptb_start.py compares, on
//   validation, at 200 units; embeddings that start as N(0, 1) saturate the first layer;
// - at test time zoneout's mean stands for it (zoneout_eval);
// - L2 is SGD's weight_decay, after the rescaling: the gradient gets 2e-4 times every parameter;
// - the epoch with the best perplexity on validation is kept.
//
// Evaluation is of every word, in one row from the first to the last.
local path = std.split(std.thisFile, "/");
local root = std.join("/", path[0:std.length(path) - 1] + [".."]) + "/";

function(zoneout=0.1, data="data/ptb") {
  random_seed: 1,
  numpy_seed: 1,
  pytorch_seed: 1,
  dataset_reader: {type: "token_stream"},
  train_data_path: root + data + "/train.txt",
  validation_data_path: root + data + "/valid.txt",
  datasets_for_vocab_creation: ["train"],
  vocabulary: {non_padded_namespaces: ["tokens"]},
  model: {
    type: "language_model",
    rnn: {
      type: "qrnn",
      input_size: 640,
      hidden_size: 640,
      num_layers: 2,
      kernel_size: 2,
      pooling: "fo",
      dropout: 0.5,
      zoneout: zoneout,
    },
    dropout: 0.5,
    // 3 H x 2 H matrices: this is a standard deviation of 2 / sqrt(2 H)
    initializer: {regexes: [["rnn.*weight", {type: "xavier_normal", gain: std.sqrt(5)}]]},
  },
  data_loader: {type: "token_stream", batch_size: 20, bptt: 105},
  // the length of the pieces changes nothing in evaluation but the speed
  validation_data_loader: {type: "token_stream", batch_size: 1, bptt: 1000},
  trainer: {
    optimizer: {type: "sgd", lr: 1, weight_decay: 2e-4},
    learning_rate_scheduler: {type: "multi_step", milestones: std.range(6, 71), gamma: 0.95},
    grad_norm: 10,
    validation_metric: "-perplexity",
    num_epochs: 72,
    callbacks: ["run_file", "random_state"],
    checkpointer: {keep_most_recent_by_count: 2},
  },
}
