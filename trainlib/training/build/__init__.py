"""From a configuration to the parts of a run: data, model, and all that is trained with. Nothing here trains."""
