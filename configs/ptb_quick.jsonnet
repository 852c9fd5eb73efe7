// The model of ptb.jsonnet, smaller, on generated text: for `make quick` and the tests.
// Cost: half a minute of one CPU core. Expect: see scripts/sample_text.py.
(import "ptb.jsonnet")(data="data/sample/ptb") + {
  model+: {
    rnn+: {input_size: 64, hidden_size: 64, dropout: 0.1},
    dropout: 0.1,
    // as few steps as there are here do not make small embeddings grow
    initializer: {regexes: [["embedding.weight", {type: "normal", mean: 0, std: 1}]]},
  },
  data_loader+: {bptt: 35},
  trainer+: {
    learning_rate_scheduler+: {milestones: std.range(4, 9), gamma: 0.6},
    num_epochs: 10,
  },
}
