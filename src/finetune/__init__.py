"""Fine-tune image classifiers on small folders of pictures, and combine the fine-tuned models."""
