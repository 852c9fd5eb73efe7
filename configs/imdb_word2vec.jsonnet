// imdb.jsonnet with the stand-in for GloVe: vectors that gensim trained on the reviews themselves.
//
//   make data-imdb && make download-glove SET=word2vec-imdb.300d
//   allennlp train configs/imdb_word2vec.jsonnet
//
// Cost: as imdb.jsonnet. Name the vectors wherever its results are shown: they are not the paper's.
(import "imdb.jsonnet")(vectors="word2vec-imdb.300d")
