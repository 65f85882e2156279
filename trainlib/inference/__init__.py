"""A trained model: loading, evaluating, predicting and exporting it."""
