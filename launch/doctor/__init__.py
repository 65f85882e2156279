"""What this machine has for training: each check tells what it found, a verdict, and what to do about it."""
