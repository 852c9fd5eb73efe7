// IMDb with a window of 4 in the first layer: the paper has 91.1 % on test. See imdb.jsonnet.
(import "imdb.jsonnet")(k=4)
