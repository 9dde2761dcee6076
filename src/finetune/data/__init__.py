"""From a folder of images to batches of tensors; knows nothing of networks."""
