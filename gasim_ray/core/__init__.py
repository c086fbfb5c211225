"""The algorithm in plain PyTorch: nothing here imports Ray or Gymnasium."""
