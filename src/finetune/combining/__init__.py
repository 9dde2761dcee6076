"""Many fits into one answer: averages of weights, ensembles of answers, calibration."""
