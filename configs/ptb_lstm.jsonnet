// The LSTM beside ptb.jsonnet: same data, loss, optimizer and schedule, 19.8M parameters.
//
//   allennlp train configs/ptb_lstm.jsonnet
//
// Cost: 4.8 minutes an epoch (the median of row lstm-18epochs-cpu: bfloat16, two CPU cores); not
// timed on a GPU yet.
// Expect: the paper's own "LSTM 20M" has 85.7 on validation and 82.0 on test, the medium model of
// Zaremba et al. 2014 86.2 and 82.7. On the 18 epochs of that row: 94.3 and 91.3. Chosen here:
// 2 x 650 and the start values, U(-0.05, 0.05), are the medium model's; everything else is as for
// the QRNN.
(import "ptb.jsonnet")() + {
  model+: {
    rnn: {type: "lstm", input_size: 650, hidden_size: 650, num_layers: 2, dropout: 0.5},
    initializer: {regexes: [[".*", {type: "uniform", a: -0.05, b: 0.05}]]},
  },
}
