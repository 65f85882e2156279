"""Commands for runs: `list`, `status`, `logs`, `stop`, `cancel`, `rm`, `prune`, `report`, `wandb-sync` and `verify`."""
