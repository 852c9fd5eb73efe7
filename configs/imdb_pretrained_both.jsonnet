// IMDb from two language models: imdb_pretrained.jsonnet's QRNN, and a second one that reads each
// review from its end; the classifier reads the heads of both.
//
//   make data-imdb download-glove && allennlp train configs/imdb_lm.jsonnet
//   allennlp train configs/imdb_lm_reverse.jsonnet
//   allennlp train configs/imdb_pretrained_both.jsonnet  # from runs/imdb_lm and runs/imdb_lm_reverse
function(vectors="glove.840B.300d", run="runs/imdb_lm", reverse_run="runs/imdb_lm_reverse")
  (import "imdb_pretrained.jsonnet")(vectors=vectors, run=run, reverse_run=reverse_run)
