// imdb_lm.jsonnet the other way round: each review is read from its last word, and the word before is
// predicted. What the second QRNN of imdb_pretrained_both.jsonnet starts from.
//
//   make data-imdb download-glove && allennlp train configs/imdb_lm_reverse.jsonnet
//
// Cost: as imdb_lm.jsonnet. Expect: from one epoch a perplexity of 117 on dev (record
// imdb-lm-backward-cpu-word2vec-imdb-300d-seed1, from stand-in vectors).
function(vectors="glove.840B.300d") (import "imdb_lm.jsonnet")(vectors=vectors, reverse=true)
