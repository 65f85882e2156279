"""Pictures in a folder for each class: which files there are, in which splits and in which order."""
