"""The pooling and the convolution's windows: `operator`, and one file for each backend."""
