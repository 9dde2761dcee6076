"""Plain ``nn.Module`` networks: timm's backbones and baselines; knows nothing of Lightning."""
