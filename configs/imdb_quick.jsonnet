// The model of imdb.jsonnet, smaller, on the generated sample: for `make quick` and the tests.
// Cost: a minute or two on two CPU cores. Expect: see scripts/sample.py.
(import "imdb.jsonnet")(data="data/sample/imdb", vectors=null) + {
  model+: {
    text_field_embedder: {token_embedders: {tokens: {type: "word_vectors", embedding_dim: 32}}},
    seq2vec_encoder+: {input_size: 32, hidden_size: 64, num_layers: 2, dropout: 0.1},
  },
  trainer+: {num_epochs: 5},
}
