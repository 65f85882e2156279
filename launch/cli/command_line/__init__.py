"""Words of the command line: arguments that commands share, completion, words of other tools, what to type next."""
