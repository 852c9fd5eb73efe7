"""A folder for sys.path, where `import torchqrnn` finds qrnn.torchqrnn; see its main()."""
