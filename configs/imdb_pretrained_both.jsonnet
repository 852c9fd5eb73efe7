// IMDb from two language models: imdb_pretrained.jsonnet's QRNN, and a second one that reads each
// review from its end; the classifier reads the heads of both.
//
//   make data-imdb download-glove && allennlp train configs/imdb_lm.jsonnet
//   allennlp train configs/imdb_lm_reverse.jsonnet
//   allennlp train configs/imdb_pretrained_both.jsonnet  # from runs/imdb_lm and runs/imdb_lm_reverse
//
// Cost: 36 to 38 minutes an epoch on one CPU core with the callback "bfloat16_autocast". Expect: after two
// epochs, from stand-in vectors and language models of one epoch, 92.4 and 92.5 % on test and 93.0 and
// 92.7 % on dev (two seeds; records imdb-pretrained_both-cpu-word2vec-imdb-300d-seed1 and -seed2): on dev
// no more than one direction has.
function(vectors="glove.840B.300d", run="runs/imdb_lm", reverse_run="runs/imdb_lm_reverse")
  (import "imdb_pretrained.jsonnet")(vectors=vectors, run=run, reverse_run=reverse_run)
