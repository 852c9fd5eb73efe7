// imdb_lm.jsonnet the other way round: each review is read from its last word, and the word before is
// predicted. What the reverse direction of imdb_pretrained.jsonnet starts from.
//
//   make data-imdb download-glove && allennlp train configs/imdb_lm_reverse.jsonnet
function(vectors="glove.840B.300d") (import "imdb_lm.jsonnet")(vectors=vectors, reverse=true)
