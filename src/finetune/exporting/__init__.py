"""Fine-tuned classifiers and ensembles for programs that know nothing of this package."""
