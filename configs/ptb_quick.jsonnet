// The model of ptb.jsonnet, smaller, on generated text: for `make quick` and the tests.
// Cost: about 20 seconds of one CPU core for 50,000 words.
(import "ptb.jsonnet")(data="data/sample/ptb") + {
  model+: {rnn+: {input_size: 64, hidden_size: 64, dropout: 0.1}, dropout: 0.1},
  data_loader+: {bptt: 35},
  trainer+: {
    learning_rate_scheduler+: {milestones: [3, 4, 5], gamma: 0.5},
    num_epochs: 6,
  },
}
