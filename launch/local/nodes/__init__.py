"""Machines that come and go: they meet through files beside the run directory, and go on with whoever is left."""
