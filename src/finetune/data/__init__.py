"""From a folder of pictures to batches of tensors; knows nothing of networks."""
