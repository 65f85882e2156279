"""One optimizer step and one evaluation pass, and the state that they work on."""
