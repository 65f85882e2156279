"""What ranks agree on: channels for yes and no, and the decision to stop."""
