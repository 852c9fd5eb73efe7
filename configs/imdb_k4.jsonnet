// IMDb with a window of 4 in the first layer: the paper has 91.1 % on test. See imdb.jsonnet.
function(vectors="glove.840B.300d") (import "imdb.jsonnet")(k=4, vectors=vectors)
