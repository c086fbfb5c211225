"""Makes teachers: policies with RLlib, classifiers with plain PyTorch."""
